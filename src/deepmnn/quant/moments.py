"""Second moments of a matrix's inputs, summed over tokens."""

from __future__ import annotations

import numpy as np

from deepmnn.errors import RequestError
from deepmnn.formats import F32

_LEAST_ROWS, _MOST_ROWS = 64, 4096


class Moments:
    """The sum of x xᵀ over the rows x of inputs [n, cols], in float32.

    Rows are brought together before they are multiplied: a product of few rows writes as much
    memory as one of many.

    Attributes:
        rows: how many were added.
    """

    def __init__(self, cols: int) -> None:
        self._total: F32 = np.zeros((cols, cols), np.float32)
        self._room: F32 = np.empty((min(max(cols // 2, _LEAST_ROWS), _MOST_ROWS), cols), np.float32)
        self._waiting = 0
        self.rows = 0

    def add(self, x: F32) -> None:
        """Adds rows [n, cols]."""
        self.rows += len(x)
        while len(x):
            fits = x[: len(self._room) - self._waiting]
            self._room[self._waiting : self._waiting + len(fits)] = fits
            self._waiting += len(fits)
            x = x[len(fits) :]
            if self._waiting == len(self._room):
                self._multiply()

    def total(self) -> F32:
        """The sum so far, [cols, cols]. Raises RequestError for inputs with NaN or infinity."""
        self._multiply()
        if not np.isfinite(self._total.diagonal()).all():
            raise RequestError(
                "activations with NaN or infinity",
                "finite numbers",
                "The checkpoint is damaged, or its config.json is another model's.",
            )
        return self._total

    def _multiply(self) -> None:
        rows = self._room[: self._waiting]
        self._total += rows.T @ rows
        self._waiting = 0
