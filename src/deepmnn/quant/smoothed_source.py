"""A model whose down-projections read numbers of more equal size.

What down_proj reads is the product of two values, silu(gate) and up. So any factor may be taken
from a row of up_proj and given to the column of down_proj that reads it:

    s = sqrt(size / its geometric mean over the columns)       size: root mean square of a column
    up_proj: row / s            down_proj: column · s

The model stays the same, and both sides round better: half of what makes columns unequal is left in
the activations, and half goes into the weights. Rows of up_proj do not mind: each has scales of its
own. This is the one input of a matrix that no rotation of the weights reaches
(rotated_source.py).
Source: SmoothQuant (arXiv:2211.10438) and AWQ (arXiv:2306.00978), with the exponent 1/2.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from deepmnn.formats import F32
from deepmnn.source.source import Source
from deepmnn.source.wrapped import WrappedSource

SMOOTHED = "smoothed"
"""What `Source.changes` calls it."""

DOWN, _UP = "down_proj", "up_proj"
_MOST = np.float32(32.0)
"""No factor is larger, nor smaller than its inverse."""


class SmoothedSource(WrappedSource):
    """Another source's model: same config, same tensors, equal logits.

    Args:
        source: the other one.
        sizes: a down-projection's weight → the root mean square of each of its inputs' columns.
    """

    def __init__(self, source: Source, sizes: Mapping[str, F32]) -> None:
        super().__init__(source)
        self.changes += (SMOOTHED,)
        self._factors = {name: _factors(size) for name, size in sizes.items()}

    def read(self, name: str) -> F32:
        """A tensor of the smoothed model."""
        w = self._source.read(name)
        stem, _, kind = name.rpartition(".")
        module, _, part = stem.rpartition(".")
        s = self._factors.get(f"{module}.{DOWN}.weight")
        if s is None or part not in (DOWN, _UP) or (part, kind) == (DOWN, "bias"):
            return w
        if part == DOWN:
            return w * s
        return (w.T / s).T


def _factors(size: F32) -> F32:
    """s of every column; 1 where a column was always 0."""
    seen = size > 0
    logs = np.log(size, out=np.zeros(len(size), np.float32), where=seen)
    middle = logs[seen].mean() if seen.any() else np.float32(0)
    s = np.where(seen, np.exp((logs - middle) / 2), 1)
    return np.clip(s, 1 / _MOST, _MOST).astype(np.float32)
