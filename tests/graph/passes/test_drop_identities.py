"""drop_identities: what it writes, and what it must leave alone."""

from deepmnn.graph.passes import drop_identities
from deepmnn.graph.verify import verify
from small_graphs import WIDTH, Start, node, ops


def test_drop_identities_removes_what_does_nothing():
    b = Start()
    x = b.reshape(b.reshape(b.x, "r0", 3, 4), "r1", WIDTH)
    x = b.scale(x, "one", 1.0)
    (x,) = b.split(x, "whole", (WIDTH,))
    x = b.concat([x], "lone")
    x = b.broadcast(x, "single", 1)
    b.silu(b.x, "unread")
    graph = b.end(b.scale(x, "half", 0.5))
    b.weight("unused", (3, 4), "linear")
    assert drop_identities.run(graph) == 8
    verify(graph)
    assert ops(graph) == ["scale"]
    assert node(graph, "scale").inputs == ("embed",)
    assert "unused" not in graph.weights
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
