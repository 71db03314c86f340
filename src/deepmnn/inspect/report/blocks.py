"""A graph by layers, those that are alike together: 61 layers are a few pictures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby

from deepmnn.conversion.report.facts import layer_of
from deepmnn.graph.ir import Graph, Node
from deepmnn.graph.signatures import SIGNATURES

BEFORE, AFTER = -1, 1 << 31
"""The places of what comes before the first layer, and after the last. A layer's is its number."""

Places = Mapping[int, list[Node]]
"""Place → its nodes, in order."""


@dataclass(frozen=True)
class Block:
    """Places whose nodes are alike."""

    places: tuple[int, ...]

    @property
    def shown(self) -> int:
        """The one to draw: a layer in the middle, whose neighbours are layers as well."""
        return self.places[len(self.places) // 2]

    @property
    def title(self) -> str:
        """ "layers 3 to 60", say."""
        return places_named(self.places)


def frozen(graph: Graph) -> Graph:
    """The graph as it is now: passes rewrite nodes in place. Weights are shared."""
    return Graph(
        graph.name,
        list(graph.inputs),
        list(graph.outputs),
        [Node(n.op, n.inputs, n.outputs, n.weights, dict(n.attrs), n.name) for n in graph.nodes],
        dict(graph.values),
        dict(graph.weights),
        dict(graph.caches),
    )


def by_place(graph: Graph) -> dict[int, list[Node]]:
    """The nodes of a graph by place. One that is named after no layer comes before all, or after
    them.
    """
    found: dict[int, list[Node]] = defaultdict(list)
    seen = False
    for node in graph.nodes:
        layer = layer_of(f"{node.name}.")
        seen = seen or layer is not None
        outside = AFTER if seen else BEFORE
        found[outside if layer is None else layer].append(node)
    return dict(sorted(found.items()))


def alike(keys: Mapping[int, Hashable]) -> list[Block]:
    """Places of equal keys together, in order."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for place, key in keys.items():
        groups[key].append(place)
    return [Block(tuple(places)) for places in groups.values()]


def key(graph: Graph, place: int, nodes: Iterable[Node]) -> Hashable:
    """The same for places that compute the same with other numbers, however these are stored."""
    own = f"layers.{place}."
    made: dict[str, tuple[int, int]] = {}
    found = []
    for index, node in enumerate(nodes):
        caches = SIGNATURES[node.op].cache_attrs
        found.append(
            (
                node.op,
                node.name.replace(own, ""),
                tuple(made.get(name, graph.values[name].shape) for name in node.inputs),
                tuple(graph.values[name].shape for name in node.outputs),
                tuple((name, value) for name, value in node.attrs.items() if name not in caches),
                tuple(graph.weights[name].shape for name in node.weights),
            )
        )
        made.update({name: (index, out) for out, name in enumerate(node.outputs)})
    return place if place in (BEFORE, AFTER) else 0, tuple(found)


def places_named(places: Iterable[int]) -> str:
    """ "layer 0", "layers 1, 2 and 4 to 26", "before the layers"."""
    ordered = sorted(places)
    if ordered == [BEFORE]:
        return "before the layers"
    if ordered == [AFTER]:
        return "after the layers"
    runs = [
        [place for _, place in run]
        for _, run in groupby(enumerate(ordered), lambda pair: pair[1] - pair[0])
    ]
    words = [
        piece
        for run in runs
        for piece in ([f"{run[0]} to {run[-1]}"] if len(run) > 2 else map(str, run))
    ]
    if len(words) > 1:
        words = [", ".join(words[:-1]) + f" and {words[-1]}"]
    return f"layer{'s' if len(ordered) > 1 else ''} {words[0]}"
