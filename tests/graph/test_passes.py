"""Each pass on small hand-built graphs: what it writes, and what it must leave alone."""

import numpy as np
import pytest

from deepmnn.checkpoint.random import tensor_shapes
from deepmnn.graph.builder import GraphBuilder
from deepmnn.graph.ir import Node
from deepmnn.graph.passes import (
    absorb_mla,
    drop_identities,
    fuse_add_norm,
    fuse_gqa_attention,
    fuse_linears,
    fuse_moe,
    fuse_route,
    fuse_swiglu,
    share_weights,
)
from deepmnn.graph.rewrite import join_names
from deepmnn.graph.verify import verify
from deepmnn.graph.weights import Constant, Interleave

WIDTH = 12


class Start(GraphBuilder):
    """A builder with an embedding to start from and a head to end in."""

    def __init__(self):
        super().__init__("test")
        self.x = self.embedding(self.ids, "embed", 50, WIDTH)

    def end(self, *values):
        """Adds the values up, selects rows and makes logits."""
        total = values[0]
        for number, value in enumerate(values[1:]):
            total = self.add(total, value, f"total{number}")
        rows = self.select_rows(total, "rows")
        self.output(self.linear(rows, "head", 50, role="lm_head"), "logits")
        verify(self.graph)
        return self.graph


def ops(graph):
    return [node.op for node in graph.nodes if node.name not in ("embed", "rows", "head")]


def node(graph, op):
    (found,) = [node for node in graph.nodes if node.op == op]
    return found


def named(graph, name):
    return next(node for node in graph.nodes if node.name == name)


ANOTHER_ROTATION = [
    lambda rope: rope.attrs.update(rope_scale=2.0),
    lambda rope: rope.attrs.update(interleaved=1 - rope.attrs["interleaved"]),
    lambda rope: setattr(rope, "inputs", (rope.inputs[0], "ids")),
]


class Table:
    """A TensorSource over a dict."""

    def __init__(self, **arrays):
        self.arrays = arrays

    def read(self, name):
        return self.arrays[name]


# ---------------------------------------------------------------- drop_identities


def test_drop_identities_removes_what_does_nothing():
    b = Start()
    x = b.reshape(b.reshape(b.x, "r0", 3, 4), "r1", WIDTH)
    x = b.scale(x, "one", 1.0)
    (x,) = b.split(x, "whole", (WIDTH,))
    x = b.concat([x], "lone")
    x = b.broadcast(x, "single", 1)
    b.silu(b.x, "unread")
    b.weight("mtp", (3, 4), "linear")
    b.graph.kept.append("mtp")
    graph = b.end(b.scale(x, "half", 0.5))
    b.weight("unused", (3, 4), "linear")
    assert drop_identities.run(graph) == 8
    verify(graph)
    assert ops(graph) == ["scale"]
    assert node(graph, "scale").inputs == ("embed",)
    assert "unused" not in graph.weights
    assert "mtp" in graph.weights
    assert set(graph.values) == {"ids", "positions", "embed", "half", "rows", "logits"}


def test_drop_identities_keeps_real_work():
    b = Start()
    parts = b.split(b.x, "parts", (4, 8))
    graph = b.end(b.scale(b.concat(parts, "joined"), "double", 2.0))
    assert drop_identities.run(graph) == 0
    assert ops(graph) == ["split", "concat", "scale"]


def test_drop_identities_keeps_an_identity_that_is_the_output():
    b = Start()
    b.output(b.scale(b.select_rows(b.x, "rows"), "one", 1.0), "logits")
    assert drop_identities.run(b.graph) == 0
    assert b.graph.nodes[-1].outputs == ("logits",)


# ---------------------------------------------------------------- share_weights


def test_share_weights_merges_equal_expressions_into_the_better_role():
    b = Start()
    graph = b.end(b.x)
    graph.weights["head.weight"].expr = graph.weights["embed.weight"].expr
    assert share_weights.run(graph) == 1
    assert graph.nodes[0].weights == graph.nodes[-1].weights == ("embed.weight",)
    assert graph.weights["embed.weight"].role == "lm_head"


