"""deepmnn info: what is in a model, converted or not."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.text import Text
from typer import Argument, Option

from deepmnn.cli.console import count, err, file_size, out, table
from deepmnn.errors import RequestError

if TYPE_CHECKING:
    from deepmnn.artifact.reader import Artifact


def info(
    path: Annotated[
        Path, Argument(help="A converted model, a checkpoint directory or a config.json.")
    ],
    program: Annotated[bool, Option("--program", help="Print the lowered program.")] = False,
    verify: Annotated[bool, Option("--verify", help="Check every checksum.")] = False,
) -> None:
    """Describe a model: size, graph, memory."""
    from deepmnn.artifact.manifest import MANIFEST
    from deepmnn.artifact.reader import Artifact

    if (path / MANIFEST).is_file():
        artifact = Artifact.open(path, verify=True if verify else None)
        if program:
            _print_program(path)
            return
        _print_artifact(artifact)
        if verify:
            err.print("[green]every checksum is right[/]")
        return
    if program or verify:
        raise RequestError(
            f"{path} is not a converted model", f"a directory with {MANIFEST}", "Convert it first."
        )
    _print_config(path)


def _print_program(path: Path) -> None:
    from deepmnn.artifact.manifest import PROGRAM
    from deepmnn.backends.cpu.program import format_program, read_program

    text = format_program(read_program((path / PROGRAM).read_bytes()))
    out.print(text, markup=False, soft_wrap=True)


def _print_artifact(artifact: Artifact) -> None:
    graph, manifest = artifact.graph(), artifact.manifest
    _print_head(artifact.config)
    out.print(
        f"  converted       {manifest['quant']}, optimize level {manifest['optimize_level']}, "
        f"{manifest['nodes_level_0']} -> {manifest['nodes']} nodes, "
        f"{len(manifest['shards'])} weight files"
    )
    nbytes: Counter[str] = Counter()
    numbers: Counter[str] = Counter()
    for weight in graph.weights.values():
        nbytes[weight.format] += weight.nbytes
        numbers[weight.format] += math.prod(weight.shape)
    made = table("weights", "stored as", "numbers", "bytes")
    for dtype, size in nbytes.most_common():
        made.add_row(dtype, count(numbers[dtype]), file_size(size))
    made.add_row("all", count(numbers.total()), file_size(nbytes.total()))
    out.print(made)
    _print_levels(artifact.config)


def _print_config(path: Path) -> None:
    from deepmnn.source.checkpoint import read_config

    config = read_config(path)
    _print_head(config)
    _print_levels(config)


def _print_head(config: dict[str, Any]) -> None:
    from deepmnn.models import build

    graph = build(config)
    unique = {weight.expr: weight for weight in graph.weights.values()}
    parameters = sum(math.prod(weight.shape) for weight in unique.values())
    width = sum(graph.caches.values())
    named = config.get("architectures")
    out.print(Text(str(named[0] if isinstance(named, list) and named else graph.name), "bold"))
    out.print(f"  model type      {config['model_type']}")
    out.print(f"  parameters      {count(parameters)}")
    out.print(f"  context length  {config.get('max_position_embeddings')} tokens")
    out.print(f"  KV cache        {file_size(4 * width)} per token (f32), half of it in bf16")


def _print_levels(config: dict[str, Any]) -> None:
    from deepmnn.measure.nodes import REPORT_TOKENS, node_report, nodes_saved

    levels = node_report(config)
    ops = sorted({op for level in levels for op in level.by_op})
    made = table("nodes", "op", *(f"level {level.level}" for level in levels))
    for op in ops:
        made.add_row(op, *(str(level.by_op.get(op, "")) for level in levels))
    made.add_section()
    made.add_row("all", *(str(level.nodes) for level in levels))
    out.print(made)
    out.print(f"{nodes_saved(levels):.1%} fewer nodes at level {levels[-1].level}")
    memory = table(f"peak activations, {REPORT_TOKENS} tokens", "level", "no plan", "planned")
    for level in levels:
        sizes = (level.activation_nbytes, level.planned_nbytes)
        memory.add_row(str(level.level), *map(file_size, sizes))
    out.print(memory)
