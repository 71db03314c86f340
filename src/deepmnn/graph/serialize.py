"""graph.json: a graph as text, and back.

After conversion a weight's numbers lie in the artifact under its own name, so a weight is written
as name, shape and storage, and read back as `Tensor(name, shape)`. Everything else round-trips
exactly, floats included. Reading checks the type of every field and the size of every list here and
the rest in `verify`: what comes back is a valid graph or an ArtifactError.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar

from deepmnn.errors import ArtifactError, GraphError
from deepmnn.graph.caches import CacheEntry
from deepmnn.graph.ir import Attr, Dim, Graph, Node, Value, Weight
from deepmnn.graph.verify import verify
from deepmnn.graph.weights import Tensor

FORMAT = 2
_MAX_DIM = 2**40
_MAX_RANK = 4
_MAX_WIDTH = 2**24
"""Elements of a value in one row: a hundred times those of any logits."""

_MOST = {"nodes": 1 << 16, "values": 1 << 18, "weights": 1 << 18, "caches": 1 << 12}
"""Of each; DeepSeek-V3 has 2,765, 3,011, 46,183 and 122 before any pass."""

_MAX_WINDOW = 2**24
"""Tokens that a row of a cache is for, or of which recent rows are kept."""

_MAX_LIST = 1 << 13
"""Items of any other list: the weights of a node with 2,000 experts."""

T = TypeVar("T")


def to_json(graph: Graph) -> str:
    """The graph as JSON. Raises GraphError when an attribute is not a finite number or text."""
    fields = {
        "format": FORMAT,
        "name": graph.name,
        "inputs": graph.inputs,
        "outputs": graph.outputs,
        "caches": {name: asdict(entry) for name, entry in graph.caches.items()},
        "values": {v.name: [v.dtype, *v.shape] for v in graph.values.values()},
        "weights": {w.name: [w.role, w.format, *w.shape] for w in graph.weights.values()},
        "nodes": [
            {
                "op": node.op,
                "name": node.name,
                "inputs": node.inputs,
                "outputs": node.outputs,
                "weights": node.weights,
                "attrs": node.attrs,
            }
            for node in graph.nodes
        ],
    }
    try:
        return json.dumps(fields, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise GraphError(f"graph {graph.name!r} cannot be written as JSON: {error}") from None


def from_json(data: object, name: str = "graph.json") -> Graph:
    """The graph that `to_json` wrote, parsed; weights are tensors under their own names.

    name: of the file, for errors. Raises ArtifactError for anything that is not a valid graph.
    """
    try:
        return _graph(data)
    except _DamagedError as fault:
        raise ArtifactError(f"{name}: {str(fault)[:500]}", "", "Convert the model again.") from None


def _graph(data: object) -> Graph:
    fields = _object(data, "the graph")
    if fields.get("format") != FORMAT:
        raise _DamagedError(f"format {fields.get('format')!r}, this deepmnn reads {FORMAT}")
    values = _object(fields.get("values"), "values")
    weights = _object(fields.get("weights"), "weights")
    caches = _object(fields.get("caches"), "caches")
    graph = Graph(
        _text(fields.get("name"), "name"),
        _list(fields.get("inputs"), _text, "inputs"),
        _list(fields.get("outputs"), _text, "outputs"),
        _list(fields.get("nodes"), _node, "nodes"),
        {name: _value(name, value) for name, value in values.items()},
        {name: _weight(name, value) for name, value in weights.items()},
        {name: _cache(entry, f"cache {name!r:.80}") for name, entry in caches.items()},
    )
    try:
        verify(graph)
    except GraphError as error:
        raise _DamagedError(str(error)) from None
    return graph


class _DamagedError(Exception):
    """What is wrong."""


# ---------------------------------------------------------------------------- fields


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _DamagedError(f"{what} is {_kind(value)}, not an object")
    most = _MOST.get(what, _MAX_LIST)
    if len(value) > most:
        raise _DamagedError(f"{what} has {len(value)} fields, at most {most} are read")
    return value


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise _DamagedError(f"{what} is {_kind(value)}, not text")
    return value


def _int(value: object, what: str, low: int, high: int = _MAX_DIM) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise _DamagedError(f"{what} is {value!r:.50}, not a whole number from {low} to {high}")
    return value


def _dim(value: object, what: str) -> int:
    return _int(value, what, 1)


def _width(value: object, what: str) -> int:
    return _int(value, what, 1, _MAX_WIDTH)


def _list(value: object, item: Callable[[object, str], T], what: str) -> list[T]:
    if not isinstance(value, list):
        raise _DamagedError(f"{what} is {_kind(value)}, not a list")
    most = _MOST.get(what, _MAX_LIST)
    if len(value) > most:
        raise _DamagedError(f"{what} has {len(value)} items, at most {most} are read")
    return [item(element, f"{what}[{index}]") for index, element in enumerate(value)]


def _kind(value: object) -> str:
    return "missing" if value is None else f"of type {type(value).__name__}"


# ---------------------------------------------------------------------------- parts


def _cache(value: object, what: str) -> CacheEntry:
    fields = _object(value, what)
    exact = fields.get("exact")
    if not isinstance(exact, bool):
        raise _DamagedError(f"{what} exact is {_kind(exact)}, not true or false")
    return CacheEntry(
        _width(fields.get("width"), f"{what} width"),
        _int(fields.get("ratio"), f"{what} ratio", 1, _MAX_WINDOW),
        _int(fields.get("window"), f"{what} window", 0, _MAX_WINDOW),
        exact,
    )


def _value(name: str, value: object) -> Value:
    what = f"value {name!r:.80}"
    dtype, rows, *trailing = _between(value, 2, 2 + _MAX_RANK, what)
    shape: list[Dim] = [_text(rows, f"{what} rows")]
    shape += [_dim(size, what) for size in trailing]
    result = Value(name, tuple(shape), _text(dtype, f"{what} dtype"))
    _width(result.width, f"{what} width")
    return result


def _weight(name: str, value: object) -> Weight:
    what = f"weight {name!r:.80}"
    role, format, *dims = _between(value, 3, 4, what)
    shape = tuple(_dim(size, what) for size in dims)
    _int(math.prod(shape), f"{what} size", 1)
    return Weight(
        name,
        Tensor(name, shape),
        _text(role, f"{what} role"),
        _text(format, f"{what} format"),
    )


def _between(value: object, least: int, most: int, what: str) -> list[Any]:
    if not isinstance(value, list) or not least <= len(value) <= most:
        raise _DamagedError(f"{what} is not a list of {least} to {most} fields")
    return value


def _node(value: object, what: str) -> Node:
    fields = _object(value, what)
    attrs = _object(fields.get("attrs"), f"{what} attrs")
    return Node(
        _text(fields.get("op"), f"{what} op"),
        tuple(_list(fields.get("inputs"), _text, f"{what} inputs")),
        tuple(_list(fields.get("outputs"), _text, f"{what} outputs")),
        tuple(_list(fields.get("weights"), _text, f"{what} weights")),
        {key: _attr(attr, f"{what} {key}") for key, attr in attrs.items()},
        _text(fields.get("name"), f"{what} name"),
    )


def _attr(value: object, what: str) -> Attr:
    if isinstance(value, list):
        numbers = tuple(_list(value, _number, what))
        if len({type(number) for number in numbers}) > 1:
            raise _DamagedError(f"{what} mixes whole numbers and floats")
        return numbers
    return value if isinstance(value, str) else _number(value, what)


def _number(value: object, what: str) -> int | float:
    if isinstance(value, float) and math.isfinite(value):
        return value
    return _int(value, what, -(2**63), 2**63 - 1)
