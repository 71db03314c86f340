"""How far two arrays are apart that should be the same."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepmnn.formats import BLOCK_ROWS
from deepmnn.inspect.side import Layer

F64 = NDArray[np.float64]

GUILTY = 10.0
"""How many times the squared error of other tokens an expert's must have to be named."""


@dataclass(frozen=True)
class Difference:
    """Of rows [n, width], found against wanted.

    Attributes:
        error: the root mean square of the difference, relative to that of what is wanted; of
            choices of experts the share that is different, and so where experts are masked by minus
            infinity. Infinite where a number is none.
        cosine: between both, as vectors of all their numbers.
        largest: the largest difference of two numbers, and its `row` and `column`.
        found, wanted: the two numbers there.
        block: the first of the BLOCK_ROWS columns whose relative error is the largest, and
        block_ratio: that error over the median of all blocks; 0 where there are fewer than 4.
        onset: the first position from which on the error is ten times that before; None: there is
            none.
        expert: the one whose tokens have most of the error, of what experts add up to; None: it is
            no one's in particular.
    """

    error: float
    cosine: float = 1.0
    largest: float = 0.0
    row: int = 0
    column: int = 0
    found: float = 0.0
    wanted: float = 0.0
    block: int = 0
    block_ratio: float = 0.0
    onset: int | None = None
    expert: int | None = None


def difference(found: NDArray[Any], wanted: NDArray[Any], positions: NDArray[Any]) -> Difference:
    """Of two arrays [n, width]; indices of experts as sets.

    positions: of each row in its sequence.
    """
    if np.issubdtype(wanted.dtype, np.integer):
        return _of_choices(found, wanted)
    if np.isneginf(wanted).any() and not np.isnan(found).any():
        return _of_masked(found, wanted, positions)
    with np.errstate(over="ignore", invalid="ignore"):
        apart = found - wanted
        squares = np.square(apart, dtype=np.float64)
        norms = np.square(wanted, dtype=np.float64)
        total, norm = float(squares.sum()), float(norms.sum())
        own = float(np.square(found, dtype=np.float64).sum())
        dot = float(np.einsum("ij,ij->", found, wanted, dtype=np.float64))
    if not np.isfinite(total):
        row, column = np.argwhere(~np.isfinite(apart))[0].tolist()
        return Difference(
            np.inf, 0.0, np.inf, row, column, float(found[row, column]), float(wanted[row, column])
        )
    place = int(np.abs(apart).argmax())
    row, column = divmod(place, apart.shape[1])
    block, ratio = _worst_block(squares.sum(axis=0), norms.sum(axis=0))
    return Difference(
        relative(total, norm),
        dot / np.sqrt(own * norm) if own and norm else float(own == norm),
        abs(float(apart[row, column])),
        row,
        column,
        float(found[row, column]),
        float(wanted[row, column]),
        block,
        ratio,
        _onset(squares.sum(axis=1), norms.sum(axis=1), positions),
    )


def guilty_expert(found: NDArray[Any], wanted: NDArray[Any], chosen: NDArray[Any]) -> int | None:
    """The expert whose tokens are off much more than all others, of sums [tokens, width].

    chosen: the experts of each token, [tokens, top_k].
    """
    errors = np.square(found - wanted, dtype=np.float64).sum(axis=1)
    ratios = {}
    for expert in np.unique(chosen).tolist():
        mine = (chosen == expert).any(axis=1)
        if 0 < mine.sum() < len(mine):
            ratios[expert] = errors[mine].mean() / max(errors[~mine].mean(), 1e-30)
    if not ratios:
        return None
    worst = max(ratios, key=lambda expert: ratios[expert])
    return worst if ratios[worst] > GUILTY else None


def relative(squared: float, norm: float) -> float:
    """The root of one sum of squares over that of another; infinite over none."""
    if norm > 0:
        return float(np.sqrt(squared / norm))
    return np.inf if squared > 0 else 0.0


def percent(share: float) -> str:
    """An error for people: "3.2 %", "4e-05 %", "infinite"."""
    if not math.isfinite(share):
        return "no number" if math.isnan(share) else "infinite"
    if share >= 1e4:
        return f"{share * 100:.2g} %"
    if share == 0 or share >= 1:
        return f"{share * 100:,.0f} %"
    if share < 1e-5:
        return f"{share * 100:.1g} %"
    return f"{share * 100:#.2g}".rstrip(".") + " %"


def in_one_order(layer: Layer, name: str, indices: str) -> NDArray[Any]:
    """A value that has a part for each expert chosen, in the order of the experts' numbers."""
    chosen = layer[indices]
    parts = layer[name].reshape(*chosen.shape, -1)
    order = np.argsort(chosen, axis=1)[:, :, None]
    return np.asarray(np.take_along_axis(parts, order, axis=1).reshape(len(parts), -1))


def _of_masked(found: NDArray[Any], wanted: NDArray[Any], positions: NDArray[Any]) -> Difference:
    """Of scores of experts, minus infinity where they may not be chosen."""
    masks = np.isneginf(found), np.isneginf(wanted)
    other = masks[0] != masks[1]
    if not other.any():
        here, there = (np.where(masks[1], 0, each) for each in (found, wanted))
        return difference(here, there, positions)
    row, column = np.argwhere(other)[0].tolist()
    share = float(other.mean())
    return Difference(
        share, 1 - share, np.inf, row, column, float(found[row, column]), float(wanted[row, column])
    )


def _of_choices(found: NDArray[Any], wanted: NDArray[Any]) -> Difference:
    here, there = np.sort(found, axis=1), np.sort(wanted, axis=1)
    missing = ~(here[:, :, None] == there[:, None, :]).any(axis=2)
    if not missing.any():
        return Difference(0.0)
    row, column = np.argwhere(missing)[0].tolist()
    return Difference(
        float(missing.mean()),
        float(1 - missing.mean()),
        float(missing.sum(axis=1).max()),
        row,
        column,
        float(here[row, column]),
        float(there[row, column]),
    )


def _worst_block(squares: F64, norms: F64) -> tuple[int, float]:
    """The block of columns with the largest relative error, and how much larger than the median."""
    starts = np.arange(0, len(squares), BLOCK_ROWS)
    if len(starts) < 4:
        return 0, 0.0
    errors, sizes = (np.add.reduceat(sums, starts) for sums in (squares, norms))
    usual = np.median(sizes)
    found = np.sqrt(errors / np.maximum(sizes, usual * 1e-3 + 1e-300))
    middle = float(np.median(found))
    worst = int(found.argmax())
    return int(starts[worst]), float(found[worst]) / middle if middle > 0 else 0.0


def _onset(squares: F64, norms: F64, positions: NDArray[Any]) -> int | None:
    last = int(positions.max())
    by_position = np.bincount(positions, squares, last + 1), np.bincount(positions, norms, last + 1)
    errors, sizes = (np.cumsum(sums) for sums in by_position)
    for start in range(4, last - 2):
        before = errors[start - 1] / max(sizes[start - 1], 1e-300)
        after = by_position[0][start] / max(by_position[1][start], 1e-300)
        rest = (errors[-1] - errors[start - 1]) / max(sizes[-1] - sizes[start - 1], 1e-300)
        if min(after, rest) > 100 * before and after > 1e-12:
            return start
    return None
