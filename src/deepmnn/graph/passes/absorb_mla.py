"""Multi-head latent attention over the latents themselves: keys and values are never stored.

    q ─ split ─┬─ rope ─┐
               └────── concat ──────────────────────────────────────────────┐
    kv ─ split ─┬─ rms_norm ─┐                                              │
                └─ rope ─── concat ─ cache ─ split ─┬─ kv_b ─ split ─┬─ v ─ attention ─ y
                                                    └─ broadcast ─ concat ─ k ─┘

                            →   q, kv, positions ─ mla_attention ─ y

kv_b holds, per head, the key half W_UK and the value half W_UV (DeepSeek-V2, arXiv:2405.04434,
section 2.1): q·(W_UK c) = (W_UKᵀ q)·c, so the query moves to the latent space instead of every
cached latent moving to the head's. Both forms of the op read the two halves as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

from deepmnn.graph.ir import Attr, Graph, Node
from deepmnn.graph.rewrite import Rewrite, View, add_weight, apply
from deepmnn.graph.weights import PadHeads, Slice


@dataclass(frozen=True)
class _Queries:
    """split → rope → concat over q."""

    split: Node
    rope: Node
    concat: Node


@dataclass(frozen=True)
class _Latents:
    """split → rms_norm, rope → concat → cache: one row per token."""

    split: Node
    norm: Node
    rope: Node
    concat: Node
    cache: Node


@dataclass(frozen=True)
class _Expansion:
    """split of the cached row → kv_b → split, broadcast → concat: keys and values per head."""

    split: Node
    kv_b: Node
    halves: Node
    broadcast: Node | None
    concat: Node


@dataclass(frozen=True)
class Latent:
    """All of a latent attention but its last node."""

    queries: _Queries
    latents: _Latents
    expansion: _Expansion

    @property
    def nodes(self) -> list[Node]:
        """What the fused node replaces, beside the attention itself."""
        parts = (self.queries, self.latents, self.expansion)
        return [node for part in parts for node in vars(part).values() if node]

    @property
    def rope(self) -> Node:
        """The rotation of queries, whose angles are those of keys."""
        return self.queries.rope


def run(graph: Graph) -> int:
    """Returns the number of attentions absorbed."""
    view = View(graph)
    found = (_match(graph, view, node) for node in graph.nodes if node.op == "attention")
    return apply(graph, view, [rewrite for rewrite in found if rewrite])


def _match(graph: Graph, view: View, attention: Node) -> Rewrite | None:
    latent = match(view, attention)
    if latent is None:
        return None
    nodes = [*latent.nodes, attention]
    if not view.encloses(nodes, attention.outputs):
        return None
    return Rewrite(nodes, fuse(graph, view, attention, latent))


def match(view: View, attention: Node) -> Latent | None:
    """The latent attention around a node that reads q, k, v first; None where there is none."""
    q, k, v = attention.inputs[:3]
    queries, expansion = _queries(view, q), _expansion(view, k, v)
    latents = _latents(view, expansion.split.inputs[0]) if expansion else None
    if queries is None or expansion is None or latents is None:
        return None
    consistent = _consistent(view, attention, queries, latents, expansion)
    return Latent(queries, latents, expansion) if consistent else None


def _queries(view: View, q: str) -> _Queries | None:
    concat = view.producer(q, "concat")
    if concat is None or len(concat.inputs) != 2:
        return None
    rope = view.producer(concat.inputs[1], "rope")
    split = view.producer(rope.inputs[0], "split") if rope else None
    if rope is None or split is None:
        return None
    ends = (view.source(concat.inputs[0]), view.source(rope.inputs[0]))
    return _Queries(split, rope, concat) if ends == split.outputs else None


def _latents(view: View, row: str) -> _Latents | None:
    cache = view.producer(row, "cache")
    concat = view.producer(cache.inputs[0], "concat") if cache else None
    if cache is None or concat is None or len(concat.inputs) != 2:
        return None
    norm, rope = (
        view.producer(concat.inputs[0], "rms_norm"),
        view.producer(concat.inputs[1], "rope"),
    )
    split = view.producer(norm.inputs[0], "split") if norm else None
    if norm is None or rope is None or split is None:
        return None
    ends = (view.source(norm.inputs[0]), view.source(rope.inputs[0]))
    return _Latents(split, norm, rope, concat, cache) if ends == split.outputs else None


def _expansion(view: View, k: str, v: str) -> _Expansion | None:
    concat, halves = view.producer(k, "concat"), view.producer(v, "split")
    kv_b = view.producer(halves.inputs[0], "linear") if halves else None
    if concat is None or halves is None or kv_b is None or len(concat.inputs) != 2:
        return None
    split = view.producer(kv_b.inputs[0], "split")
    broadcast = view.producer(concat.inputs[1], "broadcast")
    shared_key = broadcast.inputs[0] if broadcast else concat.inputs[1]  # one head: no broadcast
    if split is None or len(kv_b.weights) != 1 or len(kv_b.outputs) != 1:
        return None
    halves_ends = (view.source(concat.inputs[0]), view.source(v))
    split_ends = (view.source(kv_b.inputs[0]), view.source(shared_key))
    if halves_ends != halves.outputs or split_ends != split.outputs:
        return None
    return _Expansion(split, kv_b, halves, broadcast, concat)


def _consistent(
    view: View, attention: Node, queries: _Queries, latents: _Latents, expansion: _Expansion
) -> bool:
    """Head counts, sizes and angles agree wherever they are written twice."""
    heads = attention.int_attr("heads")
    per_head = (queries.split, queries.rope, queries.concat, expansion.halves, expansion.concat)
    single = (latents.split, latents.norm, latents.rope, latents.concat, expansion.split)
    angles = ("inv_freq", "rope_scale", "interleaved")
    return (
        attention.int_attr("kv_heads") == heads
        and all(node.int_attr("heads") == heads for node in per_head)
        and all(node.int_attr("heads") == 1 for node in single)
        and latents.split.attrs["sizes"] == expansion.split.attrs["sizes"]
        and all(queries.rope.attrs[key] == latents.rope.attrs[key] for key in angles)
        and view.source(queries.rope.inputs[1]) == view.source(latents.rope.inputs[1])
    )


def fuse(graph: Graph, view: View, attention: Node, latent: Latent) -> Node:
    """The node that computes the whole of it; its matrices are added to the graph."""
    queries, latents, expansion = latent.queries, latent.latents, latent.expansion
    heads = attention.int_attr("heads")
    nope, rope = (int(size) for size in _sizes(queries.split))
    rank, value = int(_sizes(latents.split)[0]), int(_sizes(expansion.halves)[1])
    attrs: dict[str, Attr] = {
        "heads": heads,
        "kv_lora_rank": rank,
        "qk_nope_head_dim": nope,
        "qk_rope_head_dim": rope,
        "v_head_dim": value,
        "scale": attention.attrs["scale"],
        "eps": latents.norm.attrs["eps"],
        "inv_freq": queries.rope.attrs["inv_freq"],
        "rope_scale": queries.rope.attrs["rope_scale"],
        "interleaved": queries.rope.attrs["interleaved"],
        "cache": latents.cache.attrs["cache"],
    }
    kv_b = graph.weights[expansion.kv_b.weights[0]]
    stem = kv_b.name.removesuffix(".weight")
    halves = {
        "w_uk": PadHeads(Slice(kv_b.expr, 0, nope, heads), heads),
        "w_uv": PadHeads(Slice(kv_b.expr, nope, nope + value, heads), heads),
    }
    up = [
        add_weight(graph, kv_b, f"{stem}.{name}", expr, "latent") for name, expr in halves.items()
    ]
    inputs = (queries.split.inputs[0], latents.split.inputs[0], queries.rope.inputs[1])
    sources = tuple(view.source(name) for name in inputs)
    weights = (*latents.norm.weights, *up)
    return Node("mla_attention", sources, attention.outputs, weights, attrs, attention.name)


def _sizes(split: Node) -> tuple[int, ...]:
    sizes = split.attrs["sizes"]
    return sizes if isinstance(sizes, tuple) else ()  # type: ignore[return-value]
