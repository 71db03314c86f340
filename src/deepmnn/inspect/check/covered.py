"""What a calibration check found, and what of it is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

import numpy as np

from deepmnn.conversion.calibrate import LEAST_TOKENS
from deepmnn.inspect.check.line import Line, judged, skipped

UNUSUAL = 0.05
"""A text is uncovered when no more than this share of calibration texts is as far from its own."""

CERTAIN = 1e-3
"""Chance of as many uncovered texts where both sets are alike."""

MOST_RATIO = 3.0
"""Of a divergence and what chance gives parts of one set: 0.3 to 1.3 where both sets are alike."""

MOST_OUTSIDE = 1e-3
MOST_UNSEEN = 0.005
"""Shares: of values beyond the calibrated range, of choices of experts that no calibration saw."""


@dataclass(frozen=True)
class TensorShift:
    """One tensor: its divergence, what chance gives, and the share beyond the calibrated range."""

    name: str
    divergence: float
    chance: float
    outside: float


@dataclass(frozen=True)
class ExpertUse:
    """One layer's experts.

    Attributes:
        name: of the routing.
        experts: how many there are.
        unseen: those that no token of the calibration set chose.
        scarce: those that fewer than LEAST_TOKENS chose, too few to round by.
        share: of the other set's choices that the unseen ones have.
        scarce_share: the same of the scarce ones, the unseen included.
    """

    name: str
    experts: int
    unseen: tuple[int, ...]
    scarce: int
    share: float
    scarce_share: float


@dataclass(frozen=True)
class Kind:
    """Texts that look alike.

    Attributes:
        name: "Chinese", "code", ...
        texts: of the other set.
        uncovered: of these.
        calibration: texts of the calibration set.
        example: the beginning of the one that is furthest from the calibration set.
        distance: its distance, in those that calibration texts have from one another.
    """

    name: str
    texts: int
    uncovered: int
    calibration: int
    example: str
    distance: float


@dataclass(frozen=True)
class Coverage:
    """What a calibration check found.

    Attributes:
        calibration, against: texts and tokens of each set.
        tensors: in the order in which the model computes them.
        experts: of each layer that routes.
        kinds: of the other set's texts, the least covered first.
        uncovered: how many texts.
    """

    calibration: tuple[int, int]
    against: tuple[int, int]
    tensors: tuple[TensorShift, ...]
    experts: tuple[ExpertUse, ...]
    kinds: tuple[Kind, ...]
    uncovered: int

    @property
    def ratio(self) -> float:
        """Median over the tensors of the divergence over chance's."""
        return float(np.median([t.divergence / max(t.chance, 1e-9) for t in self.tensors]))

    @property
    def is_far(self) -> bool:
        """Whether more texts are uncovered than chance has it."""
        return _tail(self.against[0], self.uncovered) < CERTAIN

    def lines(self) -> list[Line]:
        """A line for each figure."""
        return [self._texts(), self._distribution(), self._range(), self._experts()]

    def _texts(self) -> Line:
        texts = self.against[0]
        said = f"{self.uncovered} of {texts} are far from every calibration text"
        expected = f"about {UNUSUAL:.0%}, {UNUSUAL * texts:.0f}"
        share = self.uncovered / texts
        return judged("texts", not self.is_far, said, expected, self._missing(), share)

    def _distribution(self) -> Line:
        worst = max(self.tensors, key=lambda t: t.divergence / max(t.chance, 1e-9))
        median = float(np.median([tensor.divergence for tensor in self.tensors]))
        said = f"KL {median:.3g} nats, {self.ratio:.1f} times what chance gives (median of "
        said += f"{len(self.tensors)} tensors); most in {worst.name}, {worst.divergence:.3g}"
        right = self.ratio < MOST_RATIO
        expected = f"below {MOST_RATIO:g} times"
        return judged("activations", right, said, expected, self._missing(), self.ratio)

    def _missing(self) -> str:
        """Which texts the calibration set lacks: of a kind that is far, or that it has few of."""
        own, others = self.calibration[0], self.against[0]
        missing = [
            kind
            for kind in self.kinds
            if kind.uncovered > 2 * UNUSUAL * kind.texts
            or kind.calibration / own < 0.5 * kind.texts / others
        ]
        if not missing:
            return "It has all kinds of texts in about their shares: take texts like the prompts."
        return "Add such texts to the calibration set: " + "; ".join(
            f"{kind.name} ({kind.texts} of the {others} texts, {kind.uncovered} far; "
            f"{kind.calibration} of {own} in the calibration set), as in {kind.example[:48]!r}"
            for kind in missing[:3]
        )

    def _range(self) -> Line:
        worst = max(self.tensors, key=lambda tensor: tensor.outside)
        mean = float(np.mean([tensor.outside for tensor in self.tensors]))
        said = f"{mean:.1e} of all values; most in {worst.name}, {worst.outside:.1e}"
        advice = "A static range would clip them: add texts like the prompts, or more of them."
        right = worst.outside <= MOST_OUTSIDE
        name = "values beyond the calibrated range"
        return judged(name, right, said, f"at most {MOST_OUTSIDE:g}", advice, worst.outside)

    def _experts(self) -> Line:
        name = "experts that calibration never saw"
        if not self.experts:
            return skipped(name, "the model has no experts")
        unseen = sum(len(layer.unseen) for layer in self.experts)
        count = sum(layer.experts for layer in self.experts)
        scarce = sum(layer.scarce for layer in self.experts)
        worst = max(self.experts, key=lambda layer: layer.share)
        said = f"{unseen} of {count}, {scarce} see fewer than {LEAST_TOKENS} tokens"
        if unseen:
            said += f"; in {worst.name} the prompts choose them in {worst.share:.2%} of cases"
        advice = "Their weights are rounded without calibration: add texts, or take more of them."
        right = worst.share <= MOST_UNSEEN
        return judged(
            name, right, said, f"at most {MOST_UNSEEN:.1%} of choices", advice, worst.share
        )


def _tail(texts: int, uncovered: int) -> float:
    """The chance that at least so many of alike texts are uncovered."""
    return sum(
        comb(texts, k) * UNUSUAL**k * (1 - UNUSUAL) ** (texts - k)
        for k in range(uncovered, texts + 1)
    )
