"""Runs two models side by side, layer by layer, and compares every value that both tell."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from deepmnn.backends.base import I32
from deepmnn.errors import RequestError
from deepmnn.formats import F32
from deepmnn.graph.ir import Graph
from deepmnn.graph.signatures import choices, sums_of_choices
from deepmnn.graph.stages import LAYER
from deepmnn.inspect.compare.difference import (
    Difference,
    difference,
    guilty_expert,
    in_one_order,
)
from deepmnn.inspect.side import Layer, Side
from deepmnn.inspect.sides.staged import StagedSide
from deepmnn.quant.divergence import Divergence, Rows

Progress = Callable[[int, int, str], None]
"""Called with (layers done, layers in all, what)."""

LOGITS = "logits"


@dataclass
class Compared:
    """A value that both models have.

    Attributes:
        name: in the level-0 graph.
        layer: its decoder layer; -1 for what comes before the first, the number of layers for what
            comes after the last.
        difference: each model as it runs.
        alone: computed from the reference's values, so that an error is the node's own; None where
            that is not possible.
        as_written: the same by the model's level-0 graph; None where nobody looked.
    """

    name: str
    layer: int
    difference: Difference
    alone: Difference | None = None
    as_written: Difference | None = None


@dataclass
class Values:
    """What comparing the values gives.

    Attributes:
        compared: in the order of the level-0 graph.
        inside: values that the model does not tell, as its own level-0 graph computes them from the
            reference's values: of the first layer of each kind, for rounding may hide what is
            wrong inside a fused node, and of those with an error that rounding does not explain.
        missing: values of the level-0 graph that the model or the reference does not tell.
        divergence: of the predictions.
    """

    compared: list[Compared]
    inside: list[Compared]
    missing: list[str]
    divergence: Divergence | None


@dataclass(frozen=True)
class Inside:
    """How to look into fused nodes.

    Attributes:
        side: the model's numbers in its level-0 graph, in float32.
        bounds: value → the error of its own that needs no explanation.
    """

    side: StagedSide
    bounds: Mapping[str, float]


Watch = Callable[[int, Layer, Layer], None]
"""Called when a layer has been compared, with its number, the model's values and the reference's of
this layer and its neighbours."""


def compare_values(
    model: Side,
    reference: Side,
    naive: Graph,
    samples: Sequence[I32],
    progress: Progress | None = None,
    watch: Watch | None = None,
    inside: Inside | None = None,
) -> Values:
    """Runs both and compares.

    Memory holds the values of two layers of each, and the logits.

    Args:
        naive: the level-0 graph, whose names the values have.
        samples: token ids; each is a sequence of its own.
        progress: called after each layer.
        watch: called after each layer.
        inside: to look into fused nodes.
    """
    run, count = (
        _Run(model, reference, naive, samples, watch, inside),
        max(layers_of(naive).values()) + 1,
    )
    for number in run.layers():
        if progress is not None:
            progress(number + 1, count, f"layer {number}")
    return run.result()


class _Run:
    """A comparison on its way.

    The reference is a layer ahead: a pass may have moved nodes of the next layer into this one. And
    its last layer is still known, for this one reads it.
    """

    def __init__(
        self,
        model: Side,
        reference: Side,
        naive: Graph,
        samples: Sequence[I32],
        watch: Watch | None,
        inside: Inside | None,
    ) -> None:
        self._model, self._reference = model, reference
        self._samples, self._watch, self._inside = samples, watch, inside
        self._positions = np.concatenate([np.arange(len(sample)) for sample in samples])
        self._choices = choices(naive)
        self._layers = layers_of(naive)
        self._sums = sums_of_choices(naive)
        self._found: dict[str, Compared] = {}
        self._looked: dict[str, Compared] = {}
        self._kinds: set[tuple[str, ...]] = set()
        self._known: Layer = {}
        self._divergence: Divergence | None = None

    def layers(self) -> Iterator[int]:
        """Compares a layer after another; → its number."""
        theirs = self._reference.layers(self._samples)
        window = deque[Layer]([{}, next(theirs, {})], maxlen=3)
        left: Layer = {}
        for number, layer in enumerate(self._model.layers(self._samples)):
            window.append(next(theirs, {}))
            self._known = {name: value for each in window for name, value in each.items()}
            self._match({**left, **layer})
            self._match_alone(number)
            left = {name: value for name, value in layer.items() if name not in self._found}
            if self._watch is not None:
                self._watch(number, layer, self._known)
            yield number

    def result(self) -> Values:
        """What has been found."""
        found, looked = (
            [table[name] for name in self._layers if name in table]
            for table in (self._found, self._looked)
        )
        missing = [name for name in self._layers if name not in self._found]
        return Values(found, looked, missing, self._divergence)

    def _match(self, layer: Layer) -> None:
        """Compares what both have by now."""
        for name in layer:
            if name not in self._known or name not in self._layers:
                continue
            apart = self._difference(name, layer)
            if apart is not None:
                self._found[name] = Compared(name, self._layers[name], apart)
            if name == LOGITS:
                self._divergence = divergence(self._known[name], layer[name])

    def _match_alone(self, number: int) -> None:
        """Compares what the layer's nodes compute from the reference's values."""
        model = self._model
        if not isinstance(model, StagedSide) or not model.reads(number) <= self._known.keys():
            return
        own = model.alone(number, self._samples, self._known)
        for name in own:
            if name in self._found:
                self._found[name].alone = self._difference(name, own)
        inside = self._inside
        if inside is None:
            return
        kind = tuple(node.op for node in inside.side.parts[number].nodes)
        if kind not in self._kinds or any(self._is_suspicious(name, inside) for name in own):
            self._look(number, inside.side)
        self._kinds.add(kind)

    def _is_suspicious(self, name: str, inside: Inside) -> bool:
        found = self._found.get(name)
        return (
            found is not None
            and found.alone is not None
            and not found.alone.error <= inside.bounds.get(name, np.inf)
        )

    def _look(self, number: int, side: StagedSide) -> None:
        """Compares what the model does not tell of a layer."""
        if not side.reads(number) <= self._known.keys():
            return
        own = side.alone(number, self._samples, self._known)
        for name in own:
            apart = self._difference(name, own) if name in self._known else None
            if apart is not None and name in self._found:
                self._found[name].as_written = apart
            elif apart is not None and name in self._layers:
                self._looked[name] = Compared(name, self._layers[name], apart, apart)

    def _difference(self, name: str, layer: Layer) -> Difference | None:
        """Of a value and the reference's; None where nothing can be compared."""
        found, wanted, positions = layer[name], self._known[name], self._positions
        indices = self._choices.get(name, name)
        if indices != name:
            if indices not in layer or indices not in self._known:
                return None
            same = (np.sort(layer[indices]) == np.sort(self._known[indices])).all(axis=1)
            if not same.any():
                return None
            found, wanted = (
                in_one_order(each, name, indices)[same] for each in (layer, self._known)
            )
            positions = positions[same]
        if found.shape != wanted.shape:
            raise RequestError(
                f"{name} is {list(found.shape)}, in the reference {list(wanted.shape)}",
                "two models of one architecture and size",
            )
        apart = difference(found, wanted, positions)
        chosen = self._known.get(self._sums.get(name, ""))
        if chosen is None:
            return apart
        return replace(apart, expert=guilty_expert(found, wanted, chosen))


def layers_of(graph: Graph) -> dict[str, int]:
    """Value → its decoder layer, in the order in which they are computed: -1 before the first, the
    number of layers after the last.
    """
    count, found = -1, dict[str, int]()
    for node in graph.nodes:
        numbered = LAYER.match(node.name)
        if numbered:
            count = int(numbered[1])
        layer = count if numbered or count < 0 else count + 1
        found |= dict.fromkeys(node.outputs, layer)
    return found


def divergence(reference: F32, logits: F32) -> Divergence:
    """Of predictions, [tokens, vocab_size] both."""
    truth, found = Rows(reference), Rows(logits)
    return Divergence.of(truth.divergence(found), truth.same_first_choice(found))
