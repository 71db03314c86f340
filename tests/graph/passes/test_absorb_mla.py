"""absorb_mla: what it writes, and what it must leave alone."""

import numpy as np
import pytest

from deepmnn.graph.passes import absorb_mla
from deepmnn.graph.verify import verify
from small_graphs import ANOTHER_ROTATION, WIDTH, Start, Table, named, node, ops


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
    assert [w.name for w in matrices] == ["kv_b.w_uk", "kv_b.w_uv"]
    assert {w.role for w in matrices} == {"latent"}
    table = np.random.default_rng(0).standard_normal(kv_b.shape, np.float32)
    w_uk, w_uv = (w.expr.read(Table(**{kv_b.name: table})) for w in matrices)
    per_head = table.reshape(3, 9, 7)
    np.testing.assert_array_equal(w_uk.reshape(3, 16, 7)[:, :5], per_head[:, :5])
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
