"""Grouped-query attention with its norms, rotations and caches becomes one op.

q ─ [rms_norm] ─ rope ──────────┐
k ─ [rms_norm] ─ rope ─ cache ─ attention ─ y    →    q, k, v, positions ─ gqa_attention ─ y
v ─ cache ──────────────────────┘
"""

from __future__ import annotations

from deepmnn.graph.ir import Attr, Graph, Node
from deepmnn.graph.rewrite import Rewrite, View, apply


def run(graph: Graph) -> int:
    """Returns the number of fused attentions."""
    view = View(graph)
    found = (_match(view, node) for node in graph.nodes if node.op == "attention")
    return apply(graph, view, [rewrite for rewrite in found if rewrite])


def _match(view: View, attention: Node) -> Rewrite | None:
    q, k, v = attention.inputs
    k_cache, v_cache = view.producer(k, "cache"), view.producer(v, "cache")
    if k_cache is None or v_cache is None or k_cache is v_cache:
        return None
    q_rope, k_rope = view.producer(q, "rope"), view.producer(k_cache.inputs[0], "rope")
    if q_rope is None or k_rope is None or not _same_rotation(view, q_rope, k_rope):
        return None
    q_norm = view.producer(q_rope.inputs[0], "rms_norm")
    k_norm = view.producer(k_rope.inputs[0], "rms_norm")
    heads, kv_heads = attention.int_attr("heads"), attention.int_attr("kv_heads")
    norms = [norm for norm in (q_norm, k_norm) if norm]
    if not (_per_head(q_norm, heads) and _per_head(k_norm, kv_heads)):
        norms = []  # a norm over the whole row stays where it is
    if len(norms) == 1 or len({norm.attrs["eps"] for norm in norms}) > 1:
        return None
    first_q, first_k = norms or (q_rope, k_rope)
    nodes = [*norms, q_rope, k_rope, k_cache, v_cache, attention]
    if (q_rope.int_attr("heads"), k_rope.int_attr("heads")) != (heads, kv_heads):
        return None
    if not view.encloses(nodes, attention.outputs):
        return None
    inputs = [first_q.inputs[0], first_k.inputs[0], v_cache.inputs[0], q_rope.inputs[1]]
    attrs: dict[str, Attr] = {**q_rope.attrs, **attention.attrs}
    attrs["eps"] = norms[0].float_attr("eps") if norms else 0.0
    attrs["k_cache"], attrs["v_cache"] = k_cache.attrs["cache"], v_cache.attrs["cache"]
    weights = tuple(name for norm in norms for name in norm.weights)
    sources = tuple(view.source(value) for value in inputs)
    new = Node("gqa_attention", sources, attention.outputs, weights, attrs, attention.name)
    return Rewrite(nodes, new)


def _same_rotation(view: View, a: Node, b: Node) -> bool:
    """Both ropes turn by the same angles at the same positions."""
    attrs = ("inv_freq", "rope_scale", "interleaved")
    return view.source(a.inputs[1]) == view.source(b.inputs[1]) and all(
        a.attrs[key] == b.attrs[key] for key in attrs
    )


def _per_head(norm: Node | None, heads: int) -> bool:
    return norm is None or norm.int_attr("heads") == heads