def test_share_weights_finds_equal_content():
    b = Start()
    a, c, d = (b.linear(b.x, name, WIDTH) for name in "acd")
    graph = b.end(a, c, d)
    random = np.random.default_rng(0)
    tables = {
        weight.expr.name: random.standard_normal(weight.shape, np.float32)
        for weight in graph.weights.values()
    }
    tables["model.d.weight"] = tables["model.a.weight"].copy()
    tables["model.c.weight"] = tables["model.a.weight"].copy()
    tables["model.c.weight"][-1, -1] += 1e-6
    assert share_weights.run(graph, Table(**tables)) == 1
    assert [n.weights for n in graph.nodes if n.op == "linear"][:3] == [
        ("a.weight",),
        ("c.weight",),
        ("a.weight",),
    ]


def test_share_weights_reads_only_what_may_be_equal():
    b = Start()
    graph = b.end(*(b.linear(b.x, name, WIDTH) for name in "acd"))
    reads = []

    class Sampled(Table):
        def sample(self, name):
            return b"same" if name in ("model.a.weight", "model.c.weight") else name.encode()

        def read(self, name):
            reads.append(name)
            return np.ones((WIDTH, WIDTH), np.float32)

    assert share_weights.run(graph, Sampled()) == 1
    assert sorted(reads) == ["model.a.weight", "model.c.weight"]


def test_share_weights_keeps_storage_formats_and_kept_weights_apart():
    b = Start()
    graph = b.end(b.linear(b.x, "a", WIDTH), b.linear(b.x, "c", WIDTH), b.linear(b.x, "d", WIDTH))
    weights = graph.weights
    for name in ("c", "d"):
        weights[f"{name}.weight"].expr = weights["a.weight"].expr
    weights["c.weight"].dtype = "bf16"
    graph.kept.append("d.weight")
    assert share_weights.run(graph) == 0
    graph.kept.clear()
    for name, group_size in (("a", 32), ("d", 64)):
        weights[f"{name}.weight"].dtype, weights[f"{name}.weight"].group_size = "w4", group_size
    assert share_weights.run(graph) == 0


def test_share_weights_reads_no_expert_without_samples():
    """They are most of a checkpoint: reading them to compare would cost as much as converting."""
    b = Start()
    graph = b.end(experts(b, *route(b)))

    shapes = tensor_shapes(graph)
    tables = {name: np.zeros(shape) for name, shape in shapes.items() if "experts" not in name}
    assert share_weights.run(graph, Table(**tables)) == 1  # the embedding and the head


# ---------------------------------------------------------------- fuse_swiglu


def swiglu_graph(b, swapped=False, up_x=None, bias=False):
    gate = b.linear(b.x, "mlp.gate", 7, bias)
    up = b.linear(up_x or b.x, "mlp.up", 7, bias)
    silu = b.silu(gate, "mlp.silu")
    return b.mul(up, silu, "mul") if swapped else b.mul(silu, up, "mul")


@pytest.mark.parametrize("swapped", [False, True])
def test_fuse_swiglu(swapped):
    b = Start()
    graph = b.end(b.linear(swiglu_graph(b, swapped), "down", WIDTH))
    assert fuse_swiglu.run(graph) == 1
    verify(graph)
    assert ops(graph) == ["swiglu", "linear"]
    fused = node(graph, "swiglu")
    weight = graph.weights[fused.weights[0]]
    assert fused.attrs == {"intermediate_size": 7}
    assert weight.name == "mlp.gate+up.weight"
    assert isinstance(weight.expr, Interleave)
    assert [part.name for part in weight.expr.parts] == [
        "model.mlp.gate.weight",
        "model.mlp.up.weight",
    ]
    assert weight.shape == (32, WIDTH)
    assert set(graph.weights) == {
        "embed.weight",
        "mlp.gate+up.weight",
        "down.weight",
        "head.weight",
    }


def test_fuse_swiglu_leaves_biased_projections():
    b = Start()
    graph = b.end(b.linear(swiglu_graph(b, bias=True), "down", WIDTH))
    assert fuse_swiglu.run(graph) == 0


def test_fuse_swiglu_leaves_projections_of_different_values():
    b = Start()
    other = b.silu(b.x, "other")
    graph = b.end(b.linear(swiglu_graph(b, up_x=other), "down", WIDTH))
    assert fuse_swiglu.run(graph) == 0


