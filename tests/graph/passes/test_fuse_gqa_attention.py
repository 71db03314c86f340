"""fuse_gqa_attention: what it writes, and what it must leave alone."""

import pytest

from deepmnn.graph.caches import CacheEntry
from deepmnn.graph.passes import fuse_gqa_attention
from deepmnn.graph.verify import verify
from deepmnn.graph.weights import Constant
from small_graphs import ANOTHER_ROTATION, WIDTH, Start, named, node, ops


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
    assert graph.caches == {"keys": CacheEntry(4), "values": CacheEntry(4)}


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
