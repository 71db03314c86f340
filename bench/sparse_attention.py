"""Latent attention to all rows and to those that an indexer chooses: one op's time by context.

    python -m bench.sparse_attention [--contexts 2048,8192] [--tokens 1] [--form auto]

A model of one layer has DeepSeek-V3.2's attention and random weights, and little else; its cache is
filled with random rows. A step runs the new tokens after so many cached ones, and the core's own
clocks say what the attention took. `dense` is the same layer of DeepSeek-V3.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from bench.cached_op import KV_DTYPES, CachedOp

from deepmnn.graph.caches import CacheEntry, row_nbytes
from deepmnn.measure.benchmark import limits


@dataclass(frozen=True)
class Op:
    """One model's attention, and what a token reads of its cache."""

    op: CachedOp

    @staticmethod
    def of(model_type: str, quant: str, folder: Path, threads: int, form: str) -> Op:
        """Converts the model and loads it: its own sizes, which are the config's defaults."""
        config = {"model_type": model_type, "first_k_dense_replace": 1}
        return Op(CachedOp.of(model_type, config, folder, quant, threads, form))

    def read_nbytes(self, context: int, dtype: str) -> float:
        """Bytes that one token reads."""
        most, width = self.op.cost.most_context, self.op.cost.scored_width
        scored = row_nbytes(CacheEntry(width))[dtype] if width else 0
        row = self.op.kept_nbytes(dtype) - scored
        attended = min(context, most) if most else context
        chosen_of = context if attended < context else 0
        return self.op.weights_nbytes + attended * row + chosen_of * scored


def table(
    dense: Op, sparse: Op, contexts: Sequence[int], tokens: int, rounds: int, bandwidth: float
) -> Iterator[str]:
    """The lines of the page."""
    yield (
        "| context | KV cache | bytes a token, dense, sparse | dense, ms | sparse, ms | ratio |"
        + (" bandwidth, dense, sparse |" if tokens == 1 else "")
    )
    yield "|--:|---|--:|--:|--:|--:|" + ("--:|" if tokens == 1 else "")
    for context in contexts:
        for dtype in KV_DTYPES:
            times = [each.op.seconds(context, tokens, dtype, rounds) for each in (dense, sparse)]
            widths = ", ".join(f"{each.op.kept_nbytes(dtype):.0f}" for each in (dense, sparse))
            line = (
                f"| {context} | {dtype} | {widths} | {times[0] * 1e3:.2f} | {times[1] * 1e3:.2f} "
            )
            line += f"| {times[0] / times[1]:.2f} |"
            if tokens == 1:
                shares = (
                    each.read_nbytes(context, dtype) / seconds / bandwidth
                    for each, seconds in zip((dense, sparse), times, strict=True)
                )
                line += " " + ", ".join(f"{share:.0%}" for share in shares) + " |"
            yield line


def main(
    contexts: Annotated[str, typer.Option(help="Rows that the last token sees.")] = (
        "2048,8192,32768,131072"
    ),
    tokens: Annotated[int, typer.Option(help="New tokens of a step.")] = 1,
    form: Annotated[str, typer.Option(help="Of latent attention.")] = "auto",
    quant: Annotated[str, typer.Option(help="Of the up-projections.")] = "w8",
    threads: Annotated[int, typer.Option(help="0: one for each core.")] = 0,
    rounds: Annotated[int, typer.Option(help="Whose median counts.")] = 5,
) -> None:
    """Prints the table."""
    with tempfile.TemporaryDirectory() as folder:
        dense, sparse = (
            Op.of(model_type, quant, Path(folder), threads, form)
            for model_type in ("deepseek_v3", "deepseek_v32")
        )
        model = sparse.op.backend.model
        machine = limits(model.threads, model.isa)
        typer.echo(
            f"{machine.threads} threads, {machine.isa}, {machine.read_bandwidth / 1e9:.1f} GB/s, "
            f"{machine.f32_macs / 1e9:.0f} GMAC/s in f32, {machine.int8_macs / 1e9:.0f} in int8; "
            f"{tokens} new tokens, {quant}, {form}\n"
        )
        sizes = [int(part) for part in contexts.split(",")]
        for line in table(dense, sparse, sizes, tokens, rounds, machine.read_bandwidth):
            typer.echo(line)


if __name__ == "__main__":
    typer.run(main)
