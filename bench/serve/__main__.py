"""deepmnn's server beside llama-server under the same loads: bench/README.md says how to run it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from bench.peers.__main__ import BUSY
from bench.peers.child import ChildError, Peer
from bench.peers.host import Host
from bench.peers.limits import Costs
from bench.peers.models import Models, Shape, find_shapes
from bench.serve.cases import FULL, QUICK, Case
from bench.serve.report import save
from bench.serve.rounds import Found, Plan, run
from bench.serve.servers import KINDS, Kind, version

from deepmnn.cli.console import out as console
from deepmnn.errors import DeepmnnError, RequestError


def main(
    quick: Annotated[bool, typer.Option(help="Short loads, to see that all runs.")] = False,
    servers: Annotated[str, typer.Option(help="Names, in this order.")] = "deepmnn,ik_llama",
    cases: Annotated[str, typer.Option(help="Parts of the names of cases; default: all.")] = "",
    shape: Annotated[str, typer.Option(help="Name or config.json.")] = "r1-distill-qwen-1.5b",
    bare: Annotated[bool, typer.Option(help="Also the engine without a server.")] = True,
    threads: Annotated[int, typer.Option(min=1, help="Worker threads.")] = 2,
    seed: Annotated[int, typer.Option(help="Other prompts and arrivals.")] = 0,
    out: Annotated[Path, typer.Option(help="Directory of the report.")] = Path("build/serve"),
    work: Annotated[Path, typer.Option(help="Directory of models and logs.")] = Path(
        "build/serve/work"
    ),
    source: Annotated[list[str] | None, typer.Option(help="SERVER=CHECKOUT, built.")] = None,
    timeout: Annotated[float, typer.Option(help="Most seconds for one server and case.")] = 1800,
) -> None:
    """Measure every case with every server in turn; writes serve.md and serve.json."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the running server, too
    try:
        kinds, sources = _kinds(servers), _sources(source or ())
        chosen = _cases(QUICK if quick else FULL, cases)
        found = find_shapes(shape)[0]
        out.mkdir(parents=True, exist_ok=True)
        work.mkdir(parents=True, exist_ok=True)
        models = _models(kinds, found, work, timeout)
        vocab_size = int(found.config["eos_token_id"])  # what lies below it is text
        place = work.resolve()
        plan = Plan(kinds, chosen, models, sources, threads, vocab_size, seed, place, timeout, bare)
        measure(plan, out, found)
    except (DeepmnnError, ChildError) as error:
        console.print(str(error), style="red", markup=False)
        raise typer.Exit(1) from None


def measure(plan: Plan, out: Path, shape: Shape) -> None:
    """Runs the plan, and writes the report after each measurement."""
    host, busy = Host.now(), os.getloadavg()[0]
    if busy > BUSY:
        console.print(f"this machine is busy (load average {busy:.2f}): the figures will be low")
    facts = {
        "date": host.date,
        "processor": f"{host.processor} ({', '.join(host.features)})",
        "cores": f"{host.cores}, hardware threads: {host.hardware_threads}",
        "memory": f"{host.memory_nbytes / 1e9:.1f} GB",
        "system": host.system,
        "model": f"{shape.name}, random weights",
        "threads": str(plan.threads),
        "load average before": f"{busy:.2f}",
        "made by": "`python -m bench.serve`; bench/README.md says how to run it",
    }
    found = Found({kind.name: version(kind, plan.sources.get(kind.name)) for kind in plan.kinds})
    run(plan, found, console.print, lambda found: save(out, plan, found, facts))
    console.print(f"{out / 'serve.md'}")


def _models(kinds: list[Kind], shape: Shape, work: Path, timeout: float) -> dict[str, Path]:
    """The model of each kind of server. Raises ChildError."""
    models = Models(work.resolve(), sys.executable, timeout, console.print)
    nbytes = int(Costs.of(shape.config).weights_nbytes * 1.15)
    names = {kind.name: kind.builder for kind in kinds} | {"deepmnn": KINDS[0].builder}
    return {
        name: models.build(Peer(builder, sys.executable), shape, nbytes)
        for name, builder in names.items()
    }


def _kinds(names: str) -> list[Kind]:
    known = {kind.name: kind for kind in KINDS}
    wanted = names.split(",")
    for name in wanted:
        if name not in known:
            raise RequestError(f"the server {name!r:.80}", f"one of {', '.join(known)}")
    return [known[name] for name in wanted]


def _sources(pairs: list[str] | tuple[str, ...]) -> dict[str, Path]:
    found = {}
    for pair in pairs:
        name, _, path = pair.partition("=")
        if not path:
            raise RequestError(f"the source {pair!r:.80}", "SERVER=CHECKOUT")
        found[name] = Path(path).resolve()
    return found


def _cases(known: tuple[Case, ...], parts: str) -> list[Case]:
    wanted = [part.strip() for part in parts.split(",")]
    found = [case for case in known if any(part in case.name for part in wanted)]
    if not found:
        raise RequestError(
            f"no case is named like {parts!r:.80}", ", ".join(case.name for case in known)
        )
    return found


if __name__ == "__main__":
    typer.run(main)
