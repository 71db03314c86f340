"""A quantised matrix as a scheme stores it, apart from the numbers that it stands for."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepmnn.graph.weights import F32
from deepmnn.source.codecs.codec import Codec

_AT_ONCE = 1 << 20
"""Numbers that are made at a time: what is needed besides the matrix stays small."""


@dataclass(frozen=True)
class Coded:
    """A matrix of integer codes: number = (level − zero) · scale, both of its row and group.

    Attributes:
        codes: uint8 or int8 [rows, cols].
        scales: [rows, groups]; where one of the two is 1, all rows or all columns share them.
        group_size: neighbouring columns that share a scale, where `order` is None; the last group
            may be narrower.
        zeros: the zero points, as `scales`; None: 0 everywhere.
        order: the group of each column [cols], where groups are not made of neighbours.
        levels: what each code stands for; None: the code itself.
    """

    codes: NDArray[np.uint8] | NDArray[np.int8]
    scales: F32
    group_size: int
    zeros: F32 | None = None
    order: NDArray[np.int64] | None = None
    levels: F32 | None = None

    def values(self) -> F32:
        """The numbers, [rows, cols]."""
        rows, cols = self.codes.shape
        values = np.empty((rows, cols), np.float32)
        step = max(1, _AT_ONCE // max(1, cols))
        for start in range(0, rows, step):
            part = slice(start, start + step)
            codes: NDArray[Any] = self.codes[part]
            numbers = values[part]
            numbers[...] = codes if self.levels is None else self.levels[codes]
            with np.errstate(over="ignore", invalid="ignore"):  # codes of FP8 may be NaN
                if self.zeros is not None:
                    numbers -= self._spread(self.zeros, part)
                numbers *= self._spread(self.scales, part)
        return values

    def _spread(self, of_groups: F32, rows: slice) -> F32:
        """The number of each column's group, for some rows."""
        chosen = of_groups if len(of_groups) == 1 else of_groups[rows]
        if chosen.shape[1] == 1:
            return chosen
        if self.order is not None:
            return chosen[:, self.order]
        return chosen.repeat(self.group_size, axis=1)[:, : self.codes.shape[1]]


class MatrixCodec(Codec):
    """A scheme whose weights are all `Coded`."""

    @abstractmethod
    def coded(self, name: str) -> Coded:
        """A listed tensor as it is stored. Raises as `read`."""

    def read(self, name: str) -> F32:
        """What the codes stand for."""
        return self.coded(name).values()
