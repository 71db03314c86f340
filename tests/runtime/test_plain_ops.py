"""Every plain op of docs/ops.md on the engine against the numpy reference."""

import pytest
from one_op import INT8_CACHE, check, one_op, rotary

from deepmnn import _core
from storage import NAMES

WIDTHS = [1, 3, 16, 17, 48, 63, 130, 300]


def split_concat(heads, sizes):
    def build(b, x):
        return b.concat(list(reversed(b.split(x, "split", sizes, heads))), "concat", heads)

    return build


def experts(k, per_choice_twice=True):
    def build(b, x):
        scores = b.softmax(b.linear(x, "router", 7), "scores")
        indices = b.top_k(scores, "indices", k)
        y = b.expert_linear(x, indices, "experts", "up", 7, 19, False)
        if per_choice_twice:
            y = b.expert_linear(y, indices, "experts", "down", 7, 23, True)
        return b.combine(y, b.gather(scores, indices, "weights"), "combine")

    return build


POINTWISE = {
    "silu": lambda b, x: b.silu(x, "y"),
    "sigmoid": lambda b, x: b.sigmoid(x, "y"),
    "softmax": lambda b, x: b.softmax(x, "y"),
    "add": lambda b, x: b.add(x, b.silu(x, "s"), "y"),
    "mul": lambda b, x: b.mul(x, b.silu(x, "s"), "y"),
    "bias_add": lambda b, x: b.bias_add(x, "y"),
    "scale": lambda b, x: b.scale(x, "y", 0.37),
    "normalize": lambda b, x: b.normalize(b.sigmoid(x, "s"), "y", 1e-3),
    "rms_norm": lambda b, x: b.rms_norm(x, "y", 0.01),
    "layer_norm": lambda b, x: b.layer_norm(x, "y", 0.01),
    "reshape": lambda b, x: b.reshape(x, "y", 1, b.value(x).width),
    "broadcast": lambda b, x: b.broadcast(x, "y", 3),
}


@pytest.mark.parametrize("op", POINTWISE)
@pytest.mark.parametrize("width", WIDTHS)
def test_pointwise(op, width):
    check(one_op(POINTWISE[op], width), threads=2)


@pytest.mark.parametrize("dtype", NAMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_linear(dtype, width):
    graph = one_op(lambda b, x: b.linear(x, "y", 37, bias=width % 2 == 0), width, dtype)
    check(graph, threads=2)


@pytest.mark.parametrize("dtype", NAMES)
def test_embedding_decodes_every_format(dtype):
    graph = one_op(lambda b, x: b.silu(x, "y"), 300)
    graph.weights["embed.weight"].format = dtype
    check(graph)


@pytest.mark.parametrize(("heads", "sizes"), [(1, (5,)), (1, (1, 2, 13)), (3, (4, 7)), (5, (1, 1))])
def test_split_and_concat(heads, sizes):
    check(one_op(split_concat(heads, sizes), heads * sum(sizes)))


@pytest.mark.parametrize("heads", [1, 3])
def test_rms_norm_of_heads(heads):
    check(one_op(lambda b, x: b.rms_norm(x, "y", 0.01, heads), heads * 21))


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize(("heads", "dim"), [(1, 2), (3, 6), (2, 34)])
def test_rope(interleaved, heads, dim):
    attrs = rotary(dim, interleaved)
    graph = one_op(lambda b, x: b.rope(x, "y", heads=heads, **attrs), heads * dim)
    check(graph, threads=3)


@pytest.mark.parametrize("schedule", ["prefill", "one by one", "chunks", "ragged"])
@pytest.mark.parametrize("cache_dtype", ["f32", "bf16", "int8"])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "v_dim"), [(1, 1, 3, 5), (6, 2, 17, 9), (4, 2, 64, 40)]
)
def test_attention_over_gathered_rows(schedule, cache_dtype, heads, kv_heads, dim, v_dim):
    def build(b, x):
        q = b.linear(x, "q", heads * dim)
        k = b.cache(b.linear(x, "k", kv_heads * dim), "keys")
        v = b.cache(b.linear(x, "v", kv_heads * v_dim), "values")
        return b.attention(q, k, v, "y", heads, kv_heads, dim**-0.5)

    tolerance = INT8_CACHE if cache_dtype == "int8" else None
    check(one_op(build, 33), schedule, cache_dtype, tolerance=tolerance, threads=2)


@pytest.mark.parametrize("schedule", ["prefill", "one by one", "chunks", "ragged"])
@pytest.mark.parametrize("isa", _core.isas())
@pytest.mark.parametrize(("top_k", "ratio"), [(1, 1), (5, 1), (9, 1), (40, 1), (3, 2), (2, 4)])
@pytest.mark.parametrize(("heads", "dim"), [(11, 3), (13, 17), (29, 64)])
def test_attention_to_chosen_keys(schedule, isa, top_k, ratio, heads, dim):
    """Many heads, as a score that is a sum of zeros ties with others."""

    def build(b, x):
        keys = b.cache(b.linear(x, "index_k", dim), "index")
        weights = b.linear(x, "weights", heads)
        queries = b.linear(x, "index_q", heads * dim)
        rows = b.select_keys(queries, weights, keys, "rows", heads, top_k, 0.3, ratio)
        k = b.cache(b.linear(x, "k", 2 * 18), "keys")
        v = b.cache(b.linear(x, "v", 2 * 7), "values")
        return b.sparse_attention(b.linear(x, "q", 4 * 18), k, v, rows, "y", 4, 2, 0.4)

    check(one_op(build, 33), schedule, threads=2, isa=isa)


@pytest.mark.parametrize("ratio", [1, 2])
def test_equal_keys_are_chosen_from_the_lower_row_on(ratio):
    def build(b, x):
        zeros = b.scale(x, "zeros", 0.0)
        keys = b.cache(b.linear(zeros, "index_k", 6), "index")
        rows = b.select_keys(x, b.linear(x, "w", 2), keys, "rows", 2, 3, 1.0, ratio)
        k = b.cache(b.linear(x, "k", 12), "keys")
        return b.sparse_attention(x, k, k, rows, "y", 1, 1, 0.4)

    check(one_op(build, 12), "chunks", threads=2)


@pytest.mark.parametrize("k", [1, 3, 7])
@pytest.mark.parametrize("dtype", NAMES)
def test_experts(k, dtype):
    graph = one_op(experts(k), 33, dtype)
    graph.weights["router.weight"].format = "f32"
    check(graph, threads=2)


def test_experts_of_several_formats():
    graph = one_op(experts(3), 33, "w4")
    for name, dtype in [("router", "f32"), ("experts.1.up", "bf16"), ("experts.2.up", "w8")]:
        graph.weights[f"{name}.weight"].format = dtype
    check(graph, threads=2)


@pytest.mark.parametrize("group_score", ["max", "top2_sum"])
@pytest.mark.parametrize(("experts", "n_group", "topk_group"), [(12, 4, 2), (5, 1, 1), (6, 6, 4)])
def test_group_limit(group_score, experts, n_group, topk_group):
    def build(b, x):
        scores = b.sigmoid(b.linear(x, "router", experts), "scores")
        limited = b.group_limit(scores, "limited", n_group, topk_group, group_score)
        indices = b.top_k(limited, "indices", topk_group)
        return b.gather(scores, indices, "weights")

    check(one_op(build, 20))


def test_ties_go_to_the_lower_index():
    def build(b, x):
        ties = b.scale(x, "ties", 0.0)
        return b.gather(x, b.top_k(ties, "indices", 4), "y")

    check(one_op(build, 9))