def test_fuse_swiglu_leaves_one_projection_that_is_both():
    b = Start()
    gate = b.linear(b.x, "gate", 7)
    graph = b.end(b.linear(b.mul(b.silu(gate, "silu"), gate, "mul"), "down", WIDTH))
    assert fuse_swiglu.run(graph) == 0


@pytest.mark.parametrize(("field", "value"), [("dtype", "bf16"), ("role", "expert")])
def test_fuse_swiglu_leaves_weights_of_another_kind(field, value):
    b = Start()
    graph = b.end(b.linear(swiglu_graph(b), "down", WIDTH))
    setattr(graph.weights["mlp.up.weight"], field, value)
    assert fuse_swiglu.run(graph) == 0


def test_fuse_swiglu_leaves_a_gate_that_others_read():
    b = Start()
    y = swiglu_graph(b)
    graph = b.end(b.linear(y, "down", WIDTH), b.linear("mlp.gate", "probe", WIDTH))
    assert fuse_swiglu.run(graph) == 0


# ---------------------------------------------------------------- fuse_linears


def test_fuse_linears_stacks_weights_and_biases():
    b = Start()
    q = b.linear(b.reshape(b.x, "seen", 3, 4), "attn.q", 5, bias=True)
    k = b.linear(b.x, "attn.k", 3)
    v = b.linear(b.x, "attn.v", 2, bias=True)
    graph = b.end(b.concat([q, k, v, b.linear(b.x, "attn.rest", 2, role="router")], "all"))
    assert fuse_linears.run(graph) == 1
    verify(graph)
    fused = next(n for n in graph.nodes if n.op == "linear")
    weight, bias = (graph.weights[name] for name in fused.weights)
    assert fused.outputs == ("attn.q", "attn.k", "attn.v")
    assert (weight.name, weight.shape) == ("attn.q+k+v.weight", (10, WIDTH))
    assert (bias.name, bias.shape, bias.role) == ("attn.q+v.bias", (10,), "vector")
    assert bias.expr.parts[1] == Constant((3,))
    assert fuse_linears.run(graph) == 0


def test_fuse_linears_leaves_routers_and_other_roles():
    b = Start()
    parts = [b.linear(b.x, name, 3, role="router") for name in "abc"]
    graph = b.end(b.concat([*parts, b.linear(b.x, "d", 3)], "all"))
    graph.weights["c.weight"].role = "latent"
    assert fuse_linears.run(graph) == 0


def test_fuse_linears_leaves_other_formats():
    b = Start()
    graph = b.end(b.concat([b.linear(b.x, name, 3) for name in "abcd"], "all"))
    formats = (("w4", 32), ("w4", 64), ("w8", 256), ("bf16", 0))
    for name, (dtype, group_size) in zip("abcd", formats, strict=True):
        weight = graph.weights[f"{name}.weight"]
        weight.dtype, weight.group_size = dtype, group_size
    verify(graph)
    assert fuse_linears.run(graph) == 0


# ---------------------------------------------------------------- fuse_add_norm


def test_fuse_add_norm_keeps_the_sum():
    b = Start()
    total = b.add(b.x, b.silu(b.x, "silu"), "sum")
    graph = b.end(total, b.rms_norm(total, "norm", 1e-5))
    assert fuse_add_norm.run(graph) == 1
    verify(graph)
    fused = node(graph, "add_rms_norm")
    assert fused.outputs == ("sum", "norm")
    assert fused.attrs == {"eps": 1e-5}
    assert fused.weights == ("norm.weight",)


def test_fuse_add_norm_fuses_one_of_two_norms():
    b = Start()
    total = b.add(b.x, b.silu(b.x, "silu"), "sum")
    graph = b.end(b.rms_norm(total, "norm0", 1e-5), b.rms_norm(total, "norm1", 1e-5))
    assert fuse_add_norm.run(graph) == 1
    verify(graph)
    assert ops(graph)[:3] == ["silu", "add_rms_norm", "rms_norm"]


def test_fuse_add_norm_leaves_norms_per_head():
    b = Start()
    total = b.add(b.x, b.silu(b.x, "silu"), "sum")
    graph = b.end(b.rms_norm(total, "norm", 1e-5, heads=3))
    assert fuse_add_norm.run(graph) == 0


