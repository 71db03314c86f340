"""Numbers → codes by GPTQ: what rounding a column gets wrong, the columns after it make up for.

A row w of a matrix reads inputs x with second moments H = E[x xᵀ]. Its codes times its scales, v,
should make the error of the output small, e H eᵀ with e = w - v, not the error of the numbers. With

    H = U diag(d) Uᵀ          U upper triangular, ones on its diagonal

that error is the sum over columns of d[k] · r[k]², where r = e U. Column k sees the columns before
it only through its target, and rounding the target to the nearest code leaves the least r[k]:

    target[k] = w[k] + sum over j < k of e[j] · U[j, k]
    v[k]      = scale · the level nearest to target[k] / scale
    r[k]      = target[k] - v[k]

This is GPTQ (Frantar et al. 2022, arXiv:2210.17323) in the form of LDLQ (Chee et al. 2023,
arXiv:2307.13304): the same codes, without the inverse of H.

Columns that share a scale get it when their turn comes. Of the numbers that would be best for them
by then, could they be any, the one of largest magnitude is divided by some divisors. All of these
columns are rounded with each of these scales, and each row keeps the one with the least sum of
d[k] · r[k]².
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepmnn.errors import CheckpointError, RequestError
from deepmnn.formats import F16, F32, I8, PANEL_COLS, PART_COLS, Codes, Format, named
from deepmnn.quant.rounding import DIVISORS, inverse, nearest, scales_to_try

Moments = NDArray[np.float32] | NDArray[np.float64]
"""Second moments of a matrix's inputs, [cols, cols]; sums over tokens do as well as means."""

_RETRIES = 3
_MORE_DAMPING = 10.0
_CHUNK_ROWS = 512
_LEAF_COLS = 8
_FP16_MAX = np.float32(65504.0)


@dataclass(frozen=True)
class Feedback:
    """H = U diag(d) Uᵀ of damped second moments H, scaled to a mean diagonal of 1.

    Matrices that read the same inputs share one.

    Attributes:
        upper: U, float32 [cols, cols].
        weights: d, float32 [cols].
        damping: what was added to the diagonal, as a share of its mean.
    """

    upper: F32
    weights: F32
    damping: float

    @property
    def gain(self) -> float:
        """Squared error of the outputs that feedback leaves, as a share of what rounding to nearest
        makes with inputs of these moments.
        """
        return float(self.weights.mean())


@dataclass(frozen=True)
class Grid:
    """What a row may be rounded to.

    Attributes:
        format: its levels.
        columns: that share a scale.
        divisors: of a largest magnitude, for the scales that are tried.
    """

    format: Format
    columns: int
    divisors: tuple[float, ...]


def damping_for(tokens: int) -> float:
    """How much damping moments of so many tokens want, as a share of their mean diagonal.

    The fewer tokens, the more of what moments say is chance. On other text than they come from,
    errors are least at about 0.3 with 1,024 tokens, 0.1 with 4,096 and 0.03 with 16,384.
    """
    return min(max(500 / max(tokens, 1), 0.01), 1.0)


def feedback(moments: Moments, damping: float) -> Feedback:
    """How errors of earlier columns are made up for, from second moments [cols, cols].

    `damping` times the mean of the diagonal is added to it; where that does not make the moments
    positive definite, 10 and then 100 times as much. Only the upper triangle is read. Where all
    moments are zero (nothing was seen) there is no feedback, and `gptq` rounds to nearest.

    Raises RequestError for what no inputs can have as second moments: a shape that is not square
    or not of whole parts, NaN, infinity, negative squares.
    """
    mean = _checked_mean(moments)
    cols = len(moments)
    if mean == 0:
        return Feedback(np.eye(cols, dtype=np.float32), np.ones(cols, np.float32), damping)
    for _ in range(_RETRIES):
        upper = np.empty((cols, cols), np.float32)
        np.divide(moments, mean, out=upper, casting="same_kind")
        upper[np.diag_indices(cols)] += np.float32(damping)
        try:
            return Feedback(upper, _decompose(upper), damping)
        except np.linalg.LinAlgError:
            damping *= _MORE_DAMPING
    raise RequestError(
        f"second moments [{cols}, {cols}] that are not positive definite, nor with "
        f"{damping / _MORE_DAMPING:g} of their mean added to the diagonal",
        "the mean of x xᵀ over inputs x",
    )


def gptq(w: F32, errors: Feedback, format: str) -> Codes:
    """Codes of rotated w [rows, cols], which reads inputs with that feedback.

    The same arguments give the same codes. Raises RequestError for a format without codes or
    feedback of other columns, CheckpointError for NaN or infinity in w.
    """
    storage = named(format)
    if not storage.is_quantized:
        raise RequestError(f"codes in format {format!r}", "a format with codes")
    grid = Grid(storage, PANEL_COLS, DIVISORS[format])
    return Codes(format, *round_to_grid(w, errors, grid))


