"""fuse_swiglu: what it writes, and what it must leave alone."""

import pytest

from deepmnn.graph.ir import Node
from deepmnn.graph.passes import fuse_swiglu
from deepmnn.graph.verify import verify
from deepmnn.graph.weights import Interleave
from small_graphs import WIDTH, Start, node, ops


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
    assert fused.attrs == {"intermediate_size": 7, "limit": 0.0}
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


@pytest.mark.parametrize(("field", "value"), [("format", "bf16"), ("role", "expert")])
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
