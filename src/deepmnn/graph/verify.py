"""verify: checks a graph against the rules of the IR and the op table, after every rewrite."""

from __future__ import annotations

import re
from collections import Counter

from deepmnn.errors import GraphError
from deepmnn.formats import FORMATS
from deepmnn.graph.call import Call
from deepmnn.graph.ir import CONTEXT, ROWS, TOKENS, Graph, Node, Value, Weight
from deepmnn.graph.signatures import KINDS, SIGNATURES, Signature, caches_written

ROLES = ("linear", "expert", "latent", "router", "embedding", "lm_head", "vector")
_ROW_LETTERS = {TOKENS: "t", CONTEXT: "c", ROWS: "r"}
_DTYPE_LETTERS = {"f32": "f", "i32": "i"}
_INPUTS = ("ids", "positions")


def verify(graph: Graph) -> None:
    """Checks single assignment, shapes, weights, attributes and caches of the whole graph.

    Raises:
        GraphError: the first rule broken, with the node's name.
    """
    for name, value in graph.values.items():
        _check_value(name, value)
    for name, weight in graph.weights.items():
        _check_weight(name, weight)
    _check_order(graph)
    for node in graph.nodes:
        _check_node(graph, node)
    _check_caches(graph)
    _check_use_of_weights(graph)


def _need(condition: bool, found: str, expected: str = "") -> None:
    if not condition:
        raise GraphError(found, expected)


def _check_value(name: str, value: Value) -> None:
    _need(value.name == name, f"value {value.name!r} is filed under {name!r}")
    known = bool(value.shape) and value.shape[0] in _ROW_LETTERS
    _need(known, f"value {name!r} has shape {value.shape}", "tokens, context or rows first")
    sizes = value.shape[1:]
    positive = all(isinstance(size, int) and size > 0 for size in sizes)
    _need(positive, f"value {name!r} has shape {value.shape}", "positive integers after the first")
    _need(value.dtype in _DTYPE_LETTERS, f"value {name!r} has dtype {value.dtype!r}", "f32 or i32")


_FORMATS = {
    rank: [format.name for format in FORMATS.values() if format.is_matrix == (rank == 2)]
    for rank in (1, 2)
}
"""Of weights of one and of two dimensions: a mixture of experts has tens of thousands to check."""


def _check_weight(name: str, weight: Weight) -> None:
    what = f"weight {name!r}"
    _need(weight.name == name, f"{what} calls itself {weight.name!r}")
    _need(weight.role in ROLES, f"{what} has role {weight.role!r}", f"one of {', '.join(ROLES)}")
    rank = len(weight.shape)
    _need(rank in (1, 2), f"{what} has shape {weight.shape}", "one or two dimensions")
    fitting = _FORMATS[rank]
    _need(weight.format in fitting, f"{what} has format {weight.format!r}", " or ".join(fitting))
    _need(
        (weight.role == "vector") == (rank == 1), f"{what} has role {weight.role!r}", "its rank's"
    )


def _check_order(graph: Graph) -> None:
    """Every value is produced once, before it is read, and outputs exist."""
    _check_inputs(graph)
    produced = set(graph.inputs)
    for node in graph.nodes:
        what = f"node {node.name!r} ({node.op})"
        for name in node.inputs:
            _need(name in produced, f"{what} reads {name!r} before it is produced")
        for name in node.outputs:
            _need(name in graph.values, f"{what} writes the unknown value {name!r}")
            _need(name not in produced, f"{what} produces {name!r} again")
            produced.add(name)
        for name in node.weights:
            _need(name in graph.weights, f"{what} reads the unknown weight {name!r}")
    _need(
        graph.values.keys() == produced,
        f"values without a producer: {graph.values.keys() - produced}",
    )
    _need(bool(graph.outputs), "the graph has no output")
    for name in graph.outputs:
        _need(name in produced, f"output {name!r} is not produced")


