"""deepmnn and its peers, side by side on this machine.

    python -m bench.peers [--shapes S,...] [--peers P,...] [--quick] [--isa avx2] [--repeat N]

Run it from the repository's root on an otherwise idle machine. bench/README.md says how to install
the peers and how to name their interpreters and folders.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from bench.peers.child import ChildError, Peer
from bench.peers.engine import FULL, QUICK, Case
from bench.peers.limits import Costs
from bench.peers.models import Models, find_shapes
from bench.peers.plot import is_installed
from bench.peers.report import Report
from bench.peers.rounds import Plan, run
from rich.console import Console

from deepmnn.errors import DeepmnnError, RequestError, StorageError

ENGINES = ("deepmnn_cpu", "llama_cpp", "ik_llama", "openvino", "mnn", "mnn_exporter")
SHAPES = "r1-distill-qwen-1.5b,deepseek-v2-lite"
ISAS = ("avx2",)
"""Instruction sets that a whole run can be limited to."""
BUSY = 0.3
"""A load average above this is reported."""

console = Console(stderr=True)


def find_peers(names: str, pythons: Sequence[str], sources: Sequence[str]) -> list[Peer]:
    """The engines asked for. Raises RequestError."""
    python, source = _pairs(pythons, "python"), _pairs(sources, "source")
    wanted = names.split(",")
    if unknown := [name for name in wanted if name not in ENGINES]:
        raise RequestError(f"the engine {unknown[0]!r:.80}", f"some of {', '.join(ENGINES)}")
    peers = []
    for name in dict.fromkeys(wanted):
        folder = source.get(name)
        if folder is not None and not Path(folder).is_dir():
            raise RequestError(f"--source {name}={folder}", "a directory")
        where = Path(folder).resolve() if folder else None
        peers.append(Peer(name, python.get(name, sys.executable), where))
    return peers


def _pairs(given: Sequence[str], flag: str) -> dict[str, str]:
    """NAME=VALUE, by name. Raises RequestError."""
    pairs = {}
    for text in given:
        name, _, value = text.partition("=")
        if name not in ENGINES or not value:
            expected = f"ENGINE=PATH, an engine being one of {', '.join(ENGINES)}"
            raise RequestError(f"--{flag} {text!r:.200}", expected)
        pairs[name] = os.path.abspath(os.path.expanduser(value))  # links stay: venvs are links
    return pairs


def hold_to(isa: str) -> None:
    """Limits deepmnn, in this process and those it starts. Raises RequestError."""
    if isa and isa not in ISAS:
        raise RequestError(f"--isa {isa!r:.80}", f"one of {', '.join(ISAS)}")
    os.environ.pop("DEEPMNN_ISA", None)
    if isa:
        os.environ["DEEPMNN_ISA"] = isa


def main(
    shapes: Annotated[
        str, typer.Option(help="Names in bench/configs, or paths of config.json files.")
    ] = SHAPES,
    peers: Annotated[str, typer.Option(help="Engines, comma-separated.")] = ",".join(ENGINES),
    quick: Annotated[
        bool, typer.Option(help="Fewer cases and one round, to see that it runs.")
    ] = False,
    repeat: Annotated[int | None, typer.Option(min=1, help="Rounds; default: 3.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Worker threads.")] = 2,
    out: Annotated[Path, typer.Option(help="Directory of the report.")] = Path("build/peers"),
    work: Annotated[Path, typer.Option(help="Directory of the models.")] = Path("build/peers/work"),
    python: Annotated[
        list[str] | None, typer.Option(help="ENGINE=INTERPRETER that has it.")
    ] = None,
    source: Annotated[list[str] | None, typer.Option(help="ENGINE=CHECKOUT that it needs.")] = None,
    timeout: Annotated[float, typer.Option(help="Most seconds for one engine and shape.")] = 3600,
    isa: Annotated[str, typer.Option(help=f"Limit all engines to {' or '.join(ISAS)}.")] = "",
) -> None:
    """Measure deepmnn and its peers in turn; writes peers.md, peers.json and peers.svg."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the running engine, too
    try:
        hold_to(isa)
        chosen = find_peers(peers, python or (), source or ())
        cases: Sequence[Case] = QUICK if quick else FULL
        rounds = repeat or (1 if quick else 3)
        plan = Plan(
            find_shapes(shapes), chosen, cases, threads, rounds, timeout, sys.executable, isa
        )
        measure(plan, out, work)
    except (DeepmnnError, ChildError) as error:
        console.print(str(error), style="red", markup=False)
        raise typer.Exit(1) from None


def measure(plan: Plan, out: Path, work: Path) -> None:
    """Runs the plan. Raises ConfigError or StorageError."""
    costs = {shape.name: Costs.of(shape.config) for shape in plan.shapes}
    for folder in (out, work):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{folder}: {error.strerror}", "a directory to write to") from error
    if (busy := os.getloadavg()[0]) > BUSY:
        console.print(f"this machine is busy (load average {busy:.2f}): the figures will be low")
    if not is_installed():
        console.print("no picture: matplotlib is missing (pip install matplotlib)")
    sizes = {name: cost.weights_nbytes for name, cost in costs.items()}
    report = Report(out, plan, costs, busy)
    models = Models(work.resolve(), plan.python, plan.timeout, console.print)
    found = run(plan, models, sizes, console.print, report.save)
    report.save(found)
    console.print(f"{out / 'peers.md'}")


if __name__ == "__main__":
    typer.run(main)
