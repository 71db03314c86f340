"""The files of a report: peers.json, peers.md and, with matplotlib, peers.svg."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from bench.peers import plot, table
from bench.peers.host import Host
from bench.peers.limits import Costs, Machine, limit
from bench.peers.results import Column, as_json, column
from bench.peers.rounds import Found, Plan, raw

from deepmnn.errors import StorageError


class Report:
    """Turns what was found into files in `out`. busy: the load average before the run."""

    def __init__(self, out: Path, plan: Plan, costs: Mapping[str, Costs], busy: float) -> None:
        self.out, self.plan, self.costs, self.busy = out, plan, costs, busy
        self.host = Host.now()

    def figures(
        self, found: Found
    ) -> tuple[Machine, dict[str, list[Column]], dict[str, dict[str, float]]]:
        """This machine, shape → columns, shape → case → limit."""
        machine, cases = Machine.best(found.machines), self.plan.cases
        columns = {
            shape: [column(name, cases, rounds) for name, rounds in engines.items()]
            for shape, engines in found.rounds.items()
        }
        limits = {
            shape: {case.name: limit(self.costs[shape], machine, case) for case in cases}
            for shape in columns
        }
        return machine, columns, limits

    def title(self) -> str:
        """Of the page."""
        only = f", limited to {self.plan.isa.upper()}" if self.plan.isa else ""
        return f"deepmnn beside its peers{only}"

    def facts(self, machine: Machine) -> dict[str, str]:
        """What stands above the tables, by name."""
        order = "; every second one runs the engines in reverse" if self.plan.repeat > 1 else ""
        return table.machine_facts(self.host, machine) | {
            "instruction set": self.plan.isa.upper() or "the best that each engine has",
            "threads": str(self.plan.threads),
            "rounds": f"{self.plan.repeat}{order}",
            "load average before": f"{self.busy:.2f}",
            "made by": "`python -m bench.peers`; bench/README.md says how to run it",
        }

    def save(self, found: Found) -> None:
        """Everything, so far. Raises StorageError."""
        machine, columns, limits = self.figures(found)
        cases = self.plan.cases
        fields = {
            "threads": self.plan.threads,
            "isa": self.plan.isa,
            "load_average": self.busy,
            "host": asdict(self.host),
            "machine": asdict(machine),
            "cases": [asdict(case) for case in cases],
            "shapes": {name: as_json(made, cases, limits[name]) for name, made in columns.items()},
            "raw": raw(found),
        }
        page = table.report(
            self.title(), self.facts(machine), columns, cases, limits, found.versions
        )
        try:
            self._write("peers.json", json.dumps(fields, indent=1))
            self._write("peers.md", page)
            if plot.is_installed():
                plot.plot(self.out / "peers.svg", columns, cases, limits)
        except OSError as error:
            raise StorageError(
                f"{self.out}: {error.strerror}", "a directory to write to"
            ) from error

    def _write(self, name: str, text: str) -> None:
        partial = self.out / f".{name}"
        partial.write_text(text + "\n")
        partial.replace(self.out / name)
