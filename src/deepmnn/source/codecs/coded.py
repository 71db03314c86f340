"""A quantised matrix as a scheme stores it, apart from the numbers that it stands for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from deepmnn.formats import E8M0_BIAS, FORMATS, PANEL_COLS, PART_COLS, Groups, KeptCodes, named
from deepmnn.graph.weights import F32
from deepmnn.source.codecs.codec import Codec
from deepmnn.source.codecs.packing import E2M1, U8
from deepmnn.source.codecs.settings import text

_AT_ONCE = 1 << 20
"""Numbers that are made at a time: what is needed besides the matrix stays small."""

_GROUPS = (PANEL_COLS, 128, 64, PART_COLS)
"""Columns of a kept format's group. One that is a multiple of these repeats its scale."""

_NEAR = 2.0**-11
"""The most that rounding to float16 changes a scale that is neither too large nor too small."""


@dataclass(frozen=True)
class Coded:
    """A matrix of integer codes: number = (level − zero) · scale, both of its row and group.

    Attributes:
        shape: [rows, cols].
        bits: of a code.
        unpack: makes the codes, uint8 [rows, cols]: all else is known without them.
        scales: [rows, groups]; where one of the two is 1, all rows or all columns share them.
        group_size: neighbouring columns that share a scale, where `order` is None; the last group
            may be narrower.
        zeros: the zero points, as `scales`; None: 0 everywhere.
        order: the group of each column [cols], where groups are not made of neighbours.
        levels: what each code stands for; None: the code itself.
    """

    shape: tuple[int, int]
    bits: int
    unpack: Callable[[], U8]
    scales: F32
    group_size: int
    zeros: F32 | None = None
    order: NDArray[np.int64] | None = None
    levels: F32 | None = None

    def values(self) -> F32:
        """The numbers, [rows, cols]."""
        rows, cols = self.shape
        codes, values = self.unpack(), np.empty((rows, cols), np.float32)
        step = max(1, _AT_ONCE // max(1, cols))
        for start in range(0, rows, step):
            part = slice(start, start + step)
            numbers = values[part]
            numbers[...] = codes[part] if self.levels is None else self.levels[codes[part]]
            with np.errstate(over="ignore", invalid="ignore"):  # codes of FP8 may be NaN
                if self.zeros is not None:
                    numbers -= self._spread(self.zeros, part)
                numbers *= self._spread(self.scales, part)
        return values

    def kept_format(self) -> str | None:
        """The smallest kept format that holds the codes as they are; None where none does.

        float16 holds each scale, or a number within 2^-11 of it.
        """
        if self.order is not None:
            return None
        wanted = self._groups()
        if wanted.scale == "e8m0":
            fits = self.zeros is None and self._has_exponents()
        else:
            fits = self.levels is None and self._has_zero_bytes() and self._has_near_scales()
        found = (f.name for f in FORMATS.values() if f.groups == wanted and f.bits >= self.bits)
        return next(found, None) if fits else None

    def kept(self) -> KeptCodes | None:
        """The codes in that format. Every number is `values`' bit for bit where float16 holds its
        scale, and within 2^-11 of it elsewhere.
        """
        if (format := self.kept_format()) is None:
            return None
        groups = named(format).groups
        assert groups is not None
        scales = self._repeated(self.scales, groups.columns)
        if groups.scale == "e8m0":
            exponents = np.frexp(scales)[1] - 1 + E8M0_BIAS
            return KeptCodes.of(format, self.unpack(), exponents.astype(np.uint8))
        zeros = np.zeros((1, 1), np.float32) if self.zeros is None else self.zeros
        shifts = self._repeated(zeros, groups.columns).astype(np.uint8)
        return KeptCodes.of(format, self.unpack(), scales.astype(np.float16), shifts)

    def _groups(self) -> Groups:
        """Those of the kept format that may hold the codes, if there is one."""
        parts = [self.scales] if self.zeros is None else [self.scales, self.zeros]
        size = PANEL_COLS if all(part.shape[1] == 1 for part in parts) else self.group_size
        if self.levels is E2M1:
            return Groups(0 if size % PART_COLS else PART_COLS, "e8m0")
        columns = next((columns for columns in _GROUPS if size % columns == 0), 0)
        return Groups(columns, "f16", "zero")

    def _has_exponents(self) -> bool:
        halves = np.frexp(self.scales)[0]
        return bool(((halves == 0.5) & (self.scales >= 2.0**-E8M0_BIAS)).all())

    def _has_zero_bytes(self) -> bool:
        zeros = self.zeros
        return zeros is None or bool(
            ((zeros >= 0) & (zeros < 256) & (np.rint(zeros) == zeros)).all()
        )

    def _has_near_scales(self) -> bool:
        with np.errstate(over="ignore"):
            error = self.scales.astype(np.float16).astype(np.float32) - self.scales
        return bool((np.abs(error) <= np.abs(self.scales) * np.float32(_NEAR)).all())

    def _repeated(self, of_groups: F32, columns: int) -> F32:
        """The number of each group of so many columns, [rows, groups]."""
        rows, cols = self.shape
        times = 1 if of_groups.shape[1] == 1 else self.group_size // columns
        groups = of_groups.repeat(times, axis=1)[:, : -(-cols // columns)]
        return np.ascontiguousarray(np.broadcast_to(groups, (rows, -(-cols // columns))))

    def _spread(self, of_groups: F32, rows: slice) -> F32:
        """The number of each column's group, for some rows."""
        chosen = of_groups if len(of_groups) == 1 else of_groups[rows]
        if chosen.shape[1] == 1:
            return chosen
        if self.order is not None:
            return chosen[:, self.order]
        return chosen.repeat(self.group_size, axis=1)[:, : self.shape[1]]


class MatrixCodec(Codec):
    """A scheme whose weights are all `Coded`."""

    @abstractmethod
    def coded(self, name: str) -> Coded:
        """A listed tensor as it is stored, its codes not read yet. Raises as `read`."""

    def read(self, name: str) -> F32:
        """What the codes stand for."""
        return self.coded(name).values()

    def codes(self, name: str) -> KeptCodes | None:
        """The codes as they are stored, where a kept format holds them."""
        matrix = self.matrix(name)
        return None if matrix is None else matrix.kept()

    def kept_format(self, name: str) -> str | None:
        """By the scales and zero points."""
        matrix = self.matrix(name)
        return None if matrix is None else matrix.kept_format()

    def matrix(self, name: str) -> Coded | None:
        """A listed tensor as it is stored; None where that is no matrix of the tensor's shape.
        Raises as `read`.
        """
        coded = self.coded(name)
        return coded if coded.shape == self.shape(name) else None


_C = TypeVar("_C", bound=MatrixCodec)


def self_named(codec: _C, quantization: Mapping[str, Any] | None) -> _C | None:
    """A codec whose tensors' names tell its scheme, where config.json says nothing; or None."""
    if quantization is None:
        return codec if codec.parts() else None
    return codec if text(quantization, "quant_method") == codec.scheme else None
