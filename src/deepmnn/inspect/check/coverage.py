"""How well one set of texts covers another, by what a model's matrices multiply.

Three figures, each with the level that chance gives it, from the calibration set itself:

- of each tensor the KL divergence of its values in the other set from those in the calibration set,
  channel by channel, in bins of the channel's own spread;
- of each tensor the share of values outside its calibrated range;
- of each text its distance to the nearest calibration texts, in the mean activations of all layers.
  A text is *uncovered* when it is further away than nearly all calibration texts are from one
  another: a conformal test, which needs no model of the distances.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepmnn.formats import F32

F64 = NDArray[np.float64]

EDGES = np.array([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0], np.float32)
"""Of the bins of a channel, in standard deviations from its mean."""

PREFIXES = (8, 24, 96, 384)
"""Tokens over which a text's means are taken: texts are compared over equally many. A prefix of a
text gives what the prefix alone would: no token sees a later one.
"""

SUBSETS = 8
"""Random parts of the calibration set that say what chance does."""

FEATURES = 24
"""Random projections of a tensor's mean."""

NEIGHBOURS = 3


class TensorCoverage:
    """One tensor. Samples are added in their order, those of the calibration set first.

    Args:
        name: of the tensor.
        first: some rows, by which each channel gets its bins.
        split: the sets that it is seen by.
    """

    def __init__(self, name: str, first: F32, split: Split) -> None:
        self.name, width = name, first.shape[1]
        self._split, self._next = split, 0
        self._above = np.zeros((2 + SUBSETS, width, len(EDGES)), np.int64)
        self._rows = np.zeros(2 + SUBSETS, np.int64)
        self._highest = np.zeros(len(split.subsets) + len(split.others))
        self._mean = first.mean(axis=0)
        self._spread = first.std(axis=0) + np.float32(1e-12) + 1e-3 * first.std()
        rng = np.random.default_rng(width)
        signs = rng.integers(0, 2, (width, FEATURES)) * 2 - 1
        self._projection = (signs / width**0.5).astype(np.float32)
        self.features: list[F32] = []
        self._beyond = 0
        self._values = 0

    def add(self, rows: F32) -> None:
        """The next sample's rows; the first token, on which models put what they need nowhere, is
        left out where there are others.
        """
        sets = self._split.sets(self._next)
        self._range(rows)
        self._next += 1
        rows = rows[1:] if len(rows) > 1 else rows
        scaled = (rows - self._mean) / self._spread
        above = np.stack([(scaled > edge).sum(axis=0) for edge in EDGES], axis=1)
        self._above[sets] += above
        self._rows[sets] += len(rows)
        clipped = np.clip(scaled, -4, 4)
        means = np.full((len(PREFIXES), FEATURES), np.nan, np.float32)
        for at, length in enumerate(PREFIXES):
            if length <= len(rows) or at == 0:
                means[at] = clipped[:length].mean(axis=0) @ self._projection
        self.features.append(means)

    def _range(self, rows: F32) -> None:
        """The largest magnitude of each calibration text; of the others, what lies beyond all."""
        size = np.abs(rows)
        self._highest[self._next] = size.max()
        calibration = len(self._split.subsets)
        if self._next >= calibration:
            self._beyond += int((size > self._highest[:calibration].max()).sum())
            self._values += size.size

    @property
    def divergence(self) -> float:
        """KL of the other set from the calibration set, in nats, mean over channels."""
        return _divergence(self._counts(OTHER), self._counts(ALL))

    @property
    def chance(self) -> float:
        """The largest such KL of a part of the calibration set, as large as the other set, from the
        rest.
        """
        whole = self._counts(ALL)
        parts = [self._counts(2 + index) for index in range(SUBSETS)]
        return max(_divergence(part, whole - part) for part in parts)

    def _counts(self, which: int) -> NDArray[np.int64]:
        """Values in each bin: [width, bins]."""
        rows = np.full((self._above.shape[1], 1), self._rows[which])
        above = np.concatenate([rows, self._above[which], 0 * rows], axis=1)
        return np.asarray(above[:, :-1] - above[:, 1:])

    @property
    def outside(self) -> float:
        """Share of the other set's values beyond the largest magnitude of the calibration set."""
        return self._beyond / max(self._values, 1)