# ---------------------------------------------------------------- fuse_gqa_attention


def gqa_graph(
    b, k_freq=(1.0, 0.5), q_norm=None, k_norm=None, heads=(3, 1), one_cache=False, read_k=False
):
    """q [tokens, 3·4], k and v [tokens, 4]; q and k rotated as 3 heads and 1, of 4."""
    q, k, v = (b.linear(b.x, name, width) for name, width in (("q", 12), ("k", 4), ("v", 4)))
    if q_norm:
        q = b.rms_norm(q, "q_norm", q_norm, 3)
    if k_norm:
        k = b.rms_norm(k, "k_norm", k_norm, 1)
    q = b.rope(q, "q_rope", 3, (1.0, 0.5), 1.0, False)
    k = b.rope(k, "k_rope", 1, k_freq, 1.0, False)
    keys = b.cache(k, "keys")
    values = keys if one_cache else b.cache(v, "values")
    out = b.attention(q, keys, values, "attn", *heads, 0.5)
    return b.end(out, b.linear(k, "probe", WIDTH)) if read_k else b.end(out)


def test_fuse_gqa_attention():
    graph = gqa_graph(Start(), q_norm=1e-5, k_norm=1e-5)
    assert fuse_gqa_attention.run(graph) == 1
    verify(graph)
    assert ops(graph) == ["linear", "linear", "linear", "gqa_attention"]
    fused = node(graph, "gqa_attention")
    assert fused.inputs == ("q", "k", "v", "positions")
    assert fused.weights == ("q_norm.weight", "k_norm.weight")
    assert fused.attrs == {
        "heads": 3,
        "kv_heads": 1,
        "head_dim": 4,
        "v_head_dim": 4,
        "scale": 0.5,
        "inv_freq": (1.0, 0.5),
        "rope_scale": 1.0,
        "interleaved": 0,
        "eps": 1e-5,
        "k_cache": "keys",
        "v_cache": "values",
    }
    assert graph.caches == {"keys": 4, "values": 4}


def test_fuse_gqa_attention_without_norms():
    graph = gqa_graph(Start())
    assert fuse_gqa_attention.run(graph) == 1
    verify(graph)
    assert node(graph, "gqa_attention").weights == ()


@pytest.mark.parametrize(
    "different",
    [
        {"k_freq": (1.0, 0.25)},
        {"q_norm": 1e-5},
        {"k_norm": 1e-5},
        {"q_norm": 1e-5, "k_norm": 1e-6},
        {"heads": (6, 2)},
        {"one_cache": True},
        {"read_k": True},
    ],
)
def test_fuse_gqa_attention_leaves_what_it_cannot_say(different):
    graph = gqa_graph(Start(), **different)
    before = graph.copy()
    assert fuse_gqa_attention.run(graph) == 0
    assert graph == before


@pytest.mark.parametrize("edit", ANOTHER_ROTATION)
def test_fuse_gqa_attention_leaves_keys_that_turn_otherwise(edit):
    graph = gqa_graph(Start())
    edit(named(graph, "k_rope"))
    assert fuse_gqa_attention.run(graph) == 0


def test_fuse_gqa_attention_leaves_norms_over_the_whole_row():
    graph = gqa_graph(Start(), q_norm=1e-5, k_norm=1e-5)
    named(graph, "q_norm").attrs["heads"] = 1
    graph.weights["q_norm.weight"].expr = Constant((12,))
    assert fuse_gqa_attention.run(graph) == 1
    verify(graph)
    fused = node(graph, "gqa_attention")
    assert (fused.inputs, fused.weights) == (("q_norm", "k_norm", "v", "positions"), ())


# ---------------------------------------------------------------- fuse_route and fuse_moe


def route(b, scoring="sigmoid", bias=True, groups=True, normalize=True, factor=2.5):
    logits = b.linear(b.x, "mlp.gate", 8, role="router")
    scores = choice = getattr(b, scoring)(logits, "mlp.gate.scores")
    if bias:
        choice = b.bias_add(choice, "mlp.gate.bias")
    if groups:
        choice = b.group_limit(choice, "mlp.gate.groups", 4, 2, "top2_sum")
    indices = b.top_k(choice, "mlp.gate.top_k", 3)
    weights = b.gather(scores, indices, "mlp.gate.gather")
    if normalize:
        weights = b.normalize(weights, "mlp.gate.normalize", 1e-20)
    return indices, b.scale(weights, "mlp.gate.scale", factor) if factor else weights