def round_to_grid(w: F32, errors: Feedback, grid: Grid) -> tuple[I8, F16]:
    """Levels [rows, cols] of w, which reads inputs with that feedback, and the scale of each row
    and run of `grid.columns`. Raises as `gptq`.
    """
    rows, cols = w.shape
    if len(errors.weights) != cols:
        raise RequestError(f"second moments of {len(errors.weights)} columns", f"{cols}")
    if w.size and not (np.isfinite(w.min()) and np.isfinite(w.max())):
        raise CheckpointError("a weight with NaN or infinity", "finite numbers")
    levels = np.empty((rows, cols), np.int8)
    scales = np.empty((rows, -(-cols // grid.columns)), np.float16)
    limit = _FP16_MAX * max(grid.format.levels)  # no code stands for more
    for start in range(0, rows, _CHUNK_ROWS):
        chunk = slice(start, start + _CHUNK_ROWS)
        columns = np.ascontiguousarray(np.clip(w[chunk], -limit, limit).T, np.float32)
        _round_rows(columns, errors, grid, levels[chunk].T, scales[chunk].T)
    return levels, scales


def _checked_mean(moments: Moments) -> float:
    """The mean of the diagonal."""
    shape = moments.shape
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] % PART_COLS or not moments.size:
        raise RequestError(
            f"second moments of shape {list(shape)}",
            f"[cols, cols], cols a multiple of {PART_COLS} as rotation makes them",
        )
    if not (np.isfinite(moments.min()) and np.isfinite(moments.max())):
        raise RequestError("second moments with NaN or infinity", "finite numbers")
    diagonal = np.diagonal(moments).astype(np.float64)
    if diagonal.min() < 0:
        raise RequestError(f"a second moment of {diagonal.min():g}", "squares, 0 or more")
    return float(diagonal.mean())


def _panels(cols: int, size: int = PANEL_COLS) -> Iterator[slice]:
    for start in range(0, cols, size):
        yield slice(start, min(start + size, cols))


def _decompose(upper: F32) -> F32:
    """Turns H into U, in place, and returns d: panel by panel, from the last.

    float32 suffices between panels: no eigenvalue exceeds cols times the mean of the diagonal, so
    damping bounds the condition number. Raises LinAlgError where H is not positive definite.
    """
    weights = np.empty(len(upper), np.float32)
    for panel in reversed(list(_panels(len(upper)))):
        block = upper[panel, panel].astype(np.float64)
        root = np.linalg.cholesky(block[::-1, ::-1])[::-1, ::-1]  # root @ root.T is the block
        diagonal = np.diagonal(root)
        weights[panel] = diagonal**2
        upper[panel, panel] = root / diagonal
        upper[panel, : panel.start] = 0
        above = upper[: panel.start, panel] @ np.linalg.inv(root.T).astype(np.float32)
        for earlier in _panels(panel.start):
            upper[: earlier.stop, earlier] -= above[: earlier.stop] @ above[earlier].T
        upper[: panel.start, panel] = above / diagonal.astype(np.float32)
    return weights


def _round_rows(columns: F32, errors: Feedback, grid: Grid, levels: I8, scales: F16) -> None:
    """Fills levels [cols, rows] and scales [panels, rows] for some rows, given as columns."""
    made = np.empty_like(columns)  # the error e of columns that are rounded
    for index, panel in enumerate(_panels(len(columns), grid.columns)):
        w = columns[panel]
        upper, weights = errors.upper[panel, panel], errors.weights[panel]
        fed = errors.upper[: panel.start, panel].T @ made[: panel.start]
        best = w + np.linalg.inv(upper.astype(np.float64)).T.astype(np.float32) @ fed
        largest = np.take_along_axis(best, np.abs(best).argmax(axis=0)[None], axis=0)[0]
        tries = scales_to_try(largest, grid.divisors)
        search = _Search(w, w + fed, upper, weights, tries, grid.format)
        levels[panel], scale = search.best()
        made[panel] = w - levels[panel] * scale
        scales[index] = scale


class _Search:
    """A panel's columns rounded with every scale that is tried, side by side."""

    def __init__(
        self, w: F32, targets: F32, upper: F32, weights: F32, scales: F32, format: Format
    ) -> None:
        tries, rows = scales.shape
        self._tries = tries
        self._upper, self._weights, self._format = upper, weights, format
        self._w, self._scales = np.tile(w, tries), scales.reshape(-1)
        self._inverse = inverse(self._scales)
        self._targets = np.tile(targets, tries)
        self._errors = np.empty_like(self._targets)
        self._levels = np.empty(self._targets.shape, np.int8)
        self._cost = np.zeros(tries * rows, np.float32)

    def best(self) -> tuple[I8, F32]:
        """Levels [columns, rows] and scales [rows] of least cost; of equals, those tried first."""
        self._round(0, len(self._targets))
        columns, rows = len(self._levels), self._cost.size // self._tries
        least = self._cost.reshape(self._tries, rows).argmin(axis=0)
        kept = least * rows + np.arange(rows)
        return self._levels[:, kept].reshape(columns, rows), self._scales[kept]

    def _round(self, start: int, stop: int) -> None:
        """Columns start to stop, whose targets have the feedback of all before start."""
        if stop - start <= _LEAF_COLS:
            for column in range(start, stop):
                self._round_column(column, start)
            return
        middle = (start + stop) // 2
        self._round(start, middle)
        part = self._upper[start:middle, middle:stop]
        self._targets[middle:stop] += part.T @ self._errors[start:middle]
        self._round(middle, stop)

    def _round_column(self, column: int, start: int) -> None:
        target = self._targets[column]
        for before in range(start, column):
            target += self._upper[before, column] * self._errors[before]
        value = nearest(target * self._inverse, self._format)
        self._levels[column] = value
        value *= self._scales
        np.subtract(self._w[column], value, out=self._errors[column])
        target -= value
        target *= target
        target *= self._weights[column]
        self._cost += target
