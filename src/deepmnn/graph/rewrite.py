"""What every pass needs: who makes and reads a value, and replacing a group of nodes by one.

A pass collects its rewrites on one `View` of the graph and applies them together:

    view = View(graph)
    rewrites = [Rewrite(nodes, fused), ...]        # disjoint groups
    return apply(graph, view, rewrites)
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from deepmnn.graph.ir import Graph, Node, Weight
from deepmnn.graph.signatures import caches_written, is_view
from deepmnn.graph.weights import Expr


@dataclass(frozen=True)
class Rewrite:
    """`nodes` compute the outputs of `new` (and nothing else that anybody reads)."""

    nodes: Sequence[Node]
    new: Node


class View:
    """A snapshot of who makes and who reads every value, looking through views (reshapes).

    A view moves no data and ops carry their head counts, so a pattern is the same with or
    without views between its nodes. The graph must not change while a view is in use.
    """

    def __init__(self, graph: Graph) -> None:
        self._outputs = frozenset(graph.outputs)
        self._producers = graph.producers()
        self._consumers = graph.consumers()
        self._positions = {id(node): index for index, node in enumerate(graph.nodes)}

    def source(self, value: str) -> str:
        """The value whose data this is: itself, or what a chain of views started from."""
        node = self._producers.get(value)
        while node is not None and is_view(node):
            value = node.inputs[0]
            node = self._producers.get(value)
        return value

    def producer(self, value: str, *ops: str) -> Node | None:
        """The node that computes the value, when its op is one of `ops`; else None."""
        node = self._producers.get(self.source(value))
        return node if node is not None and node.op in ops else None

    def readers(self, value: str) -> list[Node]:
        """The nodes that read the value's data."""
        found: list[Node] = []
        for node in self._consumers[value]:
            found.extend(self.readers(node.outputs[0]) if is_view(node) else [node])
        return found

    def reader(self, value: str, *ops: str) -> Node | None:
        """The only reader, when its op is one of `ops`; None when there are others, or outputs."""
        readers = self.readers(value)
        if self.escapes(value) or len(readers) != 1 or readers[0].op not in ops:
            return None
        return readers[0]

    def escapes(self, value: str) -> bool:
        """True when the value's data is a graph output."""
        return value in self._outputs or any(
            self.escapes(node.outputs[0]) for node in self._consumers[value] if is_view(node)
        )

    def encloses(self, nodes: Sequence[Node], outputs: Collection[str]) -> bool:
        """True when nobody but `nodes` reads what they produce, apart from `outputs`."""
        inside = {id(node) for node in nodes}
        return all(
            not self.escapes(value) and all(id(reader) in inside for reader in self.readers(value))
            for node in nodes
            for value in node.outputs
            if value not in outputs
        )

    def ready(self, inputs: Sequence[str]) -> int:
        """The position in the node list after which all the inputs exist (-1: from the start)."""
        return max(
            (self._positions[id(self._producers[v])] for v in inputs if v in self._producers),
            default=-1,
        )


def apply(graph: Graph, view: View, rewrites: Sequence[Rewrite]) -> int:
    """Replaces each group by its new node, placed as early as its inputs allow, and prunes.

    Returns the number of rewrites.
    """
    if not rewrites:
        return 0
    removed = {id(node) for rewrite in rewrites for node in rewrite.nodes}
    arrivals: dict[int, list[Node]] = {}
    for rewrite in rewrites:
        arrivals.setdefault(view.ready(rewrite.new.inputs), []).append(rewrite.new)
    nodes = arrivals.get(-1, [])
    for index, node in enumerate(graph.nodes):
        if id(node) not in removed:
            nodes.append(node)
        nodes.extend(arrivals.get(index, []))
    graph.nodes = nodes
    prune(graph)
    return len(rewrites)


def prune(graph: Graph) -> int:
    """Removes nodes that nobody reads, then values, weights and caches without a use.

    Returns the number of nodes and weights removed. Graph inputs stay.
    """
    live = set(graph.outputs)
    nodes: list[Node] = []
    for node in reversed(graph.nodes):
        if live.intersection(node.outputs):
            live.update(node.inputs)
            nodes.append(node)
    nodes.reverse()
    live.update(graph.inputs, *(node.outputs for node in nodes))
    weights = {name for node in nodes for name in node.weights}
    caches = {name for node in nodes for name in caches_written(node)}
    removed = len(graph.nodes) - len(nodes) + len(graph.weights.keys() - weights)
    graph.nodes = nodes
    graph.values = {name: value for name, value in graph.values.items() if name in live}
    graph.weights = {name: weight for name, weight in graph.weights.items() if name in weights}
    graph.caches = {name: width for name, width in graph.caches.items() if name in caches}
    return removed


def rename_values(graph: Graph, renames: dict[str, str]) -> None:
    """Makes every node read `renames[value]` instead of value (chains are followed)."""

    def final(value: str) -> str:
        while value in renames:
            value = renames[value]
        return value

    for node in graph.nodes:
        node.inputs = tuple(final(value) for value in node.inputs)


def join_names(names: Sequence[str]) -> str:
    """One name for several: "a.q_proj.weight", "a.k_proj.weight" → "a.q_proj+k_proj.weight"."""
    parts = [name.split(".") for name in names]
    spare = min(map(len, parts)) - 1  # at least one component of each name stays in the middle
    head = next((i for i in range(spare) if len({part[i] for part in parts}) > 1), spare)
    spare -= head
    tail = next((i for i in range(spare) if len({part[-1 - i] for part in parts}) > 1), spare)
    middle = "+".join(".".join(part[head : len(part) - tail]) for part in parts)
    return ".".join([*parts[0][:head], middle, *parts[0][len(parts[0]) - tail :]])


def joined_names(name: str) -> list[str]:
    """The names that `join_names` made one of, if all but one component of them are the same."""
    parts = name.split(".")
    joined = [i for i, part in enumerate(parts) if "+" in part]
    if len(joined) != 1:
        return [name]
    (at,) = joined
    return [".".join([*parts[:at], each, *parts[at + 1 :]]) for each in parts[at].split("+")]


def add_weight(graph: Graph, like: Weight, name: str, expr: Expr, role: str = "") -> str:
    """Adds a weight stored like `like`; returns its name, numbered when `name` is taken.

    The same expression under the same name is the same weight and is not added twice.
    """
    weight = Weight(name, expr, role or like.role, like.format)
    count = 1
    while graph.weights.get(weight.name, weight) != weight:
        count += 1
        weight.name = f"{name}#{count}"
    graph.weights[weight.name] = weight
    return weight.name
