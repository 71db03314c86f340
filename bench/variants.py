"""Measures variants of one model in turn: optimisation levels, formats.

Each measurement is a process of its own, as in bench.peers, so that its memory is one variant's.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import typer
from bench.peers.child import ChildError, Peer, call
from bench.peers.engine import Case, Measured, as_fields
from bench.peers.host import Host
from bench.peers.limits import measure_machine
from bench.peers.models import Shape
from bench.peers.results import Column, column
from bench.peers.table import machine_facts, number
from rich.console import Console

from deepmnn.errors import DeepmnnError, RequestError, StorageError

PREFILL, DECODE = Case(512, repeat=3), Case(128, steps=32)
CASES = (PREFILL, DECODE)

Say = Callable[[str], None]


@contextmanager
def errors_end(console: Console) -> Iterator[None]:
    """An error of deepmnn's is shown, and ends the program with 1."""
    try:
        yield
    except DeepmnnError as error:
        console.print(str(error), style="red", markup=False)
        raise typer.Exit(1) from None


@contextmanager
def workplace(work: Path, name: str) -> Iterator[Path]:
    """A new directory in `work`; it is removed with all models in it, however the run ends.

    Raises StorageError.
    """
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{work}: {error.strerror}", "a directory to write to") from error
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # cleans up, too
    try:
        with TemporaryDirectory(prefix=f"{name}-", dir=work) as folder:
            yield Path(folder)
    finally:
        signal.signal(signal.SIGTERM, before)


def shortened(shape: Shape, layers: int | None, folder: Path) -> Shape:
    """The shape with only its first layers, as a config.json in `folder`; None: as it is.

    Raises RequestError.
    """
    if layers is None:
        return shape
    most = shape.config["num_hidden_layers"]
    if not 1 <= layers <= most:
        raise RequestError(f"--layers {layers}", f"1 to {most}, the layers of {shape.name}")
    path = folder / f"{shape.name}.json"
    path.write_text(json.dumps({**shape.config, "num_hidden_layers": layers}))
    return Shape.read(path)


def measure(
    models: Mapping[str, Path],
    cases: Sequence[Case],
    vocab_size: int,
    threads: int,
    repeat: int,
    timeout: float,
    say: Say,
) -> dict[str, Column]:
    """Name → speeds and memory of each model, or why it failed.

    repeat: rounds; odd ones run the models in order, even ones in reverse. timeout: seconds for one
    model in one round.
    """
    peer = Peer("deepmnn_cpu", sys.executable)
    rounds: dict[str, list[Measured | str]] = {name: [] for name in models}
    for turn in range(repeat):
        for name in list(models)[:: -1 if turn % 2 else 1]:
            say(f"round {turn + 1} of {repeat}: {name}")
            request = {
                "model": str(models[name]),
                "threads": threads,
                "vocab_size": vocab_size,
                "seed": turn,
                "cases": as_fields(cases),
            }
            try:
                rounds[name].append(Measured.of(call(peer, "measure", request, timeout, None)))
            except ChildError as error:
                rounds[name].append(str(error))
    return {name: column(name, cases, found) for name, found in rounds.items()}


def page(
    title: str, shape: Shape, threads: int, repeat: int, rows: Sequence[Sequence[str]]
) -> Iterator[str]:
    """The lines of a page in Markdown: this machine, and one table whose first row is its head."""
    yield from (f"# {title}", "", "| | |", "|---|---|")
    facts = {"shape": f"{shape.name}, layers: {shape.config['num_hidden_layers']}"}
    facts |= machine_facts(Host.now(), measure_machine(threads))
    facts |= {
        "threads": str(threads),
        "rounds": f"{repeat}; odd ones run in order, even ones in reverse",
    }
    yield from (f"| {name} | {fact} |" for name, fact in facts.items())
    yield ""
    for row in (rows[0], ["---"] * len(rows[0]), *rows[1:]):
        yield "| " + " | ".join(row) + " |"


def speed_cell(made: Column, first: Column, case: Case) -> str:
    """Tokens per second; in brackets, the ratio to the first variant."""
    found, base = made.speeds.get(case.name), first.speeds.get(case.name)
    if found is None:
        return made.failure
    times = f" ({found.median / base.median:.2f} ×)" if base and made is not first else ""
    return f"{number(found.median)}{times}"


def memory_cell(made: Column) -> str:
    """The peak in gigabytes; in brackets, the part that is the process's own."""
    if made.peak_nbytes is None or made.own_nbytes is None:
        return ""
    return f"{made.peak_nbytes / 1e9:.2f} ({made.own_nbytes / 1e9:.2f})"
