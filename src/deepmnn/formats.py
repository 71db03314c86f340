"""The storage formats of weights: the one home of what each of them is.

A weight is codes, scales and a format, or plain floats. A stored matrix [rows, cols] is a run of
blocks of 16 rows; in a quantised one the columns of a block lie in panels of 256, each rotated
(quant/rotation.py) and with a scale for every row. docs/layouts.md has the bytes; the core's table
(native/kernels/formats.h) is the twin of this one.

A code stands for an integer, its level; a number is level · scale, rotated. Levels are uniform
where codes have many bits. Where they have few, they lie where a normal distribution is rounded
with the least squared error (Lloyd 1982, Max 1960), because the numbers of a rotated panel are
nearly normal: that takes 8 % (3 bits), 17 % (4) and 28 % (5) off the squared error.

Adding a format of other bits or levels is an entry here and there, its divisors (quant/rounding.py
and native/kernels/rounding.h), and a line where kernels are chosen (native/kernels/linear.h).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepmnn.errors import RequestError

F32 = NDArray[np.float32]
F16 = NDArray[np.float16]
I8 = NDArray[np.int8]
U8 = NDArray[np.uint8]

BLOCK_ROWS = 16
"""Rows per block of a stored matrix."""

PANEL_COLS = 256
"""Columns per panel of a quantised matrix: they share a scale and are rotated together."""

PART_COLS = 32
"""Columns whose codes lie together: what is stored of a quantised row is a multiple of these."""

ALIGNMENT = 64
"""Stored weights are padded to a multiple of so many bytes."""

_SCALE_NBYTES = 2


@dataclass(frozen=True)
class Format:
    """How the numbers of a weight are stored.

    Attributes:
        name: what recipes, graph.json and the command line call it.
        code: its number in program.bin and in the core.
        bits: of one number, without scales.
        columns: stored columns are a multiple of these.
        levels: what each code stands for; none: it stores floats, without codes.
    """

    name: str
    code: int
    bits: int
    columns: int = 1
    levels: tuple[int, ...] = ()

    @property
    def is_matrix(self) -> bool:
        """False for vectors: raw numbers, no blocks."""
        return self != VECTOR

    @property
    def is_quantized(self) -> bool:
        """Whether it stores codes and scales; else floats."""
        return bool(self.levels)

    @property
    def zero_level(self) -> int:
        """The level nearest to 0; the higher of two."""
        return min(self.levels, key=lambda level: (abs(level), -level))

    def planes(self) -> Iterator[tuple[int, int]]:
        """(bits, shift) of each plane that codes are cut into: the powers of two that make up
        `bits`, the largest first, which holds the lowest bits of a code.
        """
        shift = 0
        for size in (8, 4, 2, 1):
            if self.bits & size:
                yield size, shift
                shift += size

    def stored_cols(self, cols: int) -> int:
        """Columns of a matrix that are stored, padding included."""
        return round_up(cols, self.columns)

    def block_nbytes(self, cols: int) -> int:
        """Bytes of one block of 16 rows of a matrix: its panels one after another."""
        stored = self.stored_cols(cols)
        row = stored * self.bits // 8
        if self.is_quantized:
            row += round_up(stored, PANEL_COLS) // PANEL_COLS * _SCALE_NBYTES
        return BLOCK_ROWS * row

    def nbytes(self, rows: int, cols: int) -> int:
        """Bytes of a stored weight, padded to 64. A vector has rows = 1."""
        if not self.is_matrix:
            return round_up(rows * cols * self.bits // 8, ALIGNMENT)
        return round_up(math.ceil(rows / BLOCK_ROWS) * self.block_nbytes(cols), ALIGNMENT)


def _uniform(name: str, code: int, bits: int) -> Format:
    half = 1 << (bits - 1)
    return Format(name, code, bits, PART_COLS, tuple(range(-half, half)))


def _normal(name: str, code: int, *half: int) -> Format:
    """The top bit of a code turns the level of the others into -1 - level."""
    levels = (*half, *(-1 - level for level in half))
    return Format(name, code, len(levels).bit_length() - 1, PART_COLS, levels)


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
        _uniform("w8", 3, 8),
        _uniform("w6", 4, 6),
        _normal("w5", 5, 2, 7, 12, 17, 22, 27, 33, 39, 45, 51, 58, 66, 75, 86, 100, 121),
        _normal("w4", 6, 2, 7, 12, 18, 24, 31, 40, 53),
        _normal("w3", 7, 6, 20, 36, 58),
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
    """A quantised matrix before it is laid out in bytes: level · its panel's scale, rotated.

    Codes may come from rounding to nearest (quant/rounding.py) or from a checkpoint that somebody
    else quantised (source/codecs/): both are laid out the same way (quant/layout.py).

    Attributes:
        format: the name of a quantised format.
        levels: int8 [rows, stored columns], each one of the format's.
        scales: float16 [rows, panels].
    """

    format: str
    levels: I8
    scales: F16

    def values(self) -> F32:
        """The rotated numbers, [rows, stored columns]: exact in float32."""
        rows, columns = self.levels.shape
        scales = np.repeat(self.scales.astype(np.float32), PANEL_COLS // PART_COLS, axis=1)
        parts = self.levels.reshape(rows, columns // PART_COLS, PART_COLS)
        with np.errstate(invalid="ignore"):  # damaged scales may be NaN or infinite
            values: F32 = parts * scales[:, : columns // PART_COLS, None]
        return values.reshape(rows, columns)


def round_up(n: int, multiple: int) -> int:
    """The least multiple that is not below n."""
    return -(-n // multiple) * multiple