def experts(b, indices, weights, up_x=None):
    gate = b.expert_linear(b.x, indices, "experts", "gate", 8, 5, per_choice=False)
    up = b.expert_linear(up_x or b.x, indices, "experts", "up", 8, 5, per_choice=False)
    y = b.mul(b.silu(gate, "experts.silu"), up, "experts.mul")
    y = b.expert_linear(y, indices, "experts", "down", 8, WIDTH, per_choice=True)
    return b.combine(y, weights, "experts.combine")


def test_fuse_route():
    b = Start()
    graph = b.end(experts(b, *route(b)))
    assert fuse_route.run(graph) == 1
    verify(graph)
    fused = node(graph, "route")
    assert fused.inputs == ("mlp.gate",)
    assert fused.outputs == ("mlp.gate.top_k", "mlp.gate.scale")
    assert fused.weights == ("mlp.gate.bias",)
    assert fused.attrs == {
        "scoring": "sigmoid",
        "n_group": 4,
        "topk_group": 2,
        "group_score": "top2_sum",
        "top_k": 3,
        "normalize": 1,
        "eps": 1e-20,
        "factor": 2.5,
    }
    assert ops(graph)[:3] == ["linear", "route", "expert_linear"]


def test_fuse_route_without_extras():
    b = Start()
    graph = b.end(experts(b, *route(b, "softmax", False, False, False, 0)))
    assert fuse_route.run(graph) == 1
    verify(graph)
    fused = node(graph, "route")
    assert (fused.weights, fused.outputs[1]) == ((), "mlp.gate.gather")
    assert fused.attrs["n_group"] == 1
    assert (fused.attrs["normalize"], fused.attrs["factor"]) == (0, 1.0)


def test_fuse_route_leaves_weights_taken_from_biased_scores():
    b = Start()
    indices, weights = route(b)
    next(n for n in b.graph.nodes if n.op == "gather").inputs = ("mlp.gate.bias", indices)
    graph = b.end(experts(b, indices, weights))
    assert fuse_route.run(graph) == 0


def test_fuse_route_leaves_scores_that_others_read():
    b = Start()
    y = experts(b, *route(b))
    graph = b.end(y, b.linear("mlp.gate.scores", "probe", WIDTH))
    assert fuse_route.run(graph) == 0


def test_fuse_moe_takes_the_shared_experts_in():
    b = Start()
    shared = b.linear(b.x, "shared", WIDTH)
    out = b.add(shared, experts(b, *route(b)), "with_shared")
    residual = b.add(b.x, out, "residual")
    graph = b.end(residual, b.rms_norm(residual, "norm", 1e-5))
    assert fuse_moe.run(graph) == 1
    verify(graph)
    fused = node(graph, "moe")
    assert fused.inputs == ("embed", "mlp.gate.top_k", "mlp.gate.scale", "shared")
    assert fused.outputs == ("with_shared",)
    assert fused.attrs == {"experts": 8, "top_k": 3, "intermediate_size": 5}
    assert len(fused.weights) == 16
    assert fused.weights[2:4] == ("experts.1.gate+up.weight", "experts.1.down.weight")
    assert graph.weights[fused.weights[0]].shape == (32, WIDTH)
    assert graph.weights[fused.weights[0]].role == "expert"
    assert "experts.0.gate.weight" not in graph.weights


def test_fuse_moe_leaves_the_residual_add():
    b = Start()
    residual = b.add(b.x, experts(b, *route(b)), "residual")
    graph = b.end(residual, b.rms_norm(residual, "norm", 1e-5))
    assert fuse_moe.run(graph) == 1
    verify(graph)
    assert node(graph, "moe").outputs == ("experts.combine",)
    assert fuse_add_norm.run(graph) == 1


def test_fuse_moe_leaves_experts_of_different_values():
    b = Start()
    other = b.silu(b.x, "other")
    graph = b.end(experts(b, *route(b), up_x=other))
    assert fuse_moe.run(graph) == 0


