"""The op table: all there is to know about each op of docs/ops.md, but for what it computes.

Patterns are regular expressions over one letter each: values "f" (f32) and "i" (i32), rows "t"
(tokens), "c" (context) and "r" (rows), weights "m" (matrix) and "v" (vector).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from deepmnn.formats import BLOCK_ROWS
from deepmnn.graph import cost
from deepmnn.graph.caches import CacheEntry
from deepmnn.graph.call import Call
from deepmnn.graph.ir import Attr, Graph, Node

Check = tuple[str, object, object]
"""What is compared, what it is, what it must be."""
Rule = Callable[[Call], Iterator[Check]]

Reading = Literal["whole", "in_order", "routed", "looked_up"]
"""How a step reads a weight: every worker all of it (a vector); a matrix from first to last row, a
part for each worker; only if routing chooses it; a few rows, those of the step's ids."""


@dataclass(frozen=True)
class Signature:
    """One op.

    Attributes:
        rule: the sizes that must agree, once everything else does.
        rows: pattern of inputs and outputs ("tcc>t"); empty: all the same.
        attrs: name → kind, a key of KINDS or the choices a string has, separated by "|".
        matrices: how its matrices are read; vectors are read whole.
        cost: what it multiplies.
        is_view: whether its output is its input's data, which does not move.
        sums_choices: whether it reads rows for each choice of an expert, and gives their sum.
        chooses_keys: whether its integers are rows of the cache or positions, not experts.
    """

    inputs: str
    outputs: str
    rule: Rule
    weights: str = ""
    rows: str = ""
    attrs: dict[str, str] = field(default_factory=dict)
    matrices: Reading = "in_order"
    cost: cost.CostRule = cost.every_matrix
    is_view: bool = False
    sums_choices: bool = False
    chooses_keys: bool = False

    @property
    def cache_attrs(self) -> tuple[str, ...]:
        """The attributes that name the cache entries it writes."""
        return tuple(name for name, kind in self.attrs.items() if kind == "cache")

    def readings(self, shapes: Sequence[tuple[int, ...]]) -> tuple[Reading, ...]:
        """How each weight is read, given their shapes."""
        return tuple(self.matrices if len(shape) == 2 else "whole" for shape in shapes)


