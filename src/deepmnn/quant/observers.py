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

BINS = 1024
"""Of an octave. A threshold has so many bins below it, up to twice as many: 8 to 16 a level."""

OCTAVES = 24
"""Below the largest magnitude; what is smaller is counted as one."""

LEVELS = 127
"""Levels above zero."""

MAX_DIVERGENCE = 0.02
"""What the KL divergence of a tensor should stay below. Chance counts, too: half a bin for each
value, so that with 50,000 values it is 0.01 to 0.02 by itself.
"""

PERCENTILE = 99.99

_PIECE = 1 << 16
_BIN_BITS, _OCTAVE_BITS = 13, 23
"""Of a float32: the bits below a bin's, and below its exponent."""
_BIAS = 127


class Histogram:
    """Counts of the magnitudes of a tensor's values, in memory of one size however many there are.

    Each octave (1 to 2, 2 to 4, ...) has bins of one width, so that thresholds far below an outlier
    see fine ones, too. A larger magnitude shifts the octaves that are kept. So the counts are the
    same in whatever order and pieces the values come.

    Attributes:
        counts: of values in each bin, int64 [OCTAVES, BINS]; the last octave is that of the
            largest magnitude.
        small: how many values, not 0, lie below all bins.
        zeros: how many values are 0.
        largest: the largest magnitude.
    """

    def __init__(self) -> None:
        self.counts: NDArray[np.int64] = np.zeros((OCTAVES, BINS), np.int64)
        self.small = self.zeros = 0
        self.largest = 0.0
        self._octave = 1  # the last one's exponent as float32 stores it; 0 is of subnormal numbers

    @property
    def count(self) -> int:
        """Values that were added."""
        return int(self.counts.sum()) + self.small + self.zeros

    def add(self, x: F32) -> None:
        """Adds the values of an array. Raises RequestError for NaN or infinity among them."""
        flat = x.reshape(-1)
        for start in range(0, flat.size, _PIECE):
            self._add(np.abs(flat[start : start + _PIECE], dtype=np.float32))

    def _add(self, magnitudes: F32) -> None:
        largest = magnitudes.max()
        if not np.isfinite(largest):
            raise RequestError(
                "activations with NaN or infinity",
                "finite numbers",
                "The checkpoint is damaged, or its config.json is another model's.",
            )
        if largest > self.largest:
            self.largest = float(largest)
            self._shift(int(largest.view(np.int32)) >> _OCTAVE_BITS)
        first = max(self._octave - OCTAVES + 1, 1) << (_OCTAVE_BITS - _BIN_BITS)
        empty = max(OCTAVES - self._octave, 0) * BINS
        places = (magnitudes.view(np.int32) >> _BIN_BITS) - (first - empty - 1)
        places[places <= empty] = 0
        found = np.bincount(places, minlength=OCTAVES * BINS + 1)
        zeros = magnitudes.size - int(np.count_nonzero(magnitudes))
        self.zeros += zeros
        self.small += int(found[0]) - zeros
        self.counts += found[1:].reshape(OCTAVES, BINS)

    def _shift(self, octave: int) -> None:
        """Makes an octave the last one, if it lies above that."""
        up = min(octave - self._octave, OCTAVES)
        if up > 0:
            self.small += int(self.counts[:up].sum())
            self.counts = np.concatenate([self.counts[up:], np.zeros((up, BINS), np.int64)])
            self._octave = octave

    def views(self) -> Iterator[View]:
        """From the last octave down, as long as nine tenths of the values lie below."""
        octaves = self.counts.astype(np.float64)
        middles = (1 + (np.arange(BINS) + 0.5) / BINS) * 2.0 ** np.arange(OCTAVES)[:, None]
        for last in range(OCTAVES - 1, -1, -1):
            width = math.ldexp(1 / BINS, self._octave - _BIAS - (OCTAVES - 1 - last))
            above, places = octaves[last + 1 :], middles[last + 1 :] * (BINS / 2.0**last)
            beyond = [float((above * places**power).sum()) for power in (0, 1, 2)]
            counts = _joined(octaves[: last + 1], self.small)
            if counts.sum() < 9 * beyond[0]:
                break
            yield View(counts, width, (beyond[0], beyond[1], beyond[2]))


@dataclass(frozen=True)
class View:
    """A histogram with bins of one width, from 0 to the end of an octave.

    Attributes:
        counts: [2 · BINS].
        width: of a bin.
        beyond: how many values lie beyond, their sum and that of their squares, in widths.
    """

    counts: F64
    width: float
    beyond: tuple[float, float, float]

    @property
    def total(self) -> float:
        """Values in it and beyond."""
        return float(self.counts.sum()) + self.beyond[0]

    @property
    def last(self) -> int:
        """Bins up to the last that is not empty."""
        return int(np.flatnonzero(self.counts)[-1]) + 1


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
    if not histogram.counts.any():
        return StaticRange(histogram.largest, 0.0)
    view, bins = METHODS[method](list(histogram.views()))
    threshold = min(bins * view.width, histogram.largest)
    return StaticRange(threshold, float(divergences(view, np.array([bins]))[0]))