def other_indices(graph):
    up = named(graph, "experts.up")
    up.inputs = (up.inputs[0], "other")


def other_storage(graph):
    graph.weights["experts.3.up.weight"].dtype = "bf16"


def rows_of_their_own(graph):
    for name in ("experts.gate", "experts.up"):
        named(graph, name).attrs["per_choice"] = 1


@pytest.mark.parametrize("edit", [other_indices, other_storage, rows_of_their_own])
def test_fuse_moe_leaves_experts_that_are_no_mixture(edit):
    b = Start()
    indices, weights = route(b)
    b.top_k("mlp.gate", "other", 3)
    graph = b.end(experts(b, indices, weights))
    edit(graph)
    assert fuse_moe.run(graph) == 0


def test_fuse_moe_leaves_experts_that_others_read():
    b = Start()
    y = experts(b, *route(b))
    graph = b.end(y, b.linear("experts.mul", "probe", WIDTH))
    assert fuse_moe.run(graph) == 0


def test_fuse_moe_leaves_a_mixture_added_to_itself():
    b = Start()
    y = experts(b, *route(b))
    graph = b.end(b.add(b.x, b.add(y, y, "twice"), "residual"))
    assert fuse_moe.run(graph) == 1
    verify(graph)
    assert node(graph, "moe").outputs == ("experts.combine",)


def test_fuse_moe_takes_the_shared_experts_in_after_the_norms_are_fused():
    b = Start()
    out = b.add(experts(b, *route(b)), b.linear(b.x, "shared", WIDTH), "with_shared")
    residual = b.add(b.x, out, "residual")
    graph = b.end(residual, b.rms_norm(residual, "norm", 1e-5))
    assert (fuse_add_norm.run(graph), fuse_moe.run(graph)) == (1, 1)
    verify(graph)
    assert node(graph, "moe").outputs == ("with_shared",)


# ---------------------------------------------------------------- absorb_mla


def mla_graph(b, k_freq=(1.0, 0.5), swap=False, kv_bias=False, read_rows=False):
    """3 heads, nope 5, rope 4, rank 7, value 4."""
    q_nope, q_pe = b.split(b.linear(b.x, "q", 27), "q_split", (5, 4), 3)
    q = b.concat([q_nope, b.rope(q_pe, "q_rope", 3, (1.0, 0.5), 1.0, True)], "q_all", 3)
    latent, k_pe = b.split(b.linear(b.x, "kv", 11), "kv_split", (7, 4))
    latent = b.rms_norm(latent, "kv_norm", 1e-6)
    k_pe = b.rope(k_pe, "k_rope", 1, k_freq, 1.0, True)
    latent, k_pe = b.split(b.cache(b.concat([latent, k_pe], "row"), "latent"), "rows_split", (7, 4))
    kv = b.linear(latent, "kv_b", 27, kv_bias, role="latent")
    k_nope, v = b.split(kv, "halves", (5, 4), 3)
    keys = [k_nope, b.broadcast(k_pe, "k_wide", 3)]
    k = b.concat(keys[::-1] if swap else keys, "k_all", 3)
    out = b.attention(q, k, v, "attn", 3, 3, 0.25)
    return b.end(out, b.linear("row", "probe", WIDTH)) if read_rows else b.end(out)


def test_absorb_mla():
    graph = mla_graph(Start())
    kv_b = graph.weights["kv_b.weight"].expr
    assert absorb_mla.run(graph) == 1
    verify(graph)
    assert ops(graph) == ["linear", "linear", "mla_attention"]
    fused = node(graph, "mla_attention")
    assert fused.inputs == ("q", "kv", "positions")
    assert fused.attrs == {
        "heads": 3,
        "kv_lora_rank": 7,
        "qk_nope_head_dim": 5,
        "qk_rope_head_dim": 4,
        "v_head_dim": 4,
        "scale": 0.25,
        "eps": 1e-6,
        "inv_freq": (1.0, 0.5),
        "rope_scale": 1.0,
        "interleaved": 1,
        "cache": "latent",
    }
    assert fused.weights[0] == "kv_norm.weight"
    matrices = [graph.weights[name] for name in fused.weights[1:]]
    assert [w.name for w in matrices] == ["kv_b.w_uk", "kv_b.w_uk_t", "kv_b.w_uv"]
    assert {w.role for w in matrices} == {"latent"}
    table = np.random.default_rng(0).standard_normal(kv_b.shape, np.float32)
    w_uk, w_uk_t, w_uv = (w.expr.read(Table(**{kv_b.name: table})) for w in matrices)
    per_head = table.reshape(3, 9, 7)
    np.testing.assert_array_equal(w_uk.reshape(3, 16, 7)[:, :5], per_head[:, :5])
    np.testing.assert_array_equal(w_uk_t.reshape(3, 16, 5)[:, :7], per_head[:, :5].swapaxes(1, 2))
    np.testing.assert_array_equal(w_uv.reshape(3, 16, 7)[:, :4], per_head[:, 5:])


