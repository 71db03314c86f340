"""What quantisation brings and costs: speed, size and accuracy of fp32, bf16, w8 and w4.

    python -m bench.schemes [SHAPE] [--layers N] [--problems N] > schemes.md

SHAPE is a name of bench/configs or the path of a config.json; its weights are random. Accuracy is
measured with tiny-r1, the trained model of the package, on problems that its training never saw.
The models are kept in --work while it runs: 14 GB for R1-Distill-Qwen-1.5B.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from bench.peers.cold import files_of, nbytes
from bench.peers.models import Shape, find_shapes
from bench.peers.results import Column
from bench.variants import (
    CASES,
    errors_end,
    measure,
    memory_cell,
    page,
    shortened,
    speed_cell,
    workplace,
)
from rich.console import Console

import deepmnn
from deepmnn.conversion.bundled import CHECKPOINT, HELD_OUT
from deepmnn.conversion.convert import convert
from deepmnn.measure.evaluate import evaluate
from deepmnn.measure.problems import Problem, read_problems

SCHEMES = ("fp32", "bf16", "w8", "w4")
NOTES = """
Size is that of all files. Memory is the peak of the process, mapped weights included; in brackets,
the part that is its own. Speeds are in tokens per second, the median of the rounds; in brackets,
their ratio to fp32's. Right answers are tiny-r1's to problems that its training never saw; in
brackets, the difference from fp32 in percentage points.
"""

console = Console(stderr=True)


def problems(count: int) -> list[Problem]:
    """`count` held-out problems of all kinds, the same every time."""
    known = read_problems(HELD_OUT)
    return random.Random(0).sample(known, min(count, len(known)))


def scores(folder: Path, asked: list[Problem], threads: int) -> dict[str, float]:
    """Scheme → tiny-r1's share of right answers; empty when nothing is asked."""
    found: dict[str, float] = {}
    for scheme in SCHEMES if asked else ():
        console.print(f"asking tiny-r1 in {scheme}")
        path = folder / f"tiny-r1-{scheme}"
        convert(CHECKPOINT, path, scheme)
        found[scheme] = evaluate(deepmnn.load(path, "cpu", threads), asked).score
    return found


def table(
    paths: Mapping[str, Path], columns: Mapping[str, Column], right: Mapping[str, float]
) -> list[list[str]]:
    """The head, and a row for each scheme."""
    head = ["", "size, GB", "memory (own), GB", *(f"{case.name}, tok/s" for case in CASES)]
    rows = [[*head, "right answers"] if right else head]
    first = next(iter(paths))
    for name, path in paths.items():
        speeds = [speed_cell(columns[name], columns[first], case) for case in CASES]
        size = f"{nbytes(files_of(path)) / 1e9:.2f}"
        row = [name, size, memory_cell(columns[name]), *speeds]
        if right:
            lost = f" ({100 * (right[name] - right[first]):+.1f})" if name != first else ""
            row.append(f"{right[name]:.1%}{lost}")
        rows.append(row)
    return rows


def build(shape: Shape, folder: Path) -> dict[str, Path]:
    """The model in every scheme."""
    paths = {}
    for scheme in SCHEMES:
        console.print(f"building {scheme}")
        path = paths[scheme] = folder / scheme
        convert(shape.path, path, scheme, random_weights=True)
    return paths


def main(
    shape: Annotated[str, typer.Argument(help="A name or a config.json.")] = "r1-distill-qwen-1.5b",
    layers: Annotated[int | None, typer.Option(help="Layers to keep; default: all.")] = None,
    asked: Annotated[
        int, typer.Option("--problems", min=0, help="Problems for tiny-r1; 0: none.")
    ] = 900,
    threads: Annotated[int, typer.Option(min=1, help="Worker threads.")] = 2,
    repeat: Annotated[int, typer.Option(min=1, help="Rounds.")] = 3,
    work: Annotated[Path, typer.Option(help="Directory of the models.")] = Path("build/schemes"),
    timeout: Annotated[float, typer.Option(help="Most seconds for one scheme and round.")] = 1800,
) -> None:
    """Measure fp32, bf16, w8 and w4 of one shape; writes Markdown to standard output."""
    with errors_end(console), workplace(work, "schemes") as folder:
        wanted = shortened(find_shapes(shape)[0], layers, folder)
        right = scores(folder, problems(asked), threads)
        paths = build(wanted, folder)
        vocab_size = wanted.config["vocab_size"]
        columns = measure(paths, CASES, vocab_size, threads, repeat, timeout, console.print)
        rows = table(paths, columns, right)
        lines = [*page("Formats of weights", wanted, threads, repeat, rows), NOTES]
        sys.stdout.write("\n".join(lines))


if __name__ == "__main__":
    typer.run(main)
