"""verify accepts what models and passes write, and refuses every way of breaking it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from deepmnn.errors import GraphError
from deepmnn.graph.caches import CacheEntry
from deepmnn.graph.ir import Graph, Node, Value, Weight
from deepmnn.graph.levels import optimize
from deepmnn.graph.signatures import SIGNATURES
from deepmnn.graph.verify import verify
from deepmnn.graph.weights import Tensor
from deepmnn.models import build
from storage import NAMES
from tiny_models import ALL, CONFIGS


def graph_of(model_type: str, index: int, level: int = 0) -> Graph:
    return optimize(build({"model_type": model_type} | CONFIGS[model_type][index]), level)[0]


GRAPHS = [graph_of(*case, level) for case in ALL for level in (0, 2, 3)]
"""Together they hold every op."""


def first(op: str) -> tuple[Graph, Node]:
    """A copy of a graph with that op, and the copy's node."""
    for graph in GRAPHS:
        for position, node in enumerate(graph.nodes):
            if node.op == op:
                copy = graph.copy()
                return copy, copy.nodes[position]
    raise AssertionError(f"no tiny model has {op}")


def refused(graph: Graph, match: str = ".") -> None:
    with pytest.raises(GraphError, match=match):
        verify(graph)


@pytest.mark.parametrize("number", range(len(GRAPHS)))
def test_models_and_passes_pass(number: int) -> None:
    verify(GRAPHS[number])


@pytest.mark.parametrize("op", SIGNATURES)
class TestEveryOp:
    def test_attributes(self, op: str) -> None:
        graph, node = first(op)
        node.attrs["surplus"] = 1
        refused(graph, "attributes")
        for name in SIGNATURES[op].attrs:
            graph, node = first(op)
            del node.attrs[name]
            refused(graph, "attributes")
            for wrong in ("", -1, -0.5, float("nan"), True, (0,), ("x",), (float("inf"),), []):
                if name in ("scale", "rope_scale", "factor", "index_scale") and wrong == -0.5:
                    continue  # a factor may be negative
                graph, node = first(op)
                node.attrs[name] = wrong  # type: ignore[assignment]
                refused(graph, name)

    def test_sizes_in_attributes(self, op: str) -> None:
        for name, kind in SIGNATURES[op].attrs.items():
            if kind == "size":
                graph, node = first(op)
                node.attrs[name] = node.int_attr(name) + 1000
                refused(graph)
            if kind in ("sizes", "numbers"):
                graph, node = first(op)
                value: Any = node.attrs[name]
                node.attrs[name] = (*value, value[-1])
                refused(graph)

    def test_value_widths(self, op: str) -> None:
        graph, node = first(op)
        for name in {*node.inputs, *node.outputs} - {"ids", "positions"}:
            broken = graph.copy()
            value = broken.values[name]
            broken.values[name] = replace(value, shape=(value.rows, value.width + 1))
            refused(broken)

    def test_value_rows_and_dtypes(self, op: str) -> None:
        graph, node = first(op)
        for name in node.outputs:
            value = graph.values[name]
            for rows in {"tokens", "context", "rows"} - {value.rows}:
                broken = graph.copy()
                broken.values[name] = replace(value, shape=(rows, *value.shape[1:]))
                refused(broken, "rows")
            broken = graph.copy()
            broken.values[name] = replace(value, dtype="i32" if value.dtype == "f32" else "f32")
            refused(broken, "puts are")

    def test_weights(self, op: str) -> None:
        graph, node = first(op)
        for position, name in enumerate(node.weights[:4]):
            for shape in ((5,), (3, 5), (0, 0, 1)):
                broken = graph.copy()
                broken.weights[name].expr = Tensor("t", shape)
                refused(broken)
            broken = graph.copy()
            theirs = next(n for n in broken.nodes if n.outputs == node.outputs)
            theirs.weights = node.weights[:position] + node.weights[position + 1 :]
            refused(broken)
        graph, node = first(op)
        node.weights += ("embed_tokens.weight",) * 2
        refused(graph)

    def test_inputs_and_outputs(self, op: str) -> None:
        graph, node = first(op)
        if op not in ("moe", "concat"):
            node.inputs = node.inputs[:-1]
            refused(graph)
        graph, node = first(op)
        node.inputs += node.inputs
        refused(graph)
        graph, node = first(op)
        node.inputs = ("nothing", *node.inputs[1:])
        refused(graph, "before it is produced")


