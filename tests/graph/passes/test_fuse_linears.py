"""fuse_linears: what it writes, and what it must leave alone."""

from deepmnn.graph.passes import fuse_linears
from deepmnn.graph.verify import verify
from deepmnn.graph.weights import Constant
from small_graphs import WIDTH, Start


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
    for name, dtype in zip("abcd", ("w4", "w5", "w8", "bf16"), strict=True):
        graph.weights[f"{name}.weight"].format = dtype
    verify(graph)
    assert fuse_linears.run(graph) == 0
