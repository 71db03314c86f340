"""The fused attentions over a window and entries, and hyper-connections, on the engine."""

import sys
from typing import Any

import numpy as np
import pytest
from one_op import INT8_CACHE, VOCAB, add, check, one_op, rotary
from program_dir import cpu_of, random_weights

from deepmnn import _core
from deepmnn.graph.builder import GraphBuilder
from deepmnn.graph.caches import CacheEntry
from parity import SCHEDULES, prompts_for, run_schedule

KINDS = ["sliding", "heavily_compressed", "compressed_sparse"]
HEADS, DIM, INDEX_HEADS, INDEX_DIM, ROPE = 5, 22, 7, 12, 6


def attention(
    kind: str,
    window: int = 4,
    ratio: int = 3,
    top_k: int = 2,
    index: tuple[int, int] = (INDEX_HEADS, INDEX_DIM),
) -> Any:
    """(builder, x) → one of the three, whose inputs are linears of x; index: heads, their size."""
    index_heads, index_dim = index
    sparse, sliding = kind == "compressed_sparse", kind == "sliding"

    def build(b: GraphBuilder, x: str) -> str:
        windows = 2 if sparse else 1
        widths = [HEADS * DIM, DIM]
        shapes = [(DIM,), (HEADS,)]
        attrs: dict[str, Any] = {"heads": HEADS, "head_dim": DIM, "qk_rope_head_dim": ROPE}
        attrs |= {"window": window, "scale": DIM**-0.5, "eps": 0.01, "cache": "window"}
        attrs |= rotary(ROPE)
        caches = {"window": CacheEntry(DIM, window=window)}
        for prefix, width in (("", DIM), ("index_", index_dim))[: 0 if sliding else windows]:
            if prefix:
                widths += [index_heads * index_dim, index_heads]
            widths += [windows * width] * 2
            shapes += [(ratio * windows * width,), (width,)]
            attrs |= {"ratio": ratio, f"{prefix}rows": f"{prefix}rows"}
            attrs[f"{prefix}entries"] = f"{prefix}entries"
            rows = CacheEntry(2 * windows * width, window=windows * ratio, exact=True)
            caches |= {f"{prefix}rows": rows, f"{prefix}entries": CacheEntry(width, ratio)}
        if sparse:
            attrs |= {"index_heads": index_heads, "index_dim": index_dim}
            attrs |= {"top_k": top_k, "index_scale": 0.2}
        b.graph.caches |= caches
        inputs = [b.linear(x, f"in.{i}", width) for i, width in enumerate(widths)]
        weights = [b.weight(f"w.{i}", shape, "vector") for i, shape in enumerate(shapes)]
        inputs.append(b.positions)
        return add(b, f"{kind}_attention", inputs, [HEADS * DIM], weights, **attrs)[0]

    return build


@pytest.mark.parametrize("isa", _core.isas())
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("window", "ratio"), [(4, 3), (1, 1), (40, 2), (7, 5)])
def test_float_caches(kind: str, schedule: str, isa: str, window: int, ratio: int) -> None:
    check(one_op(attention(kind, window, ratio), 33), schedule, threads=2, isa=isa)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_small_caches(kind: str, schedule: str, dtype: str) -> None:
    """What is chosen may hang on a last bit: every entry is."""
    graph = one_op(attention(kind, 4, 3, 100), 33)
    tolerance = INT8_CACHE if dtype == "int8" else None
    check(graph, schedule, dtype, threads=2, tolerance=tolerance)


@pytest.mark.parametrize("dtype", ["f32", "int8"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dim", "index_dim"), [(64, 64), (130, 134)])
def test_sizes_whose_cached_rows_are_rotated(
    kind: str, dim: int, index_dim: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups of columns are mixed before they are rounded to int8; every entry is chosen."""
    monkeypatch.setattr(sys.modules[__name__], "DIM", dim)
    graph = one_op(attention(kind, 4, 3, 100, (3, index_dim)), 33)
    check(graph, "ragged", dtype, threads=2, tolerance=INT8_CACHE if dtype == "int8" else None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["f32", "bf16", "int8"])
def test_a_token_depends_on_nothing_else_in_its_step(kind: str, dtype: str) -> None:
    """To the bit: alone or in chunks, in any batch, with any threads."""
    graph = one_op(attention(kind, 5, 2, 3), 33)
    weights = random_weights(graph)
    lengths, ragged = SCHEDULES["ragged"]
    prompts = prompts_for(lengths, VOCAB)
    runs = []
    for threads, steps in ((1, ragged), (3, ragged), (2, [tuple(lengths)])):
        engine = cpu_of(graph, weights.__getitem__, threads=threads)
        runs.append(run_schedule(engine, prompts, steps, cache_dtype=dtype))
    for run in runs[1:]:
        for got, want in zip(run, runs[0], strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("isa", _core.isas())
@pytest.mark.parametrize("dtype", ["f32", "bf16", "int8"])
def test_wide_indexers_score_few_tokens_at_a_time(dtype: str, isa: str) -> None:
    """To the bit as token by token: more tokens than pass keys together (ops/select_keys.cc)."""
    graph = one_op(attention("compressed_sparse", 5, 2, 3, (61, 134)), 33)
    weights = random_weights(graph)
    prompts = prompts_for([29], VOCAB)
    engine = cpu_of(graph, weights.__getitem__, threads=2, isa=isa)
    together, alone = (
        run_schedule(engine, prompts, steps, cache_dtype=dtype) for steps in ([(29,)], [(1,)] * 29)
    )
    np.testing.assert_array_equal(together[0], alone[0])


@pytest.mark.parametrize("isa", _core.isas())
@pytest.mark.parametrize(("streams", "width"), [(1, 9), (2, 16), (4, 33), (3, 70)])
def test_hyper_connections(streams: int, width: int, isa: str) -> None:
    def build(b: GraphBuilder, x: str) -> str:
        rows = streams * (2 + streams)
        weights = [b.weight("fn", (rows, streams * width), "router")]
        weights += [
            b.weight(f"w.{i}", (size,), "vector") for i, size in enumerate((3, rows, width))
        ]
        widths = [width, streams, streams * streams]
        attrs = {"streams": streams, "iterations": 5, "eps": 1e-3, "norm_eps": 0.01}
        y, post, comb = add(b, "hyper_in", [x], widths, weights, **attrs)
        inputs = [b.silu(y, "s"), post, comb, x]
        return add(b, "hyper_out", inputs, [streams * width], [], streams=streams)[0]

    check(one_op(build, streams * width), threads=2, isa=isa)


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid", "sqrtsoftplus"])
@pytest.mark.parametrize("normalize", [0, 1])
def test_hash_route(scoring: str, normalize: int) -> None:
    def build(b: GraphBuilder, x: str) -> str:
        table = b.weight("table", (VOCAB * 3,), "vector")
        inputs = [b.linear(x, "router", 9), b.ids]
        attrs = {"scoring": scoring, "top_k": 3, "experts": 9, "normalize": normalize}
        attrs |= {"eps": 1e-20, "factor": 1.5}
        chosen, weights = add(b, "hash_route", inputs, [3, 3], [table], **attrs)
        value = b.graph.values[chosen]
        b.graph.values[chosen] = type(value)(chosen, value.shape, "i32")
        return b.mul(b.gather(x, chosen, "at"), weights, "y")

    check(one_op(build, 20))
