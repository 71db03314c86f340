"""Second moments of a matrix's inputs, summed over tokens."""

from __future__ import annotations

import numpy as np

from deepmnn.errors import RequestError
from deepmnn.formats import F32

_PIECE = 4096
"""Rows that are multiplied at a time."""


class Moments:
    """The sum of x xᵀ over the rows x of inputs [n, cols], in float32.

    Attributes:
        total: [cols, cols].
        rows: how many were added.
    """

    def __init__(self, cols: int) -> None:
        self.total: F32 = np.zeros((cols, cols), np.float32)
        self.rows = 0

    def add(self, x: F32) -> None:
        """Adds rows [n, cols]. Raises RequestError for NaN or infinity."""
        for start in range(0, len(x), _PIECE):
            piece = np.ascontiguousarray(x[start : start + _PIECE])
            self.total += piece.T @ piece
        self.rows += len(x)
        if len(x) and not np.isfinite(self.total.diagonal()).all():
            raise RequestError(
                "activations with NaN or infinity",
                "finite numbers",
                "The checkpoint is damaged, or its config.json is another model's.",
            )
