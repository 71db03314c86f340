"""DeepSeek-V4's three kinds of attention and those of older models: one op's time by context.

    python -m bench.compressed_attention [--contexts 2048,8192] [--kinds sliding,sparse]

Models of one layer have the sizes of DeepSeek-V4-Flash and random weights; their caches are filled
with random rows. A step runs one token after so many, and the core's own clocks say what attention
took. `all rows` is attention of the same heads to every row (their keys and values are two rows of
512); `latent` is DeepSeek-V3's layer, whose op has the up-projections in it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from bench.cached_op import KV_DTYPES, CachedOp

from deepmnn.graph.caches import row_nbytes
from deepmnn.measure.benchmark import limits

_V4 = {
    "model_type": "deepseek_v4",
    "mlp_layer_types": ["moe"],
    "moe_intermediate_size": 64,
    "n_routed_experts": 8,
    "num_nextn_predict_layers": 0,
}
_ALL_ROWS = {
    "model_type": "llama",
    "num_attention_heads": 64,
    "num_key_value_heads": 1,
    "head_dim": 512,
}
KINDS: dict[str, dict[str, Any]] = {
    "all rows": _ALL_ROWS,
    "latent": {"model_type": "deepseek_v3", "first_k_dense_replace": 1},
    "sliding": {**_V4, "layer_types": ["sliding_attention"]},
    "heavily": {**_V4, "layer_types": ["heavily_compressed_attention"]},
    "sparse": {**_V4, "layer_types": ["compressed_sparse_attention"]},
}
TOP_K = 512
"""Entries that a token attends to where an indexer chooses; the config's default."""


def read_nbytes(op: CachedOp, context: int, dtype: str) -> float:
    """Bytes that a token reads: of its window, of entries, and of keys that choose among them.

    Without the rows that entries are made of.
    """
    total = float(op.weights_nbytes)
    scored = len([entry for entry in op.entries if entry.ratio > 1]) > 1
    kept = [entry for entry in op.entries if not entry.window]
    for index, entry in enumerate(kept):
        rows = context // entry.ratio
        if scored:
            is_key, chooses = index == 1, rows > TOP_K
            rows = (rows if chooses else 0) if is_key else min(rows, TOP_K)
        total += rows * row_nbytes(entry)[dtype]
    recent = (entry for entry in op.entries if entry.window and not entry.exact)
    return total + sum(min(context, each.window) * row_nbytes(each)[dtype] for each in recent)


def table(
    ops: dict[str, CachedOp], contexts: Sequence[int], rounds: int, bandwidth: float
) -> Iterator[str]:
    """The lines of the page: of each context and KV cache, first the op that others are beside."""
    yield "| context | KV cache | attention | ms | ratio | bytes a token | recent, KiB | of reads |"
    yield "|--:|---|---|--:|--:|--:|--:|--:|"
    for context in contexts:
        for dtype in KV_DTYPES:
            first = 0.0
            for kind, op in ops.items():
                seconds = op.seconds(context, 1, dtype, rounds)
                first = first or seconds
                share = read_nbytes(op, context, dtype) / seconds / bandwidth
                yield (
                    f"| {context:,} | {dtype} | {kind} | {seconds * 1e3:.2f} "
                    f"| {first / seconds:.1f} | {op.kept_nbytes(dtype):.0f} "
                    f"| {op.recent_nbytes(dtype) / 1024:.0f} | {share:.0%} |"
                )


def main(
    contexts: Annotated[str, typer.Option(help="Rows that the token sees.")] = (
        "2048,8192,32768,131072"
    ),
    kinds: Annotated[str, typer.Option(help="Of attention.")] = ",".join(KINDS),
    threads: Annotated[int, typer.Option(help="0: one for each core.")] = 0,
    rounds: Annotated[int, typer.Option(help="Whose median counts.")] = 5,
) -> None:
    """Prints the table; ratios are to the first kind."""
    with tempfile.TemporaryDirectory() as folder:
        ops = {
            kind: CachedOp.of(kind.replace(" ", "_"), KINDS[kind], Path(folder), threads=threads)
            for kind in kinds.split(",")
        }
        model = next(iter(ops.values())).backend.model
        machine = limits(model.threads, model.isa)
        typer.echo(
            f"{machine.threads} threads, {machine.isa}, {machine.read_bandwidth / 1e9:.1f} GB/s, "
            f"{machine.f32_macs / 1e9:.0f} GMAC/s in f32; w8\n"
        )
        sizes = [int(part) for part in contexts.split(",")]
        for line in table(ops, sizes, rounds, machine.read_bandwidth):
            typer.echo(line)


if __name__ == "__main__":
    typer.run(main)
