"""absorb_sparse_mla: what it writes, and what it must leave alone."""

import pytest

from deepmnn.graph.passes import absorb_mla, absorb_sparse_mla
from deepmnn.graph.verify import verify
from small_graphs import ANOTHER_ROTATION, WIDTH, Start, named, node, ops


def inputs_of(**inputs):
    """Gives nodes other inputs; what they leave out stays."""

    def edit(graph):
        for name, values in inputs.items():
            found = named(graph, name)
            found.inputs = (*values, *found.inputs[len(values) :])

    return edit


def sparse_graph(b, whole=False, ratio=1, read_keys=False):
    """3 heads, nope 5, rope 4, rank 7, value 4; an indexer of 2 heads of 6, or of 4: all turned."""
    rope = ((1.0, 0.5), 1.0)
    q_nope, q_pe = b.split(b.linear(b.x, "q", 27), "q_split", (5, 4), 3)
    q = b.concat([q_nope, b.rope(q_pe, "q_rope", 3, *rope, True)], "q_all", 3)
    latent, k_pe = b.split(b.linear(b.x, "kv", 11), "kv_split", (7, 4))
    row = b.concat(
        [b.rms_norm(latent, "kv_norm", 1e-6), b.rope(k_pe, "k_rope", 1, *rope, True)], "row"
    )
    latent, k_pe = b.split(b.cache(row, "latent"), "rows_split", (7, 4))
    kv = b.linear(latent, "kv_b", 27, role="latent")
    k_nope, v = b.split(kv, "halves", (5, 4), 3)
    k = b.concat([k_nope, b.broadcast(k_pe, "k_wide", 3)], "k_all", 3)

    def turned(x, name, heads):
        if whole:
            return b.rope(x, f"{name}_rope", heads, *rope, False)
        first, rest = b.split(x, f"{name}_split", (4, 2), heads)
        return b.concat(
            [b.rope(first, f"{name}_rope", heads, *rope, False), rest], f"{name}_all", heads
        )

    size = 4 if whole else 6
    index_q = turned(b.linear(b.x, "iq", 2 * size), "iq", 2)
    normed = b.layer_norm(b.linear(b.x, "ik", size), "ik_norm", 1e-5)
    keys = b.cache(turned(normed, "ik", 1), "index")
    rows = b.select_keys(index_q, b.linear(b.x, "iw", 2), keys, "chosen", 2, 9, 0.5, ratio)
    out = b.sparse_attention(q, k, v, rows, "attn", 3, 3, 0.25)
    return b.end(out, b.linear("ik_norm", "probe", WIDTH)) if read_keys else b.end(out)


@pytest.mark.parametrize("whole", [False, True])
def test_absorb_sparse_mla(whole):
    graph = sparse_graph(Start(), whole)
    assert absorb_mla.run(graph) == 0
    assert absorb_sparse_mla.run(graph) == 1
    verify(graph)
    assert ops(graph) == ["linear"] * 5 + ["sparse_mla_attention"]
    fused = node(graph, "sparse_mla_attention")
    assert fused.inputs == ("q", "kv", "positions", "iq", "ik", "iw")
    assert fused.weights[0] == "kv_norm.weight"
    assert fused.weights[3:] == ("ik_norm.weight", "ik_norm.bias")
    expected = {
        "cache": "latent",
        "scale": 0.25,
        "interleaved": 1,
        "index_n_heads": 2,
        "index_head_dim": 4 if whole else 6,
        "index_topk": 9,
        "index_scale": 0.5,
        "index_eps": 1e-5,
        "index_interleaved": 0,
        "index_cache": "index",
    }
    assert {key: fused.attrs[key] for key in expected} == expected


@pytest.mark.parametrize("different", [{"ratio": 2}, {"read_keys": True}])
def test_absorb_sparse_mla_leaves_what_it_cannot_say(different):
    graph = sparse_graph(Start(), **different)
    before = graph.copy()
    assert absorb_sparse_mla.run(graph) == 0
    assert graph == before


@pytest.mark.parametrize("edit", ANOTHER_ROTATION)
@pytest.mark.parametrize("which", ["ik_rope", "iq_rope"])
def test_absorb_sparse_mla_leaves_an_indexer_that_turns_otherwise(edit, which):
    graph = sparse_graph(Start())
    edit(named(graph, which))
    assert absorb_sparse_mla.run(graph) == 0


NOT_AN_INDEXER = {
    "query halves": inputs_of(iq_rope=["iq_split.1"], iq_all=["iq_split.0"]),
    "key halves": inputs_of(ik_rope=["ik_split.1"], ik_all=["ik_split.0"]),
    "heads of queries": lambda graph: named(graph, "iq_split").attrs.update(heads=1),
    "heads of keys": lambda graph: named(graph, "ik_split").attrs.update(heads=2),
    "another latent attention": inputs_of(attn=["q_all", "k_all", "halves.0"]),
}


@pytest.mark.parametrize("what", NOT_AN_INDEXER)
def test_absorb_sparse_mla_leaves_parts_that_do_not_fit(what):
    graph = sparse_graph(Start())
    NOT_AN_INDEXER[what](graph)
    assert absorb_sparse_mla.run(graph) == 0
