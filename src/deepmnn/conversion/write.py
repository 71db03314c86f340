"""Carries out a plan: an artifact, one weight at a time."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from deepmnn import _core, formats
from deepmnn.artifact.manifest import DRAFT, GRAPH, PROGRAM, RECIPE
from deepmnn.artifact.writer import ArtifactWriter
from deepmnn.conversion.plan import Plan
from deepmnn.conversion.report.recorder import Recorder
from deepmnn.formats import BLOCK_ROWS, F32, U8
from deepmnn.graph.ir import Weight
from deepmnn.graph.serialize import to_json
from deepmnn.graph.weights import Concat, Interleave, Tensor
from deepmnn.quant.random_bytes import draw
from deepmnn.quant.recipe_file import to_yaml
from deepmnn.quant.store import store, store_codes
from deepmnn.source.random import RandomSource
from deepmnn.source.source import Source

Progress = Callable[[int, int, str], None]
"""Called after each weight with (bytes written, bytes in all, the weight's name)."""


def write(
    plan: Plan,
    out: str | os.PathLike[str],
    overwrite: bool = False,
    progress: Progress | None = None,
    report: Recorder | None = None,
) -> Path:
    """Writes the artifact that was planned, with a report when there is one; returns its path.

    Needs memory for one weight at a time. Written to a temporary directory and renamed when
    complete: interrupted at any moment it leaves nothing that loads.

    Raises CheckpointError (numbers that cannot be read, or are none) or StorageError.
    """
    with ArtifactWriter(out, overwrite, plan.source.paths) as writer:
        writer.expect(plan.shards)
        program = plan.program(plan.locations)  # refuses before the work
        writer.add_file(GRAPH, to_json(plan.graph).encode())
        if plan.draft is not None:
            writer.add_file(DRAFT, to_json(plan.draft).encode())
        writer.add_file(RECIPE, to_yaml(plan.recipe).encode())
        for name, data in plan.source.side_files().items():
            writer.add_file(name, data)
        total, done, threads = plan.nbytes, 0, _core.available_cores()
        for weight in plan.weights:
            numbers, stored = _stored(weight, plan.source, threads)
            writer.write_weight(weight.name, stored, _block_nbytes(weight))
            if report is not None:
                report.stored(weight, numbers if plan.source is report.source else None, stored)
            done += stored.nbytes
            if progress is not None:
                progress(done, total, weight.name)
        if writer.locations != plan.locations:
            program = plan.program(writer.locations)
        writer.add_file(PROGRAM, program)
        for name, data in report.files(plan).items() if report is not None else ():
            writer.add_file(name, data)
        writer.commit(
            {
                "model_type": plan.model_type,
                "quant": plan.recipe.name,
                "recipe": plan.recipe.to_json(),
                "optimize_level": plan.optimize_level,
                "nodes_level_0": plan.nodes_level_0,
                "nodes": plan.nodes,
                **({"changes": list(plan.source.changes)} if plan.source.changes else {}),
                "passes": [asdict(result) for result in plan.passes],
            }
        )
    return Path(out)


def _stored(weight: Weight, source: Source, threads: int) -> tuple[F32 | None, U8]:
    """A weight's bytes: drawn, or of the codes that the source has, or else of rounded numbers.

    Those numbers come first, where they were read.
    """
    format = formats.named(weight.format)
    if format.is_quantized or format.is_kept:
        if isinstance(source, RandomSource) and _is_drawable(weight):
            return None, draw(weight, source.seed)
        codes = weight.expr.codes(source)
        if codes and codes.format == weight.format:
            return None, store_codes(weight, codes, threads)
    numbers = weight.expr.read(source)
    return numbers, store(weight, numbers, threads)


def _block_nbytes(weight: Weight) -> int:
    """Bytes of 16 rows of a matrix, 0 of a vector."""
    format = formats.named(weight.format)
    return format.block_nbytes(weight.matrix_shape[1]) if format.is_matrix else 0


def _is_drawable(weight: Weight) -> bool:
    """Whether random stored bytes are as good as stored random numbers.

    Not where zero rows inside the matrix matter.
    """
    expr = weight.expr
    if isinstance(expr, Interleave):
        return expr.parts[0].shape[0] % BLOCK_ROWS == 0
    return isinstance(expr, Tensor | Concat)
