"""Latent attention and the indexer that chooses its rows (DeepSeek-V3.2): a node with two caches.

    iq ─ split ─┬─ rope ── concat ─────────────────────┐
                └──────────┘                           │
    ik ─ layer_norm ─ split ─┬─ rope ── concat ─ cache ─ select_keys ─┐
                             └──────────┘              │              │
    iw ────────────────────────────────────────────────┘              │
    q, kv ─ what absorb_mla finds, without its attention ─ sparse_attention ─ y

                →   q, kv, positions, iq, ik, iw ─ sparse_mla_attention ─ y

While a sequence is no longer than what is chosen, the node does what mla_attention does, and scores
nothing. An indexer whose heads are rotated as a whole has no split and no concat.
"""

from __future__ import annotations

from dataclasses import dataclass

from deepmnn.graph.ir import Attr, Graph, Node
from deepmnn.graph.passes.absorb_mla import Latent, fuse, match
from deepmnn.graph.rewrite import Rewrite, View, apply


@dataclass(frozen=True)
class _Rotated:
    """split → rope → concat over the first columns of heads, or a rope alone."""

    rope: Node
    split: Node | None = None
    concat: Node | None = None

    @property
    def x(self) -> str:
        """What is rotated."""
        return (self.split or self.rope).inputs[0]

    @property
    def nodes(self) -> list[Node]:
        """All of them."""
        return [node for node in (self.rope, self.split, self.concat) if node]


@dataclass(frozen=True)
class _Indexer:
    """Everything up to the chosen rows."""

    select: Node
    queries: _Rotated
    keys: _Rotated
    norm: Node
    cache: Node

    @property
    def nodes(self) -> list[Node]:
        """What the fused node replaces."""
        return [*self.queries.nodes, *self.keys.nodes, self.norm, self.cache, self.select]


def run(graph: Graph) -> int:
    """Returns the number of attentions absorbed."""
    view = View(graph)
    found = (_match(graph, view, node) for node in graph.nodes if node.op == "sparse_attention")
    return apply(graph, view, [rewrite for rewrite in found if rewrite])


def _match(graph: Graph, view: View, attention: Node) -> Rewrite | None:
    latent, indexer = match(view, attention), _indexer(view, attention.inputs[3])
    if latent is None or indexer is None or not _consistent(view, latent, indexer):
        return None
    nodes = [*latent.nodes, *indexer.nodes, attention]
    if not view.encloses(nodes, attention.outputs):
        return None
    return Rewrite(nodes, _fuse(graph, view, attention, latent, indexer))


def _indexer(view: View, rows: str) -> _Indexer | None:
    select = view.producer(rows, "select_keys")
    cache = view.producer(select.inputs[2], "cache") if select else None
    if select is None or cache is None or select.int_attr("ratio") != 1:
        return None
    queries, keys = _rotated(view, select.inputs[0]), _rotated(view, cache.inputs[0])
    norm = view.producer(keys.x, "layer_norm") if keys else None
    if queries is None or keys is None or norm is None:
        return None
    return _Indexer(select, queries, keys, norm, cache)


def _rotated(view: View, value: str) -> _Rotated | None:
    rope = view.producer(value, "rope")
    if rope is not None:
        return _Rotated(rope)
    concat = view.producer(value, "concat")
    rope = view.producer(concat.inputs[0], "rope") if concat else None
    split = view.producer(rope.inputs[0], "split") if rope else None
    if concat is None or rope is None or split is None or len(concat.inputs) != 2:
        return None
    ends = (view.source(rope.inputs[0]), view.source(concat.inputs[1]))
    return _Rotated(rope, split, concat) if ends == split.outputs else None


def _consistent(view: View, latent: Latent, indexer: _Indexer) -> bool:
    """Head counts and angles agree wherever they are written twice."""
    ropes = (indexer.queries.rope, indexer.keys.rope)
    shared = ("inv_freq", "rope_scale")
    heads = indexer.select.int_attr("heads")
    return (
        all(node.int_attr("heads") == heads for node in indexer.queries.nodes)
        and all(node.int_attr("heads") == 1 for node in indexer.keys.nodes)
        and all(rope.attrs[key] == latent.rope.attrs[key] for rope in ropes for key in shared)
        and ropes[0].attrs["interleaved"] == ropes[1].attrs["interleaved"]
        and len({view.source(rope.inputs[1]) for rope in (*ropes, latent.rope)}) == 1
    )


def _fuse(graph: Graph, view: View, attention: Node, latent: Latent, indexer: _Indexer) -> Node:
    mla = fuse(graph, view, attention, latent)
    select, norm = indexer.select, indexer.norm
    attrs: dict[str, Attr] = {
        **mla.attrs,
        "index_n_heads": select.attrs["heads"],
        "index_head_dim": select.attrs["head_dim"],
        "index_topk": select.attrs["top_k"],
        "index_scale": select.attrs["scale"],
        "index_eps": norm.attrs["eps"],
        "index_interleaved": indexer.queries.rope.attrs["interleaved"],
        "index_cache": indexer.cache.attrs["cache"],
    }
    index = (indexer.queries.x, norm.inputs[0], select.inputs[1])
    inputs = (*mla.inputs, *(view.source(name) for name in index))
    weights = (*mla.weights, *norm.weights)
    return Node("sparse_mla_attention", inputs, attention.outputs, weights, attrs, attention.name)
