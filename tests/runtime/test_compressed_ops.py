"""The plain ops of DeepSeek-V4 on the engine against the numpy reference."""

from typing import Any

import pytest
from one_op import VOCAB, check, one_op, rotary

from deepmnn import _core
from deepmnn.graph.builder import GraphBuilder
from deepmnn.graph.weights import Tensor
from storage import NAMES

ISAS = _core.isas()
SCHEDULES = ["prefill", "one by one", "chunks", "ragged"]


def pair(b: GraphBuilder, x: str, name: str, width: int) -> str:
    """Some numbers of every token."""
    return b.linear(x, name, width)


POINTWISE: dict[str, Any] = {
    "sqrt_softplus": lambda b, x: b.sqrt_softplus(b.scale(x, "s", 9.0), "y"),
    "clamp above": lambda b, x: b.clamp(x, "y", 0.4, two_sided=False),
    "clamp": lambda b, x: b.clamp(x, "y", 0.4, two_sided=True),
    "add_constant": lambda b, x: b.add_constant(x, "y", 0.3),
    "gain": lambda b, x: b.gain(x, "y", Tensor("w", (b.value(x).width,))),
    "gain of one number": lambda b, x: b.gain(x, "y", Tensor("w", (1,))),
    "norm": lambda b, x: b.norm(x, "y", 0.01),
}


@pytest.mark.parametrize("op", POINTWISE)
@pytest.mark.parametrize("width", [1, 3, 16, 33, 130])
def test_pointwise(op: str, width: int) -> None:
    check(one_op(POINTWISE[op], width), threads=2)


@pytest.mark.parametrize("heads", [1, 3])
def test_norm_of_heads(heads: int) -> None:
    check(one_op(lambda b, x: b.norm(x, "y", 0.01, heads), heads * 21))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("rows", "cols", "d"), [(1, 4, 9), (4, 1, 33), (4, 4, 16), (3, 5, 1)])
def test_mix(rows: int, cols: int, d: int, transposed: bool) -> None:
    def build(b: GraphBuilder, x: str) -> str:
        a = pair(b, x, "a", rows * cols)
        return b.mix(a, pair(b, x, "x", cols * d), "y", rows, transposed)

    check(one_op(build, 20), threads=2)


@pytest.mark.parametrize("size", [1, 2, 4, 7])
@pytest.mark.parametrize("iterations", [1, 2, 20])
def test_sinkhorn(size: int, iterations: int) -> None:
    check(one_op(lambda b, x: b.sinkhorn(x, "y", iterations, 1e-3), size * size), threads=2)


@pytest.mark.parametrize("k", [1, 3])
def test_lookup_of_experts(k: int) -> None:
    def build(b: GraphBuilder, x: str) -> str:
        scores = b.linear(x, "scores", 9)
        return b.gather(scores, b.lookup(b.ids, "gate.tid2eid", VOCAB, k, 9), "y")

    check(one_op(build, 20))


@pytest.mark.parametrize("dtype", NAMES)
@pytest.mark.parametrize(
    ("groups", "cols", "out"), [(1, 40, 5), (3, 70, 11), (2, 32, 16), (4, 9, 33)]
)
def test_grouped_linear(dtype: str, groups: int, cols: int, out: int) -> None:
    def build(b: GraphBuilder, x: str) -> str:
        return b.grouped_linear(x, "y", groups, out)

    check(one_op(build, groups * cols, dtype), threads=2)


def entries_of(b: GraphBuilder, x: str, d: int, ratio: int, overlapping: bool) -> str:
    """Compressed entries [context, d], rotated by their own positions."""
    width = d * (2 if overlapping else 1)
    kv = b.cache(b.linear(x, "kv", width), "kv.rows")
    gate = b.cache(b.linear(x, "gate", width), "gate.rows")
    entries, positions = b.compress(kv, gate, "bias", ratio, overlapping)
    attrs = rotary(d)
    return b.rope(entries, "rope", 1, *attrs.values(), positions=positions)  # type: ignore[arg-type]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("ratio", "overlapping"), [(1, True), (3, True), (4, False), (40, False)])
def test_attention_over_a_window_and_entries(
    schedule: str, isa: str, ratio: int, overlapping: bool
) -> None:
    def build(b: GraphBuilder, x: str) -> str:
        heads, d = 3, 14
        q, kv = b.linear(x, "q", heads * d), b.cache(b.linear(x, "k", d), "window")
        keys = [kv, entries_of(b, x, d, ratio, overlapping)]
        return b.window_attention(q, keys, "y", "sinks", heads, d**-0.5, 4, ratio)

    check(one_op(build, 33), schedule, threads=2, isa=isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("window", [1, 5, 100])
@pytest.mark.parametrize("heads", [1, 11, 40])
def test_attention_over_a_window(schedule: str, isa: str, window: int, heads: int) -> None:
    def build(b: GraphBuilder, x: str) -> str:
        d = 17
        q, kv = b.linear(x, "q", heads * d), b.cache(b.linear(x, "k", d), "window")
        return b.window_attention(q, [kv], "y", "sinks", heads, d**-0.5, window)

    check(one_op(build, 33), schedule, threads=2, isa=isa)
