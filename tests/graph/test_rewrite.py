"""The view that passes match on, and node replacement."""

import pytest

from deepmnn.errors import GraphError
from deepmnn.graph.builder import GraphBuilder
from deepmnn.graph.caches import CacheEntry
from deepmnn.graph.ir import Node
from deepmnn.graph.rewrite import Rewrite, View, apply, join_names, joined_names, prune


def graph():
    """x ─ reshape ─┬─ silu a ─┐
    └─ silu c ─ add ─ rows
    """
    b = GraphBuilder("g")
    x = b.embedding(b.ids, "x", 9, 6)
    seen = b.reshape(x, "seen", 2, 3)
    total = b.add(b.silu(seen, "a"), b.silu(seen, "c"), "total")
    b.output(b.reshape(b.select_rows(total, "rows"), "flat", 6), "logits")
    return b.graph


def test_the_view_looks_through_reshapes():
    view = View(graph())
    assert view.source("seen") == "x"
    assert view.producer("seen", "embedding").name == "x"
    assert view.producer("seen", "reshape") is None
    assert [node.name for node in view.readers("x")] == ["a", "c"]
    assert view.reader("x", "silu") is None
    assert view.reader("a", "add").name == "total"
    assert view.reader("a", "mul") is None
    assert view.escapes("rows")
    assert not view.escapes("total")
    assert view.reader("rows", "reshape") is None


def test_encloses_sees_leaks():
    g = graph()
    nodes = {node.name: node for node in g.nodes}
    view = View(g)
    assert view.encloses([nodes["a"], nodes["c"], nodes["total"]], ("total",))
    assert not view.encloses([nodes["a"], nodes["total"]], ())
    assert not view.encloses([nodes["rows"]], ())


def test_apply_places_the_new_node_after_its_inputs():
    g = graph()
    nodes = {node.name: node for node in g.nodes}
    fused = Node("double_silu", ("x",), ("total",), (), {}, "fused")
    assert apply(g, View(g), [Rewrite([nodes[n] for n in ("a", "c", "total")], fused)]) == 1
    assert [node.name for node in g.nodes] == ["x", "fused", "rows", "flat"]
    assert set(g.values) == {"ids", "positions", "x", "total", "rows", "logits"}


def test_prune_removes_unread_caches_and_weights():
    g = graph()
    assert prune(g) == 0
    g.caches["old"] = CacheEntry(3)
    g.outputs.clear()
    assert prune(g) == 8  # seven nodes, one weight
    assert (g.nodes, g.weights, g.caches) == ([], {}, {})


def test_reading_an_unknown_value_is_a_graph_error():
    g = graph()
    g.nodes[2].inputs = ("nothing",)
    with pytest.raises(GraphError, match="nothing"):
        View(g)


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


@pytest.mark.parametrize(
    "names",
    [
        ["l.0.q_proj.weight", "l.0.k_proj.weight", "l.0.v_proj.weight"],
        ["l.1.mlp.experts.3.gate_proj.weight", "l.1.mlp.experts.3.up_proj.weight"],
        ["l.0.q_a.w", "l.0.kv_a.w"],
        ["alone.weight"],
    ],
)
def test_joined_names(names):
    assert joined_names(join_names(names)) == names