ALL, OTHER = 0, 1
"""Places of the whole calibration set and the other set; subsets follow."""


@dataclass(frozen=True)
class Split:
    """Which text belongs where.

    Attributes:
        subsets: of each calibration text, whether it is in each of SUBSETS random parts.
        others: the other texts.
    """

    subsets: NDArray[np.bool_]
    others: range

    @staticmethod
    def of(calibration: int, others: int) -> Split:
        """Parts of the size of the other set, or of half of the calibration set if that is less."""
        size = max(1, min(others, calibration // 2))
        rng = np.random.default_rng(0)
        order = np.stack([rng.permutation(calibration) for _ in range(SUBSETS)], axis=1)
        return Split(order < size, range(calibration, calibration + others))

    def sets(self, text: int) -> list[int]:
        """The places at which a text counts."""
        if text in self.others:
            return [OTHER]
        return [ALL, *(2 + index for index in np.flatnonzero(self.subsets[text]).tolist())]


def _divergence(counts: NDArray[np.int64], base: NDArray[np.int64]) -> float:
    """KL(counts ‖ base) of rows of bins, mean over the rows."""
    p, q = (c + 0.5 for c in (counts, base))
    p, q = p / p.sum(axis=1, keepdims=True), q / q.sum(axis=1, keepdims=True)
    return float((p * np.log(p / q)).sum(axis=1).mean())


@dataclass(frozen=True)
class Distances:
    """How far texts are from the calibration set.

    Attributes:
        found: of each text of the other set, in units of the median calibration text's.
        chance: of each text, the share of calibration texts that are as far from their own kind.
    """

    found: F64
    chance: F64


def distances(features: F32, calibration: int) -> Distances:
    """Of the texts behind the first `calibration` ones.

    Args:
        features: [texts, prefixes, features] as `TensorCoverage` has them, of all tensors.
        calibration: how many of the texts are the calibration set.
    """
    found, chance = [], []
    per_prefix: dict[int, tuple[F64, F64]] = {}
    for text in range(calibration, len(features)):
        at = _prefix(features, text, calibration)
        if at not in per_prefix:
            per_prefix[at] = _null(features[:calibration, at])
        base, null = per_prefix[at]
        x = (features[text, at] - base[0]) / base[1]
        far = float(np.sort(np.sqrt(((base[2:] - x) ** 2).mean(axis=1)))[:NEIGHBOURS].mean())
        found.append(far / max(float(np.median(null)), 1e-9))
        chance.append((1 + int((null >= far).sum())) / (1 + len(null)))
    return Distances(np.asarray(found), np.asarray(chance))


def _prefix(features: F32, text: int, calibration: int) -> int:
    """The longest prefix that the text has, and enough calibration texts."""
    for at in range(len(PREFIXES) - 1, 0, -1):
        if np.isnan(features[text, at]).any():
            continue
        if (~np.isnan(features[:calibration, at]).any(axis=1)).sum() >= calibration / 2:
            return at
    return 0


def _null(features: F32) -> tuple[F64, F64]:
    """Calibration texts [2 + texts, features], scaled by mean and spread, which are the first two
    rows; and how far each is from its own neighbours.
    """
    x = features[~np.isnan(features).any(axis=1)].astype(np.float64)
    mean, spread = x.mean(axis=0), x.std(axis=0) + 1e-9
    scaled = (x - mean) / spread
    apart = np.sqrt(((scaled[:, None] - scaled[None]) ** 2).mean(axis=2))
    np.fill_diagonal(apart, np.inf)
    null = np.sort(apart, axis=1)[:, :NEIGHBOURS].mean(axis=1)
    return np.concatenate([[mean, spread], scaled]), null
