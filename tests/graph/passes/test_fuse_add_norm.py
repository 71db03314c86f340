"""fuse_add_norm: what it writes, and what it must leave alone."""

from deepmnn.graph.passes import fuse_add_norm
from deepmnn.graph.verify import verify
from small_graphs import Start, node, ops


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
