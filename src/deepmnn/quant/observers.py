"""Static ranges of int8 activations: a histogram of what a tensor holds, and where to clip it.

A tensor with threshold T is stored as round(x · 127 / T), clipped to ±127. The threshold is chosen
once, from samples; where it lies is a trade: a low one clips the largest values, a high one rounds
all others coarsely. Ways to choose it (`METHODS`):

    kl          the least KL divergence of the 8-bit histogram from the true one, as TensorRT does
                (Migacz 2017, "8-bit Inference with TensorRT") and MNN's quantisation tool
    mse         the least squared error
    percentile  99.99 % of the values are not clipped
    minmax      none is

Only magnitudes matter, for the levels are symmetric. Zeros do not matter: they are always exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepmnn.errors import RequestError
from deepmnn.formats import F32

F64 = NDArray[np.float64]

BINS = 1 << 15
"""Of a histogram."""

SEEN = 1 << 12
"""Bins below a threshold, at most, for its divergence: of a higher one, neighbours are added up.
More would tell nothing new about 128 levels, and chance would count for more.
"""

LEVELS = 127
"""Levels above zero."""

MAX_DIVERGENCE = 0.02
"""What the KL divergence of a tensor should stay below. Chance counts, too: half a bin for each
value, so that with 100,000 values it is 0.01 to 0.02 by itself.
"""

PERCENTILE = 99.99

_PIECE = 1 << 16


class Histogram:
    """Counts of the magnitudes of a tensor's values, in memory of one size however many there are.

    Bins reach from 0 to a power of two, the next above the largest magnitude. A larger one doubles
    their width: neighbours are added up. So the counts are the same in whatever order and pieces
    the values come.

    Attributes:
        counts: of values in each bin, int64 [BINS]; those of 0 are left out.
        zeros: how many values are 0.
        largest: the largest magnitude.
    """

    def __init__(self) -> None:
        self.counts: NDArray[np.int64] = np.zeros(BINS, np.int64)
        self.zeros = 0
        self.largest = 0.0

    @property
    def width(self) -> float:
        """Of a bin."""
        return math.ldexp(1.0, math.frexp(self.largest)[1]) / BINS

    def add(self, x: F32) -> None:
        """Adds the values of an array. Raises RequestError for NaN or infinity among them."""
        flat = x.reshape(-1)
        for start in range(0, flat.size, _PIECE):
            self._add(np.abs(flat[start : start + _PIECE]))

    def _add(self, magnitudes: F32) -> None:
        largest = float(magnitudes.max())
        if not math.isfinite(largest):
            raise RequestError(
                "activations with NaN or infinity",
                "finite numbers",
                "The checkpoint is damaged, or its config.json is another model's.",
            )
        if largest > self.largest:
            self._reach(largest)
        zeros = magnitudes.size - int(np.count_nonzero(magnitudes))
        self.zeros += zeros
        places = (magnitudes * np.float64(1 / self.width)).astype(np.int64)
        self.counts += np.bincount(places, minlength=BINS)
        self.counts[0] -= zeros

    def _reach(self, largest: float) -> None:
        """Widens the bins for a larger magnitude."""
        old, self.largest = self.width, largest
        together = min(int(self.width / old), BINS) if self.counts.any() else 1
        joined = self.counts.reshape(-1, together).sum(axis=1)
        self.counts = np.concatenate([joined, np.zeros(BINS - len(joined), np.int64)])


@dataclass(frozen=True)
class StaticRange:
    """Where a tensor is clipped.

    Attributes:
        threshold: the largest magnitude that is not; 0 where all values are zero.
        divergence: KL of the 8-bit histogram from the true one, in nats.
    """

    threshold: float
    divergence: float


def static_range(histogram: Histogram, method: str = "kl") -> StaticRange:
    """The range of a tensor by one of `METHODS`. Raises RequestError for another."""
    if method not in METHODS:
        raise RequestError(f"range method {method!r:.80}", f"one of {', '.join(METHODS)}")
    if not histogram.largest:
        return StaticRange(0.0, 0.0)
    bins = thresholds(METHODS[method](histogram))[:1]
    threshold = min(int(bins[0]) * histogram.width, histogram.largest)
    return StaticRange(threshold, float(divergences(histogram, bins)[0]))


def beyond(
    ranges: Mapping[str, StaticRange], most: float = MAX_DIVERGENCE
) -> dict[str, StaticRange]:
    """The tensors whose divergence is not below a bound, the worst first."""
    over = [(name, found) for name, found in ranges.items() if not found.divergence < most]
    return dict(sorted(over, key=lambda item: (-item[1].divergence, item[0])))


def thresholds(most: int) -> NDArray[np.int64]:
    """Those that are tried, in bins that lie below them: the first is the lowest that has at least
    so many, the last has a bin for each level.
    """
    most = max(most, LEVELS + 1)
    found = []
    for fold in _FOLDS:
        low = LEVELS if fold == 1 else SEEN // 2
        found.append(fold * np.arange(min(-(-most // fold), SEEN), low, -1))
    return np.concatenate(found)


def divergences(histogram: Histogram, bins: NDArray[np.int64]) -> F64:
    """KL divergence for some `thresholds`, in nats; infinite where all is clipped.

    The true histogram P up to the threshold has what is clipped in its last bin. In its 8-bit
    version Q, which lacks what is clipped, all bins that are rounded to one level share their
    values evenly, as far as they are not empty in P. Where the last level would have none, it has
    one.
    """
    found = np.empty(len(bins))
    for fold in _FOLDS:
        chosen = (bins <= SEEN * fold) & ((bins > SEEN * fold // 2) | (fold == 1))
        counts = histogram.counts.reshape(-1, fold).sum(axis=1).astype(np.float64)
        found[chosen] = _divergences(counts, bins[chosen] // fold)
    return found


def _divergences(counts: F64, bins: NDArray[np.int64]) -> F64:
    total = counts.sum()
    sums, filled, own = map(_sums, (counts, counts > 0, _xlogx(counts)))
    found = np.empty(len(bins))
    for part, edges in _edges(bins):
        last = bins[part] - 1
        clipped = total - sums[last + 1]
        mass, places = np.diff(sums[edges], axis=1), np.diff(filled[edges], axis=1)
        places[:, -1] += (clipped > 0) & (counts[last] == 0)
        alone = (clipped > 0) & (mass[:, -1] == 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = mass.copy()
            share[:, -1] += alone
            share = np.log(share / places)  # of a bin, at each level
            mass[:, -1] += clipped
            cross = np.where(mass > 0, mass * share, 0).sum(axis=1)
            entropy = own[last] + _xlogx(counts[last] + clipped)
            kl = (entropy - cross) / total + np.log((sums[last + 1] + alone) / total)
        found[part] = np.where(clipped < total, np.maximum(kl, 0), np.inf)
    return found


def squared_errors(histogram: Histogram, bins: NDArray[np.int64]) -> F64:
    """Mean squared error for thresholds at the ends of so many bins, as if every value lay in the
    middle of its bin; in squares of a bin's width.
    """
    counts = histogram.counts.astype(np.float64)
    middles = np.arange(BINS) + 0.5
    sums, firsts, seconds = map(_sums, (counts, counts * middles, counts * middles**2))
    found = np.empty(len(bins))
    for part, edges in _edges(bins):
        edges[:, -1] = BINS  # what is clipped has the highest level
        mass, first = np.diff(sums[edges], axis=1), np.diff(firsts[edges], axis=1)
        values = np.arange(LEVELS + 1) * (bins[part, None] / LEVELS)
        found[part] = seconds[-1] + (values * (values * mass - 2 * first)).sum(axis=1)
    return np.asarray(found / counts.sum())


def _by_largest(histogram: Histogram) -> int:
    return int(np.flatnonzero(histogram.counts)[-1]) + 1


def _by_percentile(histogram: Histogram) -> int:
    sums = np.cumsum(histogram.counts)
    return int(np.searchsorted(sums, math.ceil(sums[-1] * (PERCENTILE / 100)))) + 1


Measure = Callable[[Histogram, NDArray[np.int64]], F64]


def _by_least(measure: Measure) -> Callable[[Histogram], int]:
    """Of equals (but for roundings of float64), the highest."""

    def method(histogram: Histogram) -> int:
        bins = thresholds(_by_largest(histogram))
        measured = measure(histogram, bins)
        return int(bins[np.argmax(measured <= measured.min() * (1 + 1e-9))])

    return method


METHODS: dict[str, Callable[[Histogram], int]] = {
    "kl": _by_least(divergences),
    "mse": _by_least(squared_errors),
    "percentile": _by_percentile,
    "minmax": _by_largest,
}
"""Name → how many bins lie below the threshold."""

_FOLDS = tuple(1 << shift for shift in reversed(range((BINS // SEEN).bit_length())))


def _edges(bins: NDArray[np.int64]) -> Iterator[tuple[slice, NDArray[np.int64]]]:
    """For some thresholds at a time: the first bin of each level, and the end of the last."""
    for start in range(0, len(bins), 512):
        part = slice(start, start + 512)
        ends = bins[part, None]
        odd = 2 * np.arange(LEVELS + 2) - 1  # level k begins at the value (k - 1/2) · n / LEVELS
        borders = -((LEVELS - odd * ends) // (2 * LEVELS))
        yield part, np.clip(borders, 0, ends)


def _sums(x: NDArray[Any]) -> F64:
    """Of the first 0, 1, 2, ... elements."""
    return np.concatenate([[0.0], np.cumsum(x, dtype=np.float64)])


def _xlogx(x: F64) -> F64:
    return np.asarray(x * np.log(np.where(x > 0, x, 1)))
