"""fuse_route and fuse_moe: what they write, and what they must leave alone."""

import pytest

from deepmnn.graph.passes import fuse_add_norm, fuse_moe, fuse_route
from deepmnn.graph.verify import verify
from small_graphs import WIDTH, Start, experts, named, node, ops, route


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
    assert fused.attrs == {"experts": 8, "top_k": 3, "intermediate_size": 5, "limit": 0.0}
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
    graph.weights["experts.3.up.weight"].format = "bf16"


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