@pytest.mark.parametrize(
    "different",
    [{"k_freq": (1.0, 0.25)}, {"swap": True}, {"kv_bias": True}, {"read_rows": True}],
)
def test_absorb_mla_leaves_what_it_cannot_say(different):
    graph = mla_graph(Start(), **different)
    before = graph.copy()
    assert absorb_mla.run(graph) == 0
    assert graph == before


@pytest.mark.parametrize("edit", ANOTHER_ROTATION)
def test_absorb_mla_leaves_keys_that_turn_otherwise(edit):
    graph = mla_graph(Start())
    edit(named(graph, "k_rope"))
    assert absorb_mla.run(graph) == 0


def heads_of(name, heads):
    return lambda graph: named(graph, name).attrs.update(heads=heads)


def inputs_of(**inputs):
    """Gives nodes other inputs; what they leave out stays."""

    def edit(graph):
        for name, values in inputs.items():
            found = named(graph, name)
            found.inputs = (*values, *found.inputs[len(values) :])

    return edit


NOT_LATENT_ATTENTION = {
    "kv_heads": lambda graph: named(graph, "attn").attrs.update(kv_heads=1),
    "sizes": lambda graph: named(graph, "rows_split").attrs.update(sizes=(4, 7)),
    "query halves": inputs_of(q_rope=["q_split.0"], q_all=["q_split.1"]),
    "latent halves": inputs_of(kv_norm=["kv_split.1"], k_rope=["kv_split.0"]),
    "row halves": inputs_of(kv_b=["rows_split.1"], k_wide=["rows_split.0"]),
    "key and value": inputs_of(k_all=["halves.1"], attn=["q_all", "k_all", "halves.0"]),
}
for name in ("q_split", "q_rope", "q_all", "halves", "k_all"):
    NOT_LATENT_ATTENTION[f"heads of {name}"] = heads_of(name, 1)
for name in ("kv_split", "kv_norm", "k_rope", "row", "rows_split"):
    NOT_LATENT_ATTENTION[f"heads of {name}"] = heads_of(name, 2)


@pytest.mark.parametrize("what", NOT_LATENT_ATTENTION)
def test_absorb_mla_leaves_parts_that_do_not_fit(what):
    graph = mla_graph(Start())
    NOT_LATENT_ATTENTION[what](graph)
    assert absorb_mla.run(graph) == 0


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("names", "joined"),
    [
        (["a.q.weight", "a.k.weight"], "a.q+k.weight"),
        (["x", "y"], "x+y"),
        (["a.q", "a.q.r"], "a.q+q.r"),
        (["l.0.q_a.w", "l.0.kv_a.w", "l.0.z.w"], "l.0.q_a+kv_a+z.w"),
        (["alone.weight"], "alone.weight"),
    ],
)
def test_join_names(names, joined):
    assert join_names(names) == joined


def test_a_taken_weight_name_is_numbered():
    b = Start()
    b.weight("mlp.gate+up.weight", (5, WIDTH), "linear")
    b.graph.nodes.append(
        Node("linear", ("embed",), ("taken",), ("mlp.gate+up.weight",), {}, "taken")
    )
    b.graph.values["taken"] = b.graph.values["embed"].__class__("taken", ("tokens", 5))
    y = swiglu_graph(b)
    graph = b.end(b.linear(y, "down", WIDTH), b.linear("taken", "probe", WIDTH))
    assert fuse_swiglu.run(graph) == 1
    verify(graph)
    assert node(graph, "swiglu").weights == ("mlp.gate+up.weight#2",)