def beyond(
    ranges: Mapping[str, StaticRange], most: float = MAX_DIVERGENCE
) -> dict[str, StaticRange]:
    """The tensors whose divergence is not below a bound, the worst first."""
    over = [(name, found) for name, found in ranges.items() if not found.divergence < most]
    return dict(sorted(over, key=lambda item: (-item[1].divergence, item[0])))


def divergences(view: View, bins: NDArray[np.int64]) -> F64:
    """KL divergence for thresholds at the ends of so many bins, above BINS, in nats.

    The true histogram P up to the threshold has what is clipped in its last bin. In its 8-bit
    version Q, which lacks what is clipped, all bins that are rounded to one level share their
    values evenly, as far as they are not empty in P. Where the last level would have none, it has
    one. It is infinite where all is clipped.
    """
    counts, total = view.counts, view.total
    sums, filled, own = map(_sums, (counts, counts > 0, _xlogx(counts)))
    edges, last = _edges(bins), bins - 1
    clipped = total - sums[bins]
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
        kl = (entropy - cross) / total + np.log((sums[bins] + alone) / total)
    return np.where(clipped < total, np.maximum(kl, 0), np.inf)


def squared_errors(view: View, bins: NDArray[np.int64]) -> F64:
    """Mean squared error for thresholds at the ends of so many bins, as if every value lay in the
    middle of its bin.
    """
    middles = np.arange(len(view.counts)) + 0.5
    moments = [view.counts * middles**power for power in (0, 1, 2)]
    edges = _edges(bins)
    edges[:, -1] = len(middles)  # what is clipped has the highest level
    mass, first = (np.diff(_sums(moment)[edges], axis=1) for moment in moments[:2])
    mass[:, -1] += view.beyond[0]
    first[:, -1] += view.beyond[1]
    second = moments[2].sum() + view.beyond[2]
    values = np.arange(LEVELS + 1) * (bins[:, None] / LEVELS)
    errors = second + (values * (values * mass - 2 * first)).sum(axis=1)
    return np.asarray(errors * (view.width**2 / view.total))


def thresholds(views: list[View]) -> Iterator[tuple[View, NDArray[np.int64]]]:
    """Those that are tried, in bins below them: in each view the upper half, from above."""
    for view in views:
        highest = len(view.counts) if view.beyond[0] else view.last
        yield view, np.arange(highest, BINS, -1)


Method = Callable[[list[View]], tuple[View, int]]


def _by_least(measure: Callable[[View, NDArray[np.int64]], F64]) -> Method:
    """Of equals (but for roundings of float64), the highest."""

    def method(views: list[View]) -> tuple[View, int]:
        tried = [(view, bins, measure(view, bins)) for view, bins in thresholds(views)]
        most = min(measured.min() for *_, measured in tried) * (1 + 1e-9)
        return next(
            (view, int(bins[np.argmax(measured <= most)]))
            for view, bins, measured in tried
            if measured.min() <= most
        )

    return method


def _by_percentile(views: list[View]) -> tuple[View, int]:
    clipped = math.floor(views[0].total * (1 - PERCENTILE / 100))
    view = [view for view in views if view.beyond[0] <= clipped][-1]
    kept = np.cumsum(view.counts)
    bins = int(np.searchsorted(kept, view.total - clipped)) + 1
    return view, max(bins, BINS + 1)


def _by_largest(views: list[View]) -> tuple[View, int]:
    return views[0], views[0].last


METHODS: dict[str, Method] = {
    "kl": _by_least(divergences),
    "mse": _by_least(squared_errors),
    "percentile": _by_percentile,
    "minmax": _by_largest,
}
"""Name → the view, and how many of its bins lie below the threshold."""


def _joined(octaves: F64, small: int) -> F64:
    """Counts of some octaves in bins as wide as those of the last."""
    counts = np.zeros(2 * BINS)
    counts[0] = small
    for below, octave in enumerate(octaves[::-1]):
        begin = BINS >> below
        if begin:
            counts[begin : 2 * begin] = octave.reshape(begin, -1).sum(axis=1)
        else:
            counts[0] += octave.sum()
    return counts


def _edges(bins: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first bin of each level, and the end of the last: [thresholds, LEVELS + 2]."""
    ends = bins[:, None]
    odd = 2 * np.arange(LEVELS + 2) - 1  # level k begins at the value (k - 1/2) · n / LEVELS
    return np.asarray(np.clip(-((LEVELS - odd * ends) // (2 * LEVELS)), 0, ends))


def _sums(x: NDArray[Any]) -> F64:
    """Of the first 0, 1, 2, ... elements."""
    return np.concatenate([[0.0], np.cumsum(x, dtype=np.float64)])


def _xlogx(x: F64) -> F64:
    return np.asarray(x * np.log(np.where(x > 0, x, 1)))
