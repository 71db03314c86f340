"""What graph optimisation brings: nodes, memory and speed at optimisation levels 0 to 3.

    python -m bench.levels [SHAPE] [--layers N] > levels.md

SHAPE is a name of bench/configs or the path of a config.json; weights are random. The models are
kept in --work while it runs. With fewer layers level 0 fits where memory or time is short.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from bench.peers.models import Shape, find_shapes
from bench.peers.results import Column
from bench.variants import (
    CASES,
    DECODE,
    PREFILL,
    errors_end,
    measure,
    memory_cell,
    page,
    shortened,
    speed_cell,
    workplace,
)
from rich.console import Console

from deepmnn import models
from deepmnn.artifact.reader import Artifact
from deepmnn.conversion.convert import convert
from deepmnn.conversion.plan import MEMORY_REUSE_LEVEL
from deepmnn.graph.levels import MAX_LEVEL, optimize
from deepmnn.graph.passes.memory_plan import plan_memory

LEVELS = range(MAX_LEVEL + 1)
NOTES = """
Level 1 cleans up, level 2 fuses operators, level 3 computes latent attention in its absorbed form
and reuses memory. Nodes are counted in the whole graph and in its last layer. Activations are the
memory that a step of 512 tokens needs for them. Memory is the peak of the process, mapped weights
included; in brackets, the part that is its own. Speeds are in tokens per second, the median of the
rounds; in brackets, their ratio to level 0's.
"""

console = Console(stderr=True)


def last_layer_nodes(config: Mapping[str, Any], level: int) -> int:
    """Nodes that the last layer adds to the graph; 0 for a model of one layer."""
    layers = config["num_hidden_layers"]
    if layers == 1:
        return 0
    whole, shorter = (
        len(optimize(models.build({**config, "num_hidden_layers": n}), level)[0].nodes)
        for n in (layers, layers - 1)
    )
    return whole - shorter


def activation_nbytes(path: Path, tokens: int) -> int:
    """Memory for the activations of a step that reads one prompt of `tokens` tokens."""
    artifact = Artifact.open(path)
    reuse = artifact.manifest["optimize_level"] >= MEMORY_REUSE_LEVEL
    return plan_memory(artifact.graph(), reuse).peak_nbytes(tokens, tokens, 1)


def table(
    config: Mapping[str, Any], paths: Mapping[str, Path], columns: Mapping[str, Column]
) -> list[list[str]]:
    """The head, and a row for each level."""
    rows = [["level", "nodes", "of a layer", "activations, MB", "memory (own), GB"]]
    rows[0] += [f"{case.name}, tok/s" for case in CASES]
    naive = 0
    for level, (name, path) in enumerate(paths.items()):
        nodes = Artifact.open(path).manifest["nodes"]
        naive = naive or nodes
        fewer = f" (−{1 - nodes / naive:.0%})" if nodes < naive else ""
        made, first = columns[name], columns[next(iter(paths))]
        speeds = [speed_cell(made, first, case) for case in (PREFILL, DECODE)]
        activations = f"{activation_nbytes(path, PREFILL.tokens) / 1e6:.1f}"
        layer = str(last_layer_nodes(config, level) or "")
        rows.append([str(level), f"{nodes}{fewer}", layer, activations, memory_cell(made), *speeds])
    return rows


def passes(path: Path) -> Iterator[str]:
    """One line for each pass of the highest level: what it did."""
    for record in Artifact.open(path).manifest["passes"]:
        before, after = record["nodes_before"], record["nodes_after"]
        yield f"- {record['name']}: {record['rewrites']} rewrites, {before} → {after} nodes"


def build(shape: Shape, quant: str, folder: Path) -> dict[str, Path]:
    """The model at every level."""
    paths = {}
    for level in LEVELS:
        console.print(f"building level {level}")
        path = paths[f"level {level}"] = folder / f"level-{level}"
        convert(shape.path, path, quant, level, random_weights=True)
    return paths


def main(
    shape: Annotated[str, typer.Argument(help="A name or a config.json.")] = "r1-distill-qwen-1.5b",
    layers: Annotated[int | None, typer.Option(help="Layers to keep; default: all.")] = None,
    quant: Annotated[str, typer.Option(help="Format of the weights.")] = "w4",
    threads: Annotated[int, typer.Option(min=1, help="Worker threads.")] = 2,
    repeat: Annotated[int, typer.Option(min=1, help="Rounds.")] = 3,
    work: Annotated[Path, typer.Option(help="Directory of the models.")] = Path("build/levels"),
    timeout: Annotated[float, typer.Option(help="Most seconds for one level and round.")] = 1800,
) -> None:
    """Measure optimisation levels 0 to 3 of one shape; writes Markdown to standard output."""
    with errors_end(console), workplace(work, "levels") as folder:
        wanted = shortened(find_shapes(shape)[0], layers, folder)
        paths = build(wanted, quant, folder)
        vocab_size = wanted.config["vocab_size"]
        columns = measure(paths, CASES, vocab_size, threads, repeat, timeout, console.print)
        title = f"Optimisation levels, {quant}"
        rows: Sequence[Sequence[str]] = table(wanted.config, paths, columns)
        lines = [
            *page(title, wanted, threads, repeat, rows),
            NOTES,
            *passes(list(paths.values())[-1]),
        ]
        sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    typer.run(main)
