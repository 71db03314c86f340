"""The storage formats of weights: the one home of what each of them is.

A weight is codes, scales and a format. A stored matrix [rows, cols] is a run of blocks of 16 rows;
in a quantised one the columns of a block lie in panels of 256, each with a scale for every row, and
a format may divide a panel into groups with multipliers of that scale. docs/layouts.md has the
bytes; the core's table (native/kernels/formats.h) is the twin of this one.

Adding a format is an entry here and there, a rounding rule (quant/rounding.py and its twin
native/kernels/rounding.h) and kernels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepmnn.errors import RequestError, argument

F32 = NDArray[np.float32]
F16 = NDArray[np.float16]
I8 = NDArray[np.int8]
U8 = NDArray[np.uint8]

BLOCK_ROWS = 16
"""Rows per block of a stored matrix."""

PANEL_COLS = 256
"""Columns per panel of a quantised matrix."""

PART_COLS = 32
"""Every group, and what is stored of every row of a quantised matrix, is a multiple of these."""

ALIGNMENT = 64
"""Stored weights are padded to a multiple of so many bytes."""

MULTIPLIER_MAX = 15
"""Multipliers are sixteenths of a scale, of either sign: a 4-bit code times one fits a byte."""

_SCALE_NBYTES = 2


@dataclass(frozen=True)
class Format:
    """How the numbers of a weight are stored.

    Attributes:
        name: what recipes, graph.json and the command line call it.
        code: its number in program.bin and in the core.
        bits: of one number, without scales.
        columns: stored columns are a multiple of these, or of a group that has a multiplier.
        group_sizes: columns that may have a scale of their own; floats have no groups, so 0.
        default_group_size: the one of them that a weight gets unless another one pads less.
        offset: the stored code of zero: codes run from -offset to offset - 1. 0: floats.
        multipliers: whether groups have multipliers of their panel's scale.
    """

    name: str
    code: int
    bits: int
    columns: int = 1
    group_sizes: tuple[int, ...] = (0,)
    default_group_size: int = 0
    offset: int = 0
    multipliers: bool = False

    @property
    def is_matrix(self) -> bool:
        """False for vectors: raw numbers, no blocks."""
        return self != VECTOR

    @property
    def is_quantized(self) -> bool:
        """Whether it stores codes and scales; else floats."""
        return self.offset > 0

    @property
    def codes_per_byte(self) -> int:
        """Codes that share a byte."""
        return 8 // self.bits

    def check_group_size(self, group_size: int) -> None:
        """Raises RequestError unless groups may have so many columns (0: no groups)."""
        if group_size not in self.group_sizes:
            raise RequestError(
                argument("group_size", f" {group_size} for {self.name}"),
                f"one of {self.group_sizes}",
            )

    def group_size(self, cols: int) -> int:
        """Columns of a group of a matrix, by default: fewer where that pads less."""
        least, default = self.group_sizes[0], self.default_group_size
        less = self.stored_cols(cols, least) < self.stored_cols(cols, default)
        return least if less else default

    def stored_cols(self, cols: int, group_size: int = 0) -> int:
        """Columns of a matrix that are stored, padding included."""
        return round_up(cols, group_size if self.multipliers else self.columns)

    def block_nbytes(self, cols: int, group_size: int = 0) -> int:
        """Bytes of one block of 16 rows of a matrix: its panels one after another."""
        stored = self.stored_cols(cols, group_size)
        row = stored * self.bits // 8
        if self.multipliers:
            row += stored // group_size
        if self.is_quantized:
            row += round_up(stored, PANEL_COLS) // PANEL_COLS * _SCALE_NBYTES
        return BLOCK_ROWS * row

    def nbytes(self, rows: int, cols: int, group_size: int = 0) -> int:
        """Bytes of a stored weight, padded to 64. A vector has rows = 1.

        Raises RequestError for a group size that the format does not have.
        """
        self.check_group_size(group_size)
        if not self.is_matrix:
            return round_up(rows * cols * self.bits // 8, ALIGNMENT)
        return round_up(
            math.ceil(rows / BLOCK_ROWS) * self.block_nbytes(cols, group_size), ALIGNMENT
        )


VECTOR = Format("vector", 0, 32)
"""Raw float32: norms and biases."""

F32_MATRIX = Format("f32", 1, 32)
BF16_MATRIX = Format("bf16", 2, 16, columns=2)

FORMATS: dict[str, Format] = {
    made.name: made
    for made in (
        VECTOR,
        F32_MATRIX,
        BF16_MATRIX,
        Format(
            *("w8", 3, 8, PART_COLS),
            group_sizes=(PANEL_COLS,),
            default_group_size=PANEL_COLS,
            offset=128,
        ),
        Format(
            *("w4", 4, 4),
            group_sizes=(32, 64, 128),
            default_group_size=64,
            offset=8,
            multipliers=True,
        ),
    )
}
"""Name → format, in the order of their codes."""


def named(name: str) -> Format:
    """The format of that name. Raises RequestError, listing the choices."""
    if not isinstance(name, str) or name not in FORMATS:
        raise RequestError(f"weight format {name!r:.80}", f"one of {', '.join(FORMATS)}")
    return FORMATS[name]


@dataclass(frozen=True)
class Codes:
    """A quantised matrix before it is laid out in bytes: value = code · its group's scale.

    Codes may come from rounding to nearest (quant/rounding.py) or from a checkpoint that somebody
    else quantised (source/codecs/): both are laid out the same way (quant/layout.py).

    Attributes:
        format: the name of a quantised format.
        codes: signed, int8 [rows, stored columns].
        multipliers: int8 [rows, groups] in sixteenths of the scale; None where groups are panels.
        scales: float16 [rows, panels].
        group_size: columns per group.
    """

    format: str
    codes: I8
    multipliers: I8 | None
    scales: F16
    group_size: int

    def group_scales(self) -> F32:
        """What the codes of a group are multiplied by, [rows, groups]: exact in float32."""
        scales = self.scales.astype(np.float32)
        if self.multipliers is None:
            return scales
        units = np.repeat(scales, PANEL_COLS // self.group_size, axis=1)
        with np.errstate(invalid="ignore"):  # damaged scales may be NaN or infinite
            units *= np.float32(1 / (MULTIPLIER_MAX + 1))
            return self.multipliers.astype(np.float32) * units[:, : self.multipliers.shape[1]]

    def values(self) -> F32:
        """The weights, [rows, stored columns]: exact in float32."""
        rows, columns = self.codes.shape
        scales = np.repeat(self.group_scales(), self.group_size // PART_COLS, axis=1)
        parts = self.codes.reshape(rows, columns // PART_COLS, PART_COLS)
        with np.errstate(invalid="ignore"):
            values: F32 = parts * scales[:, : columns // PART_COLS, None]
        return values.reshape(rows, columns)


def round_up(n: int, multiple: int) -> int:
    """The least multiple that is not below n."""
    return -(-n // multiple) * multiple
