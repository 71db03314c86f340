"""Latent attention to all rows and to those that an indexer chooses: one op's time by context.

    python -m bench.sparse_attention [--contexts 2048,8192] [--tokens 1] [--form auto]

A model of one layer has DeepSeek-V3.2's attention and random weights, and little else; its cache is
filled with random rows. A step runs the new tokens after so many cached ones, and the core's own
clocks say what the attention took. `dense` is the same layer of DeepSeek-V3.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import typer

from deepmnn.artifact.reader import Artifact
from deepmnn.backends.base import Batch
from deepmnn.backends.cpu.backend import CpuBackend
from deepmnn.backends.cpu.counts import Counts
from deepmnn.conversion.convert import convert
from deepmnn.graph.call import Call
from deepmnn.graph.signatures import SIGNATURES
from deepmnn.graph.workload import read_nbytes
from deepmnn.measure.benchmark import limits

BLOCK = 32
KV_DTYPES = ("f32", "bf16", "int8")
CONFIG: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 1,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 1 << 18,
}
"""What attention does not read; the rest is DeepSeek-V3.2's own, which are the defaults."""


@dataclass(frozen=True)
class Op:
    """One model, and where its attention is."""

    backend: CpuBackend
    zone: int
    weights_nbytes: int
    scored_width: int
    most: int
    """Rows that a token attends to; 0: all."""

    @staticmethod
    def of(model_type: str, quant: str, folder: Path, threads: int, form: str) -> Op:
        """Converts the model and loads it."""
        config = folder / f"{model_type}.json"
        config.write_text(json.dumps({"model_type": model_type, **CONFIG}))
        path = folder / model_type
        convert(config, path, quant, random_weights=True, report=False)
        backend, graph = CpuBackend(path, threads, mla_form=form), Artifact.open(path).graph()
        (node,) = (node for node in graph.nodes if node.op.endswith("mla_attention"))
        ops = [each["op"] for each in backend.model.instructions]
        call = Call.of(graph, node)
        costs = SIGNATURES[node.op].cost(call)
        nbytes = read_nbytes(graph, node, call)["in_order"]
        return Op(backend, ops.index(node.op), nbytes, costs.scored_width, costs.most_context)

    def row_nbytes(self, dtype: str) -> tuple[float, float]:
        """Bytes of a cached row that attention reads, and of one that the indexer scores."""
        each = {"f32": 4.0, "bf16": 2.0, "int8": 1 + 4 / 64}[dtype]
        return (
            (self.backend.cache_width - self.scored_width) * each,
            self.scored_width * each,
        )

    def read_nbytes(self, context: int, dtype: str) -> float:
        """Bytes that one token reads."""
        row, scored = self.row_nbytes(dtype)
        attended = min(context, self.most) if self.most else context
        return (
            self.weights_nbytes + attended * row + (scored * context if attended < context else 0)
        )

    def seconds(self, context: int, tokens: int, dtype: str, rounds: int) -> float:
        """The median of the op's times in steps that end at this context."""
        blocks = -(-context // BLOCK)
        cache: Any = self.backend.new_cache(blocks, BLOCK, dtype)
        for block, rows in enumerate(self._blocks(cache.block_nbytes, dtype, blocks)):
            cache.write_block(block, rows)
        positions = np.arange(context - tokens, context, dtype=np.int32)
        batch = Batch(
            ids=np.random.default_rng(0).integers(0, 64, tokens).astype(np.int32),
            positions=positions,
            sequence_starts=np.array([0, tokens], np.int32),
            context_lengths=np.array([context], np.int32),
            block_tables=np.arange(blocks, dtype=np.int32)[None],
            logit_rows=np.array([tokens - 1], np.int32),
        )
        times = []
        self.backend.step(cache, batch)
        for _ in range(rounds):
            self.backend.model.start_profile()
            self.backend.step(cache, batch)
            times.append(float(Counts.take(self.backend.model).seconds[self.zone]))
            self.backend.model.stop_profile()
        return median(times)

    def _blocks(self, nbytes: int, dtype: str, blocks: int) -> Iterator[np.ndarray[Any, Any]]:
        """Random rows of a cache, a block at a time."""
        rng = np.random.default_rng(1)
        widths = list(self.backend.model.caches.values())
        for _ in range(blocks):
            parts = []
            for width in widths:
                x = rng.standard_normal((BLOCK, width), np.float32)
                if dtype == "bf16":
                    x = (x.view(np.uint32) >> 16).astype(np.uint16)
                elif dtype == "int8":
                    scales = np.full((BLOCK, -(-width // 64)), 1 / 40, np.float32)
                    codes = np.rint(np.clip(x * 40, -127, 127)).astype(np.int8)
                    x = np.concatenate([codes.view(np.uint8), scales.view(np.uint8)], axis=1)
                parts.append(np.ascontiguousarray(x).reshape(-1).view(np.uint8))
            rows = np.concatenate(parts)
            assert rows.nbytes == nbytes
            yield rows


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
            times = [op.seconds(context, tokens, dtype, rounds) for op in (dense, sparse)]
            widths = ", ".join(f"{sum(op.row_nbytes(dtype)):.0f}" for op in (dense, sparse))
            line = (
                f"| {context} | {dtype} | {widths} | {times[0] * 1e3:.2f} | {times[1] * 1e3:.2f} "
            )
            line += f"| {times[0] / times[1]:.2f} |"
            if tokens == 1:
                shares = (
                    op.read_nbytes(context, dtype) / seconds / bandwidth
                    for op, seconds in zip((dense, sparse), times, strict=True)
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
        model = sparse.backend.model
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
