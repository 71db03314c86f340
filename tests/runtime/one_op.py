"""Graphs around one op: an embedding feeds it, a linear head reads it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from program_dir import cpu_of, random_weights, stored

from deepmnn.backends.reference import ReferenceBackend
from deepmnn.formats import BLOCK_ROWS, named
from deepmnn.graph.builder import GraphBuilder
from deepmnn.graph.ir import Graph
from parity import SCHEDULES, prompts_for, relative_error, run_schedule

VOCAB = 41
Build = Callable[[GraphBuilder, str], str]
"""(builder, x) → the value to look at."""

EXACT = 2e-5
"""Relative error allowed where only the order of float32 sums differs."""

QUANTIZED = 1e-1
"""Where activations are int8 and the oracle's are not; kernels are tested exactly."""

INT8_CACHE = 5e-3
"""Where a last bit put a number of a row or a query into the next code. Else 2e-4: weights of
values have 15 bits in the core, but not in the oracle."""


def one_op(build: Build, width: int, format: str = "f32") -> Graph:
    """ids → embedding [tokens, width] → build → head → logits; all but vectors stored as format."""
    b = GraphBuilder("one op", prefix="")
    x = b.embedding(b.ids, "embed", VOCAB, width)
    y = b.select_rows(build(b, x), "wanted")
    b.output(b.linear(y, "head", VOCAB), "logits")
    for name, weight in b.graph.weights.items():
        if weight.format != "vector" and name not in ("embed.weight", "head.weight"):
            weight.format = format
    return b.graph


def check(
    graph: Graph,
    schedule: str = "ragged",
    cache_dtype: str = "f32",
    seed: int = 0,
    tolerance: float | None = None,
    **options: object,
) -> float:
    """Asserts that the engine gives the reference's logits; returns the relative error."""
    weights = random_weights(graph, seed)
    quantized = any(named(weight.format).is_quantized for weight in graph.weights.values())
    form = "absorbed" if options.get("mla_form") == "absorbed" else "expanded"
    oracle = ReferenceBackend(graph, stored(graph, weights.__getitem__), form)
    engine = cpu_of(graph, weights.__getitem__, **options)
    lengths, steps = SCHEDULES[schedule]
    prompts = prompts_for(lengths, VOCAB, seed)
    want = run_schedule(oracle, prompts, steps, cache_dtype=cache_dtype)
    got = run_schedule(engine, prompts, steps, cache_dtype=cache_dtype)
    error = max(relative_error(g, w) for g, w in zip(got, want, strict=True))
    if tolerance is None:
        tolerance = QUANTIZED if quantized else EXACT
    assert error <= tolerance, f"{error:.2e} of the largest logit"
    return error


def add(
    b: GraphBuilder,
    op: str,
    inputs: list[str],
    widths: list[int],
    weights: list[str],
    **attrs: object,
) -> tuple[str, ...]:
    """Any op by name, for those the builder does not write."""
    shapes = [(b.value(inputs[0]).shape[0], width) for width in widths]
    return b._add(op, op, inputs, shapes, weights, attrs=attrs)  # type: ignore[arg-type]


def rotary(dim: int, interleaved: bool = True) -> dict[str, object]:
    """The rotary attributes of a head of `dim`."""
    inv_freq = tuple(float(f) for f in 1e4 ** (-np.arange(0, dim, 2) / dim))
    return {"inv_freq": inv_freq, "rope_scale": 1.25, "interleaved": int(interleaved)}


def ceil_rows(rows: int) -> int:
    """Rows of whole blocks."""
    return -(-rows // BLOCK_ROWS) * BLOCK_ROWS
