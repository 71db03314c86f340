"""What each layer does to the predictions.

alone: the layer runs as the model has it on what enters it in the reference, and everything after
it is exact. Errors of different layers hardly depend on each other, so the divergences add up to
about that of the whole. They do not

- where calibration has made later layers correct earlier ones (quant/correction.py): then each
  alone does more harm than together;
- of tokens where a choice flips, of experts say: one flip does as much harm as two. They are few,
  and the mean over all tokens is mostly theirs; so the sum is told without them, too (`Calm`).

added: the model's layers up to this one, everything after it exact; less the same without this
one. Of all layers together that is the divergence of the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from deepmnn.backends.base import I32
from deepmnn.inspect.compare.compare import LOGITS
from deepmnn.inspect.side import Layer
from deepmnn.inspect.sides.staged import StagedSide
from deepmnn.quant.divergence import F64, Rows

CALM_SHARE = 0.95

_TOGETHER = 2048
"""Tokens of a step; one copy where their logits are computed."""


@dataclass(frozen=True)
class Effect:
    """Of a layer, in nats of mean KL divergence from the exact model."""

    layer: int
    alone: float
    added: float


@dataclass(frozen=True)
class Calm:
    """Of the CALM_SHARE of tokens that change least, in nats of mean KL divergence.

    Attributes:
        alone: the effects of all layers alone, summed.
        whole: of the whole model.
    """

    alone: float
    whole: float


class Effects:
    """Collects them while a comparison goes through the layers (`watch`).

    Args:
        model: its layers are put into the exact model.
        exact: the reference, of the same layers (`graphs.truth`).
        samples: those that are compared.
        progress: called with (done, in all, what) while predictions are computed, at the end.
    """

    def __init__(
        self,
        model: StagedSide,
        exact: StagedSide,
        samples: Sequence[I32],
        progress: Callable[[int, int, str], None] | None = None,
    ) -> None:
        self._model, self._exact, self._samples = model, exact, samples
        self._progress = progress
        self._alone: list[Layer] = []
        self._up_to: list[Layer] = []
        self._possible = len(model.parts) == len(exact.parts)
        self.found: list[Effect] = []
        self.calm: Calm | None = None

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
        copies = self._advance(number, [*self._alone, *self._up_to], leaving)
        alone, up_to = ({name: given[name] for name in leaving} for given in (own, layer))
        if last:
            clean = {name: known[name] for name in entered}
            exact = next(self._advance(number, [clean], leaving))
            self._finish(exact, copies, alone, up_to)
        else:
            made = list(copies)
            self._alone, self._up_to = [*made[:number], alone], [*made[number:], up_to]

    def _finish(self, exact: Layer, copies: Iterator[Layer], alone: Layer, up_to: Layer) -> None:
        """Of all layers. copies: of the earlier ones; memory holds one at a time, for logits are
        large.
        """
        truth = Rows(exact[LOGITS])
        found = [truth.divergence(Rows(copy[LOGITS])) for copy in copies]
        count = len(found) // 2
        single, joint = (
            np.stack([*parts, truth.divergence(Rows(own[LOGITS]))])  # [layers, tokens]
            for parts, own in ((found[:count], alone), (found[count:], up_to))
        )
        added = np.diff(joint.mean(axis=1), prepend=0.0).tolist()
        self.found = [
            Effect(layer, *pair)
            for layer, pair in enumerate(zip(single.mean(axis=1).tolist(), added, strict=True))
        ]
        self.calm = _calm(single.sum(axis=0), joint[-1])

    def _advance(self, number: int, copies: list[Layer], leaving: set[str]) -> Iterator[Layer]:
        """Takes copies through a layer of the exact model, several at a time."""
        tokens = sum(map(len, self._samples))
        count = 1 if LOGITS in leaving else max(1, _TOGETHER // tokens)
        with self._exact.ready(number, count * tokens) as run:
            for start in range(0, len(copies), count):
                together = copies[start : start + count]
                joined = {n: np.concatenate([copy[n] for copy in together]) for n in together[0]}
                made = run([*self._samples] * len(together), joined)
                for index in range(len(together)):
                    rows = slice(index * tokens, (index + 1) * tokens)
                    yield {name: np.array(made[name][rows]) for name in leaving}
                if self._progress is not None and LOGITS in leaving:
                    self._progress(start + 1, len(copies), "predictions, a layer changed")


def _calm(alone: F64, whole: F64) -> Calm:
    """Of the sum of effects, and of the whole, of each token."""
    most = np.maximum(alone, whole)
    kept = most <= np.quantile(most, CALM_SHARE)
    return Calm(float(alone[kept].mean()), float(whole[kept].mean()))
