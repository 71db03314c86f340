"""How the numbers of a value are distributed in both models: a few histograms, not the numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 64

_MOST = 1 << 16
"""Numbers that are looked at, evenly spread over rows and columns."""

_TAIL = 5e-4
"""Share of the reference's numbers beyond each end of the span."""

_ROOM = 1.25


@dataclass(frozen=True)
class Sketch:
    """Of a value in both models, over one span of BINS equal parts; what is beyond an end is in the
    part there.

    Attributes:
        low, high: the span. Most of the reference's numbers are well inside.
        model, reference: how many numbers lie in each part.
        difference: the same of the model's less the reference's.
        model_ends, reference_ends: the least and the largest number of each.
    """

    low: float
    high: float
    model: tuple[int, ...]
    reference: tuple[int, ...]
    difference: tuple[int, ...]
    model_ends: tuple[float, float]
    reference_ends: tuple[float, float]


def sketch(found: NDArray[Any], wanted: NDArray[Any]) -> Sketch | None:
    """Of two arrays of one shape; None of indices, and where no number is finite."""
    if not np.issubdtype(wanted.dtype, np.floating):
        return None
    ours, theirs = _spread(found), _spread(wanted)
    finite = np.isfinite(ours) & np.isfinite(theirs)
    if not finite.any():
        return None
    ours, theirs = ours[finite], theirs[finite]
    ends = np.quantile(theirs, (_TAIL, 1 - _TAIL)).tolist()
    middle, half = sum(ends) / 2, (ends[1] - ends[0]) / 2 * _ROOM
    half = half or abs(middle) or 1.0  # all numbers are the same
    low, high = min(middle - half, 0.0), max(middle + half, 0.0)  # differences are around 0
    return Sketch(
        low,
        high,
        _counts(ours, low, high),
        _counts(theirs, low, high),
        _counts(ours - theirs, low, high),
        _ends(ours),
        _ends(theirs),
    )


def _spread(array: NDArray[Any]) -> NDArray[np.float64]:
    """Some of its numbers; a step that shares no factor with the width meets every column."""
    step = -(-array.size // _MOST)
    while math.gcd(step, array.shape[-1]) > 1:
        step += 1
    return array.reshape(-1)[::step].astype(np.float64)


def _counts(values: NDArray[np.float64], low: float, high: float) -> tuple[int, ...]:
    counts, _ = np.histogram(np.clip(values, low, high), BINS, (low, high))
    return tuple(counts.tolist())


def _ends(values: NDArray[np.float64]) -> tuple[float, float]:
    return float(values.min()), float(values.max())
