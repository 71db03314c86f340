"""What each pass did to the graph, and where."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from deepmnn.graph.ir import Graph, Node, Weight
from deepmnn.graph.levels import PassResult
from deepmnn.inspect.report.blocks import Block, Places, alike, by_place, frozen, key


@dataclass(frozen=True)
class Snapshot:
    """A graph between two passes."""

    graph: Graph

    @cached_property
    def places(self) -> Places:
        """Its nodes by place."""
        return by_place(self.graph)

    @cached_property
    def keys(self) -> dict[int, Hashable]:
        """Equal for places that are alike."""
        return {place: key(self.graph, place, nodes) for place, nodes in self.places.items()}

    @cached_property
    def blocks(self) -> list[Block]:
        """Places that are alike, together."""
        return alike(self.keys)

    @cached_property
    def makers(self) -> dict[str, int]:
        """Value → the place that computes it."""
        return {v: at for at, nodes in self.places.items() for n in nodes for v in n.outputs}

    @cached_property
    def readers(self) -> dict[str, set[int]]:
        """Value → the places that read it."""
        found: dict[str, set[int]] = defaultdict(set)
        for place, nodes in self.places.items():
            for name in (name for node in nodes for name in node.inputs):
                found[name].add(place)
        return found

    def identities(self, place: int) -> dict[Hashable, Node]:
        """The nodes of a place, by all but what they read: to read another value is no change."""
        return {
            (
                node.op,
                node.outputs,
                node.weights,
                tuple(self.graph.values[name].shape for name in node.outputs),
            ): node
            for node in self.places.get(place, ())
        }


@dataclass(frozen=True)
class Change:
    """What a pass did, in places where it did the same.

    Attributes:
        block: the places.
        gone, new: nodes of the one that is shown which are no longer there, and which were not.
        before, after: these and their neighbours, the same surroundings before and after.
    """

    block: Block
    gone: tuple[Node, ...]
    new: tuple[Node, ...]
    before: tuple[Node, ...]
    after: tuple[Node, ...]


@dataclass(frozen=True)
class Step:
    """A pass: what it did, and the graph before and after it."""

    result: PassResult
    before: Snapshot
    after: Snapshot

    @cached_property
    def changes(self) -> list[Change]:
        """What it did, by place."""
        if self.before is self.after:
            return []
        keys = {
            place: (self.before.keys.get(place), self.after.keys.get(place))
            for place in sorted({*self.before.places, *self.after.places})
        }
        found = (self._change(block) for block in alike(keys))
        return [change for change in found if change.gone or change.new]

    def _change(self, block: Block) -> Change:
        shots = self.before, self.after
        old, new = (shot.identities(block.shown) for shot in shots)
        gone = tuple(node for identity, node in old.items() if identity not in new)
        made = tuple(node for identity, node in new.items() if identity not in old)
        nodes = [shot.places.get(block.shown, []) for shot in shots]
        near = {name for pair in zip(nodes, (gone, made), strict=True) for name in _near(*pair)}
        before, after = (
            tuple(node for node in each if near.intersection(node.outputs)) for each in nodes
        )
        return Change(block, gone, made, before, after)


@dataclass
class Trace:
    """The passes of an optimisation; `add` is its `on_pass`."""

    _found: list[tuple[PassResult, Graph | None]] = field(default_factory=list)
    _weights: dict[str, Weight] = field(default_factory=dict)

    def add(self, graph: Graph, result: PassResult) -> None:
        """A pass has run. One that rewrites nothing leaves the graph as it was."""
        if not self._found:
            self._weights = dict(graph.weights)
        self._found.append((result, frozen(graph) if result.rewrites else None))

    def begin(self, naive: Graph) -> Snapshot:
        """The graph that the passes began with, its weights with the formats that were chosen."""
        weights = {name: self._weights.get(name, weight) for name, weight in naive.weights.items()}
        return Snapshot(replace(naive, weights=weights))

    def steps(self, begin: Snapshot) -> Sequence[Step]:
        """The passes in order."""
        last, steps = begin, []
        for result, graph in self._found:
            after = last if graph is None else Snapshot(graph)
            steps.append(Step(result, last, after))
            last = after
        return steps


def _near(nodes: Sequence[Node], changed: Collection[Node]) -> set[str]:
    """What some nodes compute, what they read, and what their readers compute."""
    inputs = {name for node in changed for name in node.inputs}
    outputs = {name for node in changed for name in node.outputs}
    found = inputs | outputs
    for node in nodes:
        if outputs.intersection(node.inputs) or inputs.intersection(node.outputs):
            found.update(node.outputs)
    return found
