"""What each layer does to the predictions.

alone: the layer runs as the model has it on what enters it in the reference, and everything after
it is exact. Errors of different layers hardly depend on each other, so the divergences add up to
about that of the whole; but not where calibration has made later layers correct earlier ones
(quant/correction.py): then each alone does more harm than together.

added: the model's layers up to this one, everything after it exact; less the same without this
one. Of all layers together that is the divergence of the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deepmnn.backends.base import I32
from deepmnn.inspect.compare.compare import LOGITS
from deepmnn.inspect.side import Layer
from deepmnn.inspect.sides.staged import StagedSide
from deepmnn.quant.divergence import divergence

_TOGETHER = 2048
"""Tokens of a step; one copy where their logits are computed."""


@dataclass(frozen=True)
class Effect:
    """Of a layer, in nats of mean KL divergence from the exact model."""

    layer: int
    alone: float
    added: float


class Effects:
    """Collects them while a comparison goes through the layers (`watch`).

    Args:
        model: its layers are put into the exact model.
        exact: the reference in float32, of the same layers (`opened.exact`).
        samples: those that are compared.
    """

    def __init__(self, model: StagedSide, exact: StagedSide, samples: Sequence[I32]) -> None:
        self._model, self._exact, self._samples = model, exact, samples
        self._alone: list[Layer] = []
        self._up_to: list[Layer] = []
        self._clean: Layer = {}
        self._possible = len(model.parts) == len(exact.parts)
        self.found: list[Effect] = []

    def watch(self, number: int, layer: Layer, known: Layer) -> None:
        """A layer has been compared.

        Args:
            layer: the model's values.
            known: the reference's values around it.
        """
        entered = self._exact.reads(number)
        last = number == len(self._exact.parts) - 1
        leaving = {LOGITS} if last else self._exact.reads(number + 1)
        if not (self._model.reads(number) | entered) <= known.keys() or not leaving <= layer.keys():
            self._possible = False
        if not self._possible:
            return
        own = self._model.from_layer(number, self._samples, known)
        clean = {name: known[name] for name in entered}
        copies = self._advance(number, [*self._alone, *self._up_to, clean], leaving)
        self._alone, self._up_to = copies[:number], copies[number:-1]
        self._alone.append({name: own[name] for name in leaving})
        self._up_to.append({name: layer[name] for name in leaving})
        if last:
            self.found = self._effects(copies[-1])

    def _effects(self, exact: Layer) -> list[Effect]:
        alone = [self._divergence(exact, copy) for copy in self._alone]
        up_to = [self._divergence(exact, copy) for copy in self._up_to]
        added = np.diff(up_to, prepend=0.0).tolist()
        return [Effect(layer, *pair) for layer, pair in enumerate(zip(alone, added, strict=True))]

    def _advance(self, number: int, copies: list[Layer], leaving: set[str]) -> list[Layer]:
        """Takes copies through a layer of the exact model, several at a time."""
        passed: list[Layer] = []
        tokens = sum(map(len, self._samples))
        count = 1 if LOGITS in leaving else max(1, _TOGETHER // tokens)
        for start in range(0, len(copies), count):
            together = copies[start : start + count]
            joined = {name: np.concatenate([c[name] for c in together]) for name in together[0]}
            samples = [*self._samples] * len(together)
            made = self._exact.from_layer(number, samples, joined)
            for index in range(len(together)):
                rows = slice(index * tokens, (index + 1) * tokens)
                passed.append({name: np.array(made[name][rows]) for name in leaving})
        return passed

    def _divergence(self, exact: Layer, copy: Layer) -> float:
        return float(divergence(exact[LOGITS], copy[LOGITS]).mean())
