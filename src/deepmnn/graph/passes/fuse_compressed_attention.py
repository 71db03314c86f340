"""Attention to a window and to compressed entries becomes one op, with all it keeps in the cache.

    q ── rms_norm ─ rope ────────────────────────────────┐
    kv ─ rms_norm ─ rope ─ cache ──────────────────── window_attention ─ rope back ─ y
    kv ─── cache ─ compress ─ rms_norm ─ rope ─ [entries] ┤
    gate ─ cache ──┘                                      │
    q, weights, other entries ─ select_keys ─ [chosen] ───┘

    →   q, kv ─ sliding_attention ─ y
        q, kv, kv, gate ─ heavily_compressed_attention ─ y
        q, kv, kv, gate, q, weights, kv, gate ─ compressed_sparse_attention ─ y

A rope here is one of each head's last columns: split, rope, concat. The cache keeps a window of
rows in place of all of them, and one row of entries for many tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from deepmnn.graph.caches import CacheEntry
from deepmnn.graph.ir import Attr, Graph, Node
from deepmnn.graph.rewrite import Rewrite, View, apply

_TURN = ("inv_freq", "rope_scale", "interleaved")


@dataclass
class _Found:
    """What is collected of one attention: its nodes, and what all its parts must agree on."""

    nodes: list[Node] = field(default_factory=list)
    eps: set[Attr] = field(default_factory=set)
    turns: set[tuple[Attr, ...]] = field(default_factory=set)


@dataclass(frozen=True)
class _Entries:
    """A compressor: what it reads, its weights, and how wide its entries are.

    cache: the entry that kept the first of its inputs, which the fused op's are named after.
    """

    inputs: tuple[str, str]
    weights: tuple[str, str]
    compress: Node
    cache: str
    width: int


def run(graph: Graph) -> int:
    """Returns the number of fused attentions."""
    view = View(graph)
    rewrites: list[Rewrite] = []
    caches: dict[str, CacheEntry] = {}
    for node in graph.nodes:
        found = _match(graph, view, node, caches) if node.op == "window_attention" else None
        if found is not None:
            rewrites.append(found)
    graph.caches |= caches
    return apply(graph, view, rewrites)


def _match(
    graph: Graph, view: View, attention: Node, caches: dict[str, CacheEntry]
) -> Rewrite | None:
    found, a = _Found([attention]), attention.attrs
    heads, d = attention.int_attr("heads"), attention.int_attr("head_dim")
    q = _normed(view, found, _turned(view, found, attention.inputs[0], heads, "positions"), heads)
    kept = view.producer(attention.inputs[1], "cache")
    kv = _turned(view, found, kept.inputs[0], 1, "positions") if kept else None
    norm = view.producer(kv, "rms_norm") if kv else None
    out = _turned_back(view, found, attention.outputs[0], heads)
    if q is None or kept is None or norm is None or not _weighted(norm) or out is None:
        return None
    found.nodes += [kept, norm]
    found.eps.add(norm.attrs["eps"])
    inputs, weights = [q, norm.inputs[0]], [*norm.weights, *attention.weights]
    attrs: dict[str, Attr] = {key: a[key] for key in ("heads", "head_dim", "window", "scale")}
    attrs["cache"] = kept.attrs["cache"]
    added = {str(kept.attrs["cache"]): CacheEntry(d, window=attention.int_attr("window"))}
    op, ratio = "sliding_attention", attention.int_attr("ratio")
    if len(attention.inputs) > 2:
        entries = _entries(graph, view, found, attention.inputs[2])
        if entries is None or entries.width != d or entries.compress.attrs["ratio"] != ratio:
            return None
        sparse, overlapping = len(attention.inputs) > 3, bool(entries.compress.attrs["overlapping"])
        if sparse != overlapping:
            return None
        op = "compressed_sparse_attention" if sparse else "heavily_compressed_attention"
        inputs += entries.inputs
        weights += entries.weights
        attrs |= {"ratio": ratio} | _keep(entries, "", added)
        if sparse and not _choose(graph, view, found, attention, inputs, weights, attrs, added):
            return None
    if len(found.eps) != 1 or len(found.turns) != 1:
        return None
    attrs["eps"] = found.eps.pop()
    attrs |= dict(zip(_TURN, found.turns.pop(), strict=True))
    inv_freq = attrs["inv_freq"]
    if not isinstance(inv_freq, tuple):
        return None
    attrs["qk_rope_head_dim"] = 2 * len(inv_freq)
    if not view.encloses(found.nodes, (out,)):
        return None
    caches |= added
    sources = (*(view.source(value) for value in inputs), "positions")
    return Rewrite(found.nodes, Node(op, sources, (out,), tuple(weights), attrs, attention.name))


def _choose(
    graph: Graph,
    view: View,
    found: _Found,
    attention: Node,
    inputs: list[str],
    weights: list[str],
    attrs: dict[str, Attr],
    added: dict[str, CacheEntry],
) -> bool:
    """Adds what chooses entries; False where it is something else."""
    select = view.producer(attention.inputs[3], "select_keys")
    if select is None or select.attrs["ratio"] != attention.attrs["ratio"]:
        return False
    q = _turned(view, found, select.inputs[0], select.int_attr("heads"), "positions")
    keys = _entries(graph, view, found, select.inputs[2])
    same = keys is not None and all(
        keys.compress.attrs[key] == value
        for key, value in (("ratio", attention.attrs["ratio"]), ("overlapping", 1))
    )
    if q is None or keys is None or not same or keys.width != select.attrs["head_dim"]:
        return False
    found.nodes.append(select)
    inputs += [q, select.inputs[1], *keys.inputs]
    weights += keys.weights
    attrs |= {
        "index_heads": select.attrs["heads"],
        "index_dim": select.attrs["head_dim"],
        "top_k": select.attrs["top_k"],
        "index_scale": select.attrs["scale"],
    }
    attrs |= _keep(keys, "index_", added)
    return True


def _keep(entries: _Entries, prefix: str, added: dict[str, CacheEntry]) -> dict[str, Attr]:
    """The cache entries of a compressor."""
    ratio, windows = (
        entries.compress.int_attr("ratio"),
        1 + entries.compress.int_attr("overlapping"),
    )
    rows, kept = f"{entries.cache}.rows", f"{entries.cache}.entries"
    width = 2 * windows * entries.width
    added[rows] = CacheEntry(width, window=windows * ratio, exact=True)
    added[kept] = CacheEntry(entries.width, ratio)
    return {f"{prefix}rows": rows, f"{prefix}entries": kept}


def _entries(graph: Graph, view: View, found: _Found, value: str) -> _Entries | None:
    """The compressor whose rotated entries a value is."""
    producer = view.producer(value, "concat", "rope")
    rope = _rope_of(view, producer) if producer else None
    compress = None
    if rope is not None:
        compress = view.producer(rope.inputs[1], "compress")
    normed = _turned(view, found, value, 1, compress.outputs[1]) if compress else None
    norm = view.producer(normed, "rms_norm") if normed else None
    if compress is None or norm is None or not _weighted(norm):
        return None
    caches = [view.producer(x, "cache") for x in compress.inputs]
    if view.source(norm.inputs[0]) != compress.outputs[0] or None in caches:
        return None
    kept = [cache for cache in caches if cache]
    found.nodes += [*kept, compress, norm]
    found.eps.add(norm.attrs["eps"])
    return _Entries(
        (kept[0].inputs[0], kept[1].inputs[0]),
        (*compress.weights, *norm.weights),  # type: ignore[arg-type]
        compress,
        str(kept[0].attrs["cache"]),
        graph.values[compress.outputs[0]].width,
    )


def _weighted(norm: Node) -> bool:
    return bool(norm.weights) and norm.attrs["heads"] == 1


def _normed(view: View, found: _Found, value: str | None, heads: int) -> str | None:
    """What a norm of heads without a weight reads."""
    norm = view.producer(value, "rms_norm") if value else None
    if norm is None or norm.weights or norm.attrs["heads"] != heads:
        return None
    found.nodes.append(norm)
    found.eps.add(norm.attrs["eps"])
    return norm.inputs[0]


def _rope_of(view: View, node: Node) -> Node | None:
    """The rope of last columns that a concat ends with, or itself."""
    return node if node.op == "rope" else view.producer(node.inputs[-1], "rope")


def _turned(view: View, found: _Found, value: str, heads: int, positions: str) -> str | None:
    """What is rotated to a value."""
    last = view.producer(value, "concat", "rope")
    rope = _rope_of(view, last) if last else None
    if last is None or rope is None or view.source(rope.inputs[1]) != positions:
        return None
    if rope.attrs["heads"] != heads:
        return None
    found.turns.add(tuple(rope.attrs[key] for key in _TURN))
    if last is rope:
        found.nodes.append(rope)
        return rope.inputs[0]
    split = view.producer(rope.inputs[0], "split")
    if split is None or not _is_part(view, split, rope, last, heads):
        return None
    found.nodes += [split, rope, last]
    return split.inputs[0]


def _is_part(view: View, split: Node, rope: Node, concat: Node, heads: int) -> bool:
    """Whether a concat puts together again what a split took apart, its second part rotated."""
    parts = (*split.outputs[:1], *rope.outputs)
    return (
        len(split.outputs) == 2
        and tuple(view.source(x) for x in concat.inputs) == parts
        and view.source(rope.inputs[0]) == split.outputs[1]
        and {split.attrs["heads"], concat.attrs["heads"]} == {heads}
    )


def _turned_back(view: View, found: _Found, value: str, heads: int) -> str | None:
    """The value that is this one rotated by minus the positions."""
    readers = view.readers(value)
    first = readers[0] if len(readers) == 1 and not view.escapes(value) else None
    if first is None or first.op not in ("split", "rope"):
        return None
    rope = first if first.op == "rope" else view.reader(first.outputs[-1], "rope")
    if rope is None or view.source(rope.inputs[1]) != "positions" or rope.attrs["heads"] != heads:
        return None
    inv_freq = rope.attrs["inv_freq"]
    if not isinstance(inv_freq, tuple):
        return None
    turn = (tuple(-float(f) for f in inv_freq), rope.attrs["rope_scale"], rope.attrs["interleaved"])
    found.turns.add(turn)
    if first is rope:
        found.nodes.append(rope)
        return rope.outputs[0]
    concat = view.reader(rope.outputs[0], "concat")
    if concat is None or not _is_part(view, first, rope, concat, heads):
        return None
    found.nodes += [first, rope, concat]
    return concat.outputs[0]
