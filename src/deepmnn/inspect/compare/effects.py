"""What each layer alone does to the predictions: its errors, and everything after it exact.

The layer runs as the model has it on what enters it in the reference. What it gives runs through
the reference's later layers, beside what the layers before it gave. As errors of different layers
hardly depend on each other, the divergences of all layers add up to about that of the whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deepmnn.backends.base import I32
from deepmnn.inspect.compare.compare import LOGITS
from deepmnn.inspect.side import Layer
from deepmnn.inspect.sides.staged import StagedSide
from deepmnn.quant.divergence import divergence

_TOGETHER = 2048
"""Tokens of a step; one copy where their logits are computed."""


class Effects:
    """Collects them while a comparison goes through the layers (`watch`).

    Args:
        model: its layers are put into the exact model one at a time.
        exact: the reference in float32, of the same layers; what passes from one to the next is
            known in the reference by name.
        samples: those that are compared.
    """

    def __init__(self, model: StagedSide, exact: StagedSide, samples: Sequence[I32]) -> None:
        self._model, self._exact, self._samples = model, exact, samples
        self._copies: list[Layer] = []
        self.found: list[float | None] = []

    def watch(self, number: int, known: Layer) -> None:
        """A layer has been compared; known: the reference's values around it."""
        last = number == len(self._exact.parts) - 1
        entered = self._exact.reads(number)
        if not (self._model.reads(number) | entered) <= known.keys():
            self.found = [None] * len(self._exact.parts)
            return
        own = self._model.from_layer(number, self._samples, known)
        leaving = {LOGITS} if last else self._exact.reads(number + 1)
        clean = {name: known[name] for name in entered}
        passed = self._advance(number, [*self._copies, clean], leaving)
        *self._copies, exact = passed
        self._copies.append({name: own[name] for name in leaving})
        if last:
            self.found = [self._divergence(exact, copy) for copy in self._copies]

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