def add_input(graph: Graph, name: str, dtype: str = "f32") -> None:
    graph.inputs.append(name)
    graph.values[name] = Value(name, ("tokens", 36), dtype)


def change(edit: Callable[[Graph], object]) -> Graph:
    graph = graph_of("deepseek_v3", 0)
    edit(graph)
    return graph


BROKEN: dict[str, tuple[Callable[[Graph], object], str]] = {
    "unknown op": (lambda g: setattr(g.nodes[3], "op", "conv2d"), "unknown op"),
    "order": (lambda g: g.nodes.reverse(), "before it is produced"),
    "produced twice": (lambda g: g.nodes.insert(1, g.nodes[0]), "again"),
    "unknown output": (lambda g: setattr(g.nodes[0], "outputs", ("x",)), "unknown value"),
    "no producer": (
        lambda g: g.values.update(x=Value("x", ("tokens", 3))),
        "without a producer",
    ),
    "value filed wrongly": (
        lambda g: g.values.update(logits=replace(g.values["logits"], name="x")),
        "filed under",
    ),
    "value without rows": (
        lambda g: g.values.update(logits=Value("logits", (5, 97))),
        "tokens, context or rows",
    ),
    "value of size zero": (
        lambda g: g.values.update(logits=Value("logits", ("rows", 0))),
        "positive",
    ),
    "value dtype": (lambda g: g.values.update(norm=Value("norm", ("rows", 36), "f64")), "f32 or"),
    "no outputs": (lambda g: g.outputs.clear(), "no output"),
    "output nowhere": (lambda g: g.outputs.append("x"), "not produced"),
    "graph input": (lambda g: g.inputs.append("mask"), "no value"),
    "two states": (lambda g: (add_input(g, "a"), add_input(g, "b")), "at most one other"),
    "state of ints": (lambda g: add_input(g, "a", "i32"), "f32"),
    "graph input twice": (lambda g: g.inputs.append("ids"), "at most one other"),
    "graph input's type": (
        lambda g: g.values.update(ids=Value("ids", ("tokens",), "f32")),
        "i32",
    ),
    "unknown weight": (lambda g: g.weights.pop("norm.weight"), "unknown weight"),
    "unread weight": (
        lambda g: g.weights.update(x=Weight("x", Tensor("x", (3,)), "vector", "vector")),
        "nothing reads",
    ),
    "weight filed wrongly": (lambda g: setattr(g.weights["norm.weight"], "name", "x"), "calls"),
    "role": (lambda g: setattr(g.weights["norm.weight"], "role", "norm"), "role"),
    "role of a vector": (lambda g: setattr(g.weights["norm.weight"], "role", "linear"), "role"),
    "format of a vector": (lambda g: setattr(g.weights["norm.weight"], "format", "f32"), "format"),
    "format of a matrix": (
        lambda g: setattr(g.weights["lm_head.weight"], "format", "f16"),
        "format",
    ),
    "cache unknown": (lambda g: g.caches.pop("layers.0.latent"), "cache 'layers.0.latent'"),
    "cache width": (
        lambda g: g.caches.update({"layers.0.latent": CacheEntry(5)}),
        "cache 'layers.0.latent'",
    ),
    "cache of few tokens' rows": (
        lambda g: g.caches.update({"layers.0.latent": CacheEntry(5, ratio=2, window=3)}),
        "cache 'layers.0.latent'",
    ),
    "cache without tokens": (
        lambda g: g.caches.update({"layers.0.latent": CacheEntry(5, ratio=0)}),
        "cache 'layers.0.latent'",
    ),
    "cache unwritten": (lambda g: g.caches.update(x=CacheEntry(5)), "written by 0"),
    "cache written twice": (
        lambda g: [n.attrs.update(cache="layers.0.latent") for n in g.nodes if n.op == "cache"],
        "written by 2",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_graphs_are_refused(what: str) -> None:
    edit, match = BROKEN[what]
    refused(change(edit), match)


def test_quantised_weights_pass() -> None:
    graph = graph_of("deepseek_v3", 0)
    for dtype in NAMES:
        graph.weights["lm_head.weight"].format = dtype
        verify(graph)