def _is_int(value: Attr, low: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def _is_float(value: Attr, low: float = -math.inf) -> bool:
    return isinstance(value, float) and math.isfinite(value) and value >= low


KINDS: dict[str, Callable[[Attr], bool]] = {
    "size": lambda value: _is_int(value, 1),
    "count": lambda value: _is_int(value, 1),  # that no width follows from
    "flag": lambda value: _is_int(value) and value in (0, 1),
    "number": _is_float,
    "eps": lambda value: _is_float(value, 0.0),
    "sizes": lambda value: isinstance(value, tuple) and all(_is_int(v, 1) for v in value),
    "numbers": lambda value: isinstance(value, tuple) and all(_is_float(v) for v in value),
    "cache": lambda value: isinstance(value, str) and value != "",
}


def padded(rows: int) -> int:
    """Rows rounded up to whole blocks of the packed layouts."""
    return math.ceil(rows / BLOCK_ROWS) * BLOCK_ROWS


def _widths(c: Call, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> Iterator[Check]:
    yield "input widths", tuple(value.width for value in c.x), inputs
    yield "output widths", tuple(value.width for value in c.y), outputs


def _same(c: Call) -> Iterator[Check]:
    width = c.x[0].width
    yield from _widths(c, (width,) * len(c.x), (width,) * len(c.y))


def _embedding(c: Call) -> Iterator[Check]:
    yield from _widths(c, (1,), (c.w[0][1],))


def _linear(c: Call) -> Iterator[Check]:
    rows = sum(value.width for value in c.y)
    yield "weight shape", c.w[0], (rows, c.x[0].width)
    if len(c.w) == 2:
        yield "bias shape", c.w[1], (rows,)


def _rms_norm(c: Call) -> Iterator[Check]:
    yield from _same(c)
    yield "width left over by heads", c.x[0].width % c.a["heads"], 0
    if c.w:
        yield "heads times weight size", c.a["heads"] * c.w[0][0], c.x[0].width


def _split(c: Call) -> Iterator[Check]:
    widths = tuple(c.a["heads"] * size for size in c.a["sizes"])
    yield from _widths(c, (sum(widths),), widths)


def _concat(c: Call) -> Iterator[Check]:
    widths = tuple(value.width for value in c.x)
    yield "width left over by heads", [width % c.a["heads"] for width in widths], [0] * len(widths)
    yield from _widths(c, widths, (sum(widths),))


def _broadcast(c: Call) -> Iterator[Check]:
    yield from _widths(c, (c.x[0].width,), (c.a["heads"] * c.x[0].width,))


def _rope(c: Call) -> Iterator[Check]:
    width = 2 * c.a["heads"] * len(c.a["inv_freq"])
    yield from _widths(c, (width, 1), (width,))


def _cache(c: Call) -> Iterator[Check]:
    yield from _same(c)
    yield f"cache {c.a['cache']!r}", c.caches.get(c.a["cache"]), CacheEntry(c.x[0].width)


def _attention(c: Call) -> Iterator[Check]:
    q, k, v = (
        c.a[heads] * c.a[size]
        for heads, size in (
            ("heads", "head_dim"),
            ("kv_heads", "head_dim"),
            ("kv_heads", "v_head_dim"),
        )
    )
    yield "heads left over by kv_heads", c.a["heads"] % c.a["kv_heads"], 0
    tail = (1,) if len(c.x) == 4 else ()  # positions
    yield from _widths(c, (q, k, v, *tail), (c.a["heads"] * c.a["v_head_dim"],))


def _gqa_attention(c: Call) -> Iterator[Check]:
    yield from _attention(c)
    yield "norm shapes", c.w, ((c.a["head_dim"],),) * len(c.w)
    yield "frequencies", 2 * len(c.a["inv_freq"]), c.a["head_dim"]
    for key, value in (("k_cache", c.x[1]), ("v_cache", c.x[2])):
        yield f"cache {c.a[key]!r}", c.caches.get(c.a[key]), CacheEntry(value.width)


def _mla_attention(c: Call) -> Iterator[Check]:
    a, heads, rank = c.a, c.a["heads"], c.a["kv_lora_rank"]
    nope, rope, v = a["qk_nope_head_dim"], a["qk_rope_head_dim"], a["v_head_dim"]
    yield from _widths(c, (heads * (nope + rope), rank + rope, 1), (heads * v,))
    uk, uv = (heads * padded(nope), rank), (heads * padded(v), rank)
    yield "weight shapes", c.w, ((rank,), uk, uv)
    yield "frequencies", 2 * len(a["inv_freq"]), rope
    yield f"cache {a['cache']!r}", c.caches.get(a["cache"]), CacheEntry(rank + rope)


def _sparse_mla_attention(c: Call) -> Iterator[Check]:
    heads, dim = c.a["index_n_heads"], c.a["index_head_dim"]
    mla = replace(c, x=c.x[:3], w=c.w[:3])
    yield from _mla_attention(mla)
    yield "index widths", tuple(value.width for value in c.x[3:]), (heads * dim, dim, heads)
    yield "index norm shapes", c.w[3:], ((dim,),) * 2
    yield "index heads hold the rotation", 2 * len(c.a["inv_freq"]) <= dim, True
    yield f"cache {c.a['index_cache']!r}", c.caches.get(c.a["index_cache"]), CacheEntry(dim)


def _bias_add(c: Call) -> Iterator[Check]:
    yield from _same(c)
    yield "bias shape", c.w[0], (c.x[0].width,)


def _groups(c: Call, experts: int) -> Iterator[Check]:
    n_group, smallest = c.a["n_group"], 2 if c.a["group_score"] == "top2_sum" else 1
    yield "experts left over by n_group", experts % n_group, 0
    if n_group > 1:
        yield "experts in a group are enough", experts // n_group >= smallest, True
    yield "topk_group is at most n_group", c.a["topk_group"] <= n_group, True


def _group_limit(c: Call) -> Iterator[Check]:
    yield from _same(c)
    yield from _groups(c, c.x[0].width)


def _top_k(c: Call) -> Iterator[Check]:
    yield "top_k is at most the scores", c.a["top_k"] <= c.x[0].width, True
    yield from _widths(c, (c.x[0].width,), (c.a["top_k"],))


def _gather(c: Call) -> Iterator[Check]:
    yield "output width", c.y[0].width, c.x[1].width


def _expert_linear(c: Call) -> Iterator[Check]:
    k, (rows, cols) = c.a["top_k"], c.w[0]
    yield "weight shapes", set(c.w), {(rows, cols)}
    yield "top_k is at most the experts", k <= len(c.w), True
    yield from _widths(c, (cols * (k if c.a["per_choice"] else 1), k), (k * rows,))


def _combine(c: Call) -> Iterator[Check]:
    k, hidden = c.a["top_k"], c.y[0].width
    yield from _widths(c, (k * hidden, k), (hidden,))


def _add_rms_norm(c: Call) -> Iterator[Check]:
    yield from _same(c)
    yield "weight shape", c.w[0], (c.x[0].width,)


def _swiglu(c: Call) -> Iterator[Check]:
    size = c.a["intermediate_size"]
    yield "weight shape", c.w[0], (2 * padded(size), c.x[0].width)
    yield "output width", c.y[0].width, size


def _route(c: Call) -> Iterator[Check]:
    experts, k = c.x[0].width, c.a["top_k"]
    yield "bias shape", c.w, ((experts,),) * len(c.w)
    yield "top_k is at most the experts", k <= experts, True
    yield from _groups(c, experts)
    yield from _widths(c, (experts,), (k, k))


def _moe(c: Call) -> Iterator[Check]:
    experts, k, size, hidden = c.a["experts"], c.a["top_k"], c.a["intermediate_size"], c.x[0].width
    yield "weight shapes", c.w, ((2 * padded(size), hidden), (hidden, size)) * experts
    yield "top_k is at most the experts", k <= experts, True
    yield from _widths(c, (hidden, k, k, hidden)[: len(c.x)], (hidden,))


def _layer_norm(c: Call) -> Iterator[Check]:
    yield from _same(c)
    yield "weight and bias shapes", c.w, ((c.x[0].width,),) * 2


def _select_keys(c: Call) -> Iterator[Check]:
    heads, dim = c.a["heads"], c.a["head_dim"]
    yield from _widths(c, (heads * dim, heads, dim), (c.a["top_k"],))


def _sparse_attention(c: Call) -> Iterator[Check]:
    yield from _attention(replace(c, x=c.x[:3]))


def _gain(c: Call) -> Iterator[Check]:
    yield from _same(c)
    yield "weight shape", c.w[0] in ((1,), (c.x[0].width,)), True


def _lookup(c: Call) -> Iterator[Check]:
    yield from _widths(c, (1,), (c.a["top_k"],))
    yield "table left over by top_k", c.w[0][0] % c.a["top_k"], 0


def _mix(c: Call) -> Iterator[Check]:
    rows, (a, x) = c.a["rows"], (value.width for value in c.x)
    yield "matrix left over by rows", a % rows, 0
    yield "input left over by columns", x % max(1, a // rows), 0
    yield "output width", c.y[0].width, rows * (x // max(1, a // rows))


def _sinkhorn(c: Call) -> Iterator[Check]:
    yield from _widths(c, (c.a["size"] ** 2,), (c.a["size"] ** 2,))


def _compress(c: Call) -> Iterator[Check]:
    width, halves = c.x[0].width, 2 if c.a["overlapping"] else 1
    yield "width left over by halves", width % halves, 0
    yield from _widths(c, (width, width), (width // halves, 1))
    yield "weight shape", c.w[0], (c.a["ratio"] * width,)


def _window_attention(c: Call) -> Iterator[Check]:
    d, heads = c.a["head_dim"], c.a["heads"]
    chosen = tuple(value.width for value in c.x[3:4])
    yield from _widths(c, (heads * d, *(d,) * len(c.x[1:3]), *chosen), (heads * d,))
    yield "weight shape", c.w[0], (heads,)


def _hash_route(c: Call) -> Iterator[Check]:
    k = c.a["top_k"]
    yield from _widths(c, (c.a["experts"], 1), (k, k))
    yield "top_k is at most the experts", k <= c.a["experts"], True
    yield "table left over by top_k", c.w[0][0] % k, 0


def _hyper_in(c: Call) -> Iterator[Check]:
    count, width = c.a["streams"], c.x[0].width
    yield "width left over by streams", width % count, 0
    yield from _widths(c, (width,), (width // count, count, count * count))
    rows = count * (2 + count)
    yield "weight shapes", c.w, ((rows, width), (3,), (rows,), (width // count,))


def _hyper_out(c: Call) -> Iterator[Check]:
    count, width = c.a["streams"], c.x[0].width
    streams = count * width
    yield from _widths(c, (width, count, count * count, streams), (streams,))


def _core(c: Call, widths: tuple[int, ...], weights: tuple[int, ...]) -> Iterator[Check]:
    """What the fused attentions share. widths, weights: of what entries need besides."""
    a, heads, d = c.a, c.a["heads"], c.a["head_dim"]
    yield from _widths(c, (heads * d, d, *widths, 1), (heads * d,))
    yield "weight shapes", c.w, ((d,), (heads,), *((size,) for size in weights))
    yield "frequencies", 2 * len(a["inv_freq"]), a["qk_rope_head_dim"]
    yield "rotated columns fit a head", a["qk_rope_head_dim"] <= d, True
    yield _entry(c, "cache", CacheEntry(d, window=a["window"]))


def _entry(c: Call, key: str, entry: CacheEntry) -> Check:
    return f"cache {c.a[key]!r}", c.caches.get(c.a[key]), entry


def _kept(c: Call, keys: tuple[str, str], width: int, windows: int) -> Iterator[Check]:
    """The cache entries of a compressor: what it reads, and the entries that it makes."""
    ratio = c.a["ratio"]
    rows = CacheEntry(2 * windows * width, window=windows * ratio, exact=True)
    yield _entry(c, keys[0], rows)
    yield _entry(c, keys[1], CacheEntry(width, ratio))


def _sliding(c: Call) -> Iterator[Check]:
    yield from _core(c, (), ())


def _heavily(c: Call) -> Iterator[Check]:
    d = c.a["head_dim"]
    yield from _core(c, (d, d), (c.a["ratio"] * d, d))
    yield from _kept(c, ("rows", "entries"), d, 1)


def _sparse(c: Call) -> Iterator[Check]:
    d, ratio, heads, index = (c.a[k] for k in ("head_dim", "ratio", "index_heads", "index_dim"))
    widths = (2 * d, 2 * d, heads * index, heads, 2 * index, 2 * index)
    yield from _core(c, widths, (ratio * 2 * d, d, ratio * 2 * index, index))
    yield "rotated columns fit a key", c.a["qk_rope_head_dim"] <= index, True
    yield from _kept(c, ("rows", "entries"), d, 2)
    yield from _kept(c, ("index_rows", "index_entries"), index, 2)


def _grouped_linear(c: Call) -> Iterator[Check]:
    groups, (rows, cols) = c.a["groups"], c.w[0]
    yield "rows left over by groups", rows % groups, 0
    yield from _widths(c, (groups * cols,), (rows,))


_ROPE = {"inv_freq": "numbers", "rope_scale": "number", "interleaved": "flag"}
_HEADS = {"heads": "size", "kv_heads": "size", "head_dim": "size", "v_head_dim": "size"}
_SCORING = "softmax|sigmoid|sqrtsoftplus"
_GROUPS = {"n_group": "size", "topk_group": "size", "group_score": "max|top2_sum"}

_LATENT = {
    "heads": "size",
    "kv_lora_rank": "size",
    "qk_nope_head_dim": "size",
    "qk_rope_head_dim": "size",
    "v_head_dim": "size",
    "scale": "number",
    "eps": "eps",
    **_ROPE,
    "cache": "cache",
}
_CORE = {
    "heads": "size",
    "head_dim": "size",
    "qk_rope_head_dim": "size",
    "window": "size",
    "scale": "number",
    "eps": "eps",
    **_ROPE,
    "cache": "cache",
}
_ENTRIES = {"ratio": "size", "rows": "cache", "entries": "cache"}
_INDEX = {
    "index_heads": "size",
    "index_dim": "size",
    "top_k": "count",
    "index_scale": "number",
    "index_rows": "cache",
    "index_entries": "cache",
}

SIGNATURES: dict[str, Signature] = {
    "embedding": Signature("i", "f", _embedding, "m", matrices="looked_up", cost=cost.nothing),
    "linear": Signature("f", "f+", _linear, "mv?"),
    "rms_norm": Signature("f", "f", _rms_norm, "v?", attrs={"eps": "eps", "heads": "size"}),
    "reshape": Signature("f", "f", _same, is_view=True),
    "split": Signature("f", "f+", _split, attrs={"sizes": "sizes", "heads": "size"}),
    "concat": Signature("f+", "f", _concat, attrs={"heads": "size"}),
    "broadcast": Signature("f", "f", _broadcast, attrs={"heads": "size"}),
    "rope": Signature("fi", "f", _rope, attrs={"heads": "size", **_ROPE}),
    "cache": Signature("f", "f", _cache, rows="t>c", attrs={"cache": "cache"}),
    "attention": Signature(
        "fff",
        "f",
        _attention,
        rows="tcc>t",
        attrs={**_HEADS, "scale": "number"},
        cost=cost.grouped_attention,
    ),
    "silu": Signature("f", "f", _same),
    "sigmoid": Signature("f", "f", _same),
    "softmax": Signature("f", "f", _same),
    "add": Signature("ff", "f", _same),
    "mul": Signature("ff", "f", _same),
    "bias_add": Signature("f", "f", _bias_add, "v"),
    "scale": Signature("f", "f", _same, attrs={"factor": "number"}),
    "group_limit": Signature("f", "f", _group_limit, attrs=_GROUPS),
    "top_k": Signature("f", "i", _top_k, attrs={"top_k": "size"}),
    "gather": Signature("fi", "f", _gather),
    "normalize": Signature("f", "f", _same, attrs={"eps": "eps"}),
    "expert_linear": Signature(
        "fi",
        "f",
        _expert_linear,
        "m+",
        attrs={"top_k": "size", "per_choice": "flag"},
        matrices="routed",
        cost=cost.one_matrix_experts,
    ),
    "combine": Signature("ff", "f", _combine, attrs={"top_k": "size"}, sums_choices=True),
    "select_rows": Signature("f", "f", _same, rows="t>r"),
    "add_rms_norm": Signature("ff", "ff", _add_rms_norm, "v", attrs={"eps": "eps"}),
    "swiglu": Signature(
        "f", "f", _swiglu, "m", attrs={"intermediate_size": "size", "limit": "eps"}
    ),
    "gqa_attention": Signature(
        "fffi",
        "f",
        _gqa_attention,
        "(vv)?",
        rows="tttt>t",
        attrs={
            **_HEADS,
            **_ROPE,
            "scale": "number",
            "eps": "eps",
            "k_cache": "cache",
            "v_cache": "cache",
        },
        cost=cost.grouped_attention,
    ),
    "mla_attention": Signature(
        "ffi",
        "f",
        _mla_attention,
        "vmm",
        rows="ttt>t",
        attrs=_LATENT,
        cost=cost.latent_attention,
    ),
    "route": Signature(
        "f",
        "if",
        _route,
        "v?",
        attrs={
            "scoring": _SCORING,
            **_GROUPS,
            "top_k": "size",
            "normalize": "flag",
            "eps": "eps",
            "factor": "number",
        },
    ),
    "moe": Signature(
        "fiff?",
        "f",
        _moe,
        "(mm)+",
        attrs={"experts": "size", "top_k": "size", "intermediate_size": "size", "limit": "eps"},
        matrices="routed",
        cost=cost.experts,
        sums_choices=True,
    ),
    "layer_norm": Signature("f", "f", _layer_norm, "vv", attrs={"eps": "eps"}),
    "select_keys": Signature(
        "fff",
        "i",
        _select_keys,
        rows="ttc>t",
        attrs={
            "heads": "size",
            "head_dim": "size",
            "top_k": "size",
            "ratio": "count",
            "scale": "number",
        },
        cost=cost.key_scores,
        chooses_keys=True,
    ),
    "sparse_attention": Signature(
        "fffi",
        "f",
        _sparse_attention,
        rows="tcct>t",
        attrs={**_HEADS, "scale": "number"},
        cost=cost.sparse_attention,
    ),
    "sparse_mla_attention": Signature(
        "ffifff",
        "f",
        _sparse_mla_attention,
        "vmmvv",
        rows="tttttt>t",
        attrs={
            **_LATENT,
            "index_n_heads": "size",
            "index_head_dim": "size",
            "index_topk": "count",
            "index_scale": "number",
            "index_eps": "eps",
            "index_interleaved": "flag",
            "index_cache": "cache",
        },
        cost=cost.sparse_latent_attention,
    ),
    "sqrt_softplus": Signature("f", "f", _same),
    "clamp": Signature("f", "f", _same, attrs={"limit": "eps", "two_sided": "flag"}),
    "add_constant": Signature("f", "f", _same, attrs={"constant": "eps"}),
    "gain": Signature("f", "f", _gain, "v"),
    "lookup": Signature("i", "i", _lookup, "v", attrs={"top_k": "size", "experts": "count"}),
    "mix": Signature("ff", "f", _mix, attrs={"rows": "size", "transposed": "flag"}),
    "sinkhorn": Signature(
        "f", "f", _sinkhorn, attrs={"size": "size", "iterations": "count", "eps": "eps"}
    ),
    "compress": Signature(
        "ff",
        "fi",
        _compress,
        "v",
        rows="cc>cc",
        attrs={"ratio": "size", "overlapping": "flag"},
        chooses_keys=True,
    ),
    "window_attention": Signature(
        "ff(fi?)?",
        "f",
        _window_attention,
        "v",
        rows="tc(ct?)?>t",
        attrs={
            "heads": "size",
            "head_dim": "size",
            "scale": "number",
            "window": "count",
            "ratio": "count",
        },
        cost=cost.windowed_attention,
    ),
    "grouped_linear": Signature("f", "f", _grouped_linear, "m", attrs={"groups": "size"}),
    "hash_route": Signature(
        "fi",
        "if",
        _hash_route,
        "v",
        attrs={
            "scoring": _SCORING,
            "top_k": "size",
            "experts": "size",
            "normalize": "flag",
            "eps": "eps",
            "factor": "number",
        },
    ),
    "hyper_in": Signature(
        "f",
        "fff",
        _hyper_in,
        "mvvv",
        attrs={"streams": "size", "iterations": "count", "eps": "eps", "norm_eps": "eps"},
    ),
    "hyper_out": Signature("ffff", "f", _hyper_out, attrs={"streams": "size"}),
    "sliding_attention": Signature(
        "ffi", "f", _sliding, "vv", rows="ttt>t", attrs=_CORE, cost=cost.compressed_attention
    ),
    "heavily_compressed_attention": Signature(
        "ffffi",
        "f",
        _heavily,
        "vvvv",
        rows="ttttt>t",
        attrs={**_CORE, **_ENTRIES},
        cost=cost.compressed_attention,
    ),
    "compressed_sparse_attention": Signature(
        "ffffffffi",
        "f",
        _sparse,
        "vvvvvv",
        rows="ttttttttt>t",
        attrs={**_CORE, **_ENTRIES, **_INDEX},
        cost=cost.compressed_attention,
    ),
}
"""op → signature."""


def is_view(node: Node) -> bool:
    """Whether the node's output is its input's data. An unknown op is none: verify refuses it."""
    return node.op in SIGNATURES and SIGNATURES[node.op].is_view


def caches_written(node: Node) -> tuple[str, ...]:
    """The cache entries that a node writes, in the order of its attributes."""
    keys = SIGNATURES[node.op].cache_attrs if node.op in SIGNATURES else ()
    return tuple(str(node.attrs[key]) for key in keys if key in node.attrs)


def choices(graph: Graph) -> dict[str, str]:
    """Value → the indices of the experts that it has a part of its row for; of an index itself.

    The parts lie in the order of the indices, which two ways to choose the same experts may give
    in two orders.
    """
    found: dict[str, str] = {}
    for node in graph.nodes:
        if SIGNATURES[node.op].sums_choices:
            continue
        if SIGNATURES[node.op].chooses_keys:
            continue
        chosen = [name for name in node.outputs if graph.values[name].dtype == "i32"]
        read = [found[name] for name in node.inputs if name in found]
        for indices in [*chosen, *read][:1]:
            found.update(dict.fromkeys(node.outputs, indices))
    return found


def sums_of_choices(graph: Graph) -> dict[str, str]:
    """What experts add up to → the indices of the experts."""
    routed = choices(graph)
    return {
        output: routed[name]
        for node in graph.nodes
        if SIGNATURES[node.op].sums_choices
        for output in node.outputs
        for name in node.inputs
        if name in routed
    }


def read_weights(graph: Graph) -> set[str]:
    """The names of the weights that nodes read."""
    return {name for node in graph.nodes for name in node.weights}


def weights_read(graph: Graph, reading: Reading) -> set[str]:
    """The names of the weights that a node reads in this way."""
    found: set[str] = set()
    for node in graph.nodes:
        shapes = [graph.weights[name].shape for name in node.weights]
        ways = SIGNATURES[node.op].readings(shapes)
        found.update(name for name, way in zip(node.weights, ways, strict=True) if way == reading)
    return found
