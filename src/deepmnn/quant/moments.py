"""What a matrix multiplies, summed over tokens: second moments, and what its products miss."""

from __future__ import annotations

import numpy as np

from deepmnn.errors import RequestError
from deepmnn.formats import F32

_LEAST_ROWS, _MOST_ROWS = 64, 4096


class Moments:
    """The sum of x xᵀ over the rows x of inputs [n, cols], and that of d xᵀ, in float32.

    d [missing] is what the product with x should have been more than it is. Rows are brought
    together before they are multiplied: a product of few rows writes as much memory as one of many.

    Attributes:
        corrects: whether rows come with d.
        rows: how many were added.
    """

    def __init__(self, cols: int, missing: int = 0) -> None:
        self._total: F32 = np.zeros((cols, cols), np.float32)
        self._missed: F32 = np.zeros((missing, cols), np.float32)
        room = min(max(cols // 2, _LEAST_ROWS), _MOST_ROWS)
        self._room: F32 = np.empty((room, cols), np.float32)
        self._missing: F32 = np.empty((room, missing), np.float32)
        self._waiting = 0
        self.corrects = missing > 0
        self.rows = 0

    def add(self, x: F32, missing: F32 | None = None) -> None:
        """Adds rows [n, cols], with those of d where there are any."""
        self.rows += len(x)
        done = 0
        while done < len(x):
            fits = min(len(x) - done, len(self._room) - self._waiting)
            place = slice(self._waiting, self._waiting + fits)
            self._room[place] = x[done : done + fits]
            if missing is not None:
                self._missing[place] = missing[done : done + fits]
            self._waiting += fits
            done += fits
            if self._waiting == len(self._room):
                self._multiply()

    def total(self) -> F32:
        """The sum of x xᵀ so far, [cols, cols]. Raises RequestError for NaN or infinity in it."""
        self._multiply()
        check_finite(self._total.diagonal())
        return self._total

    def missed(self) -> F32:
        """The sum of d xᵀ so far, [missing, cols]. Raises as `total`."""
        self._multiply()
        check_finite(self._missed)
        return self._missed

    def _multiply(self) -> None:
        rows = self._room[: self._waiting]
        self._total += rows.T @ rows
        if self.corrects:
            self._missed += self._missing[: self._waiting].T @ rows
        self._waiting = 0


def check_finite(numbers: F32) -> None:
    """Raises RequestError for NaN or infinity among activations, or their sums."""
    if not np.isfinite(numbers).all():
        raise RequestError(
            "activations with NaN or infinity",
            "finite numbers",
            "The checkpoint is damaged, or its config.json is another model's.",
        )