def _check_inputs(graph: Graph) -> None:
    """ids and positions, and of a draft part what the main part gives."""
    others = []
    for name in graph.inputs:
        value = graph.values.get(name)
        if value is None:
            raise GraphError(f"graph input {name!r} has no value")
        if name not in _INPUTS:
            others.append(name)
            right = value.rows == TOKENS and len(value.shape) == 2 and value.dtype == "f32"
            _need(right, f"graph input {name!r} is {value}", "f32 [tokens, width]")
            continue
        right = value.shape == (TOKENS,) and value.dtype == "i32"
        _need(right, f"graph input {name!r} is {value}", "i32 [tokens]")
    _need(
        len(set(graph.inputs)) == len(graph.inputs) and len(others) <= 1,
        f"graph inputs {', '.join(graph.inputs)}",
        "ids and positions, and at most one other",
    )


def _check_node(graph: Graph, node: Node) -> None:
    what = f"node {node.name!r} ({node.op})"
    signature = SIGNATURES.get(node.op)
    if signature is None:
        raise GraphError(f"{what} has an unknown op", "one of docs/ops.md")
    call = Call.of(graph, node)
    _check_attrs(what, signature, node)
    _check_patterns(what, signature, call)
    for subject, found, expected in signature.rule(call):
        _need(found == expected, f"{what}: {subject}: {found}", str(expected))


def _check_attrs(what: str, signature: Signature, node: Node) -> None:
    names = sorted(signature.attrs)
    _need(sorted(node.attrs) == names, f"{what} has attributes {sorted(node.attrs)}", f"{names}")
    for name, kind in signature.attrs.items():
        value = node.attrs[name]
        valid = KINDS[kind](value) if kind in KINDS else value in kind.split("|")
        _need(valid, f"{what}: {name} is {value!r}", f"{kind!r}")


def _check_patterns(what: str, signature: Signature, call: Call) -> None:
    dtypes = ["".join(_DTYPE_LETTERS[v.dtype] for v in values) for values in (call.x, call.y)]
    for side, pattern, found in zip(
        ("inputs", "outputs"), (signature.inputs, signature.outputs), dtypes, strict=True
    ):
        _need(bool(re.fullmatch(pattern, found)), f"{what}: {side} are {found!r}", f"{pattern!r}")
    weights = "".join("m" if len(shape) == 2 else "v" for shape in call.w)
    expected = signature.weights
    _need(
        bool(re.fullmatch(expected, weights)), f"{what}: weights are {weights!r}", f"{expected!r}"
    )
    x, y = ("".join(_ROW_LETTERS[v.rows] for v in values) for values in (call.x, call.y))
    if signature.rows:
        fitting = bool(re.fullmatch(signature.rows, f"{x}>{y}"))
        _need(fitting, f"{what}: rows {x}>{y}", signature.rows)
    else:
        _need(len({*x, *y}) == 1, f"{what}: rows are {x}>{y}", "all the same")


def _check_caches(graph: Graph) -> None:
    """Every entry is written by one node."""
    writers = Counter(name for node in graph.nodes for name in caches_written(node))
    for name, entry in graph.caches.items():
        _need(entry.width > 0, f"cache {name!r} is {entry.width} wide", "a positive width")
        found = f"cache {name!r} has a row for {entry.ratio} tokens and a window of {entry.window}"
        _need(entry.ratio >= 1 and entry.window >= 0, found, "a row for 1 or more, and 0 or more")
        _need(entry.ratio == 1 or not entry.window, found, "a row for each token, or no window")
        _need(writers[name] == 1, f"cache {name!r} is written by {writers[name]} nodes", "one")


def _check_use_of_weights(graph: Graph) -> None:
    """Every weight is read."""
    used = {name for node in graph.nodes for name in node.weights}
    _need(
        graph.weights.keys() <= used, f"weights that nothing reads: {graph.weights.keys() - used}"
    )
