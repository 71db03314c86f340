"""The op table: all there is to know about each op of docs/ops.md, but for what it computes.

Patterns are regular expressions over one letter each: values "f" (f32) and "i" (i32), rows "t"
(tokens), "c" (context) and "r" (rows), weights "m" (matrix) and "v" (vector).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from deepmnn.formats import BLOCK_ROWS
from deepmnn.graph import cost
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
    yield f"width of cache {c.a['cache']!r}", c.caches.get(c.a["cache"]), c.x[0].width


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
        yield f"width of cache {c.a[key]!r}", c.caches.get(c.a[key]), value.width


def _mla_attention(c: Call) -> Iterator[Check]:
    a, heads, rank = c.a, c.a["heads"], c.a["kv_lora_rank"]
    nope, rope, v = a["qk_nope_head_dim"], a["qk_rope_head_dim"], a["v_head_dim"]
    yield from _widths(c, (heads * (nope + rope), rank + rope, 1), (heads * v,))
    uk, uv = (heads * padded(nope), rank), (heads * padded(v), rank)
    yield "weight shapes", c.w, ((rank,), uk, uv)
    yield "frequencies", 2 * len(a["inv_freq"]), rope
    yield f"width of cache {a['cache']!r}", c.caches.get(a["cache"]), rank + rope


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


_ROPE = {"inv_freq": "numbers", "rope_scale": "number", "interleaved": "flag"}
_HEADS = {"heads": "size", "kv_heads": "size", "head_dim": "size", "v_head_dim": "size"}
_GROUPS = {"n_group": "size", "topk_group": "size", "group_score": "max|top2_sum"}

SIGNATURES: dict[str, Signature] = {
    "embedding": Signature("i", "f", _embedding, "m", matrices="looked_up", cost=cost.nothing),
    "linear": Signature("f", "f+", _linear, "mv?"),
    "rms_norm": Signature("f", "f", _rms_norm, "v", attrs={"eps": "eps", "heads": "size"}),
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
    "swiglu": Signature("f", "f", _swiglu, "m", attrs={"intermediate_size": "size"}),
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
        attrs={
            "heads": "size",
            "kv_lora_rank": "size",
            "qk_nope_head_dim": "size",
            "qk_rope_head_dim": "size",
            "v_head_dim": "size",
            "scale": "number",
            "eps": "eps",
            **_ROPE,
            "cache": "cache",
        },
        cost=cost.latent_attention,
    ),
    "route": Signature(
        "f",
        "if",
        _route,
        "v?",
        attrs={
            "scoring": "softmax|sigmoid",
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
        attrs={"experts": "size", "top_k": "size", "intermediate_size": "size"},
        matrices="routed",
        cost=cost.experts,
        sums_choices=True,
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
