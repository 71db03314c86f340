"""The storage formats of weights: the one home of what each of them is.

A weight is codes, scales and a format, or plain floats. A stored matrix [rows, cols] is a run of
blocks of 16 rows; in a quantised one the columns of a block lie in panels of 256, each rotated
(quant/rotation.py) and with a scale for every row. docs/layouts.md has the bytes; the core's table
(native/kernels/formats.h) is the twin of this one.

A code stands for an integer, its level; a number is level · scale, rotated. Levels are uniform
where codes have many bits. Where they have few, they lie where a normal distribution is rounded
with the least squared error (Lloyd 1982, Max 1960), because the numbers of a rotated panel are
nearly normal: that takes 8 % (3 bits), 17 % (4) and 28 % (5) off the squared error.

A *kept* format holds what another scheme stored, to the bit: codes that are not rotated, and a
scale, perhaps with a minimum or a zero point, for each group of columns. Nothing is rounded to it.

Adding a format of other bits or levels is an entry here and there, its divisors (quant/rounding.py
and native/kernels/rounding.h), and a line where kernels are chosen (native/kernels/linear.h).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
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

_DTYPES: dict[str, np.dtype[np.generic]] = {
    "f16": np.dtype(np.float16),
    "u8": np.dtype(np.uint8),
    "i8": np.dtype(np.int8),
    "e8m0": np.dtype(np.uint8),
    "zero": np.dtype(np.uint8),
}
"""What a field of a kept format is stored as."""

E8M0_BIAS = 127
"""A byte e of E8M0 stands for 2^(e - 127)."""


@dataclass(frozen=True)
class Groups:
    """How a kept format scales its codes, with f a float16 of the row's panel and b a byte.

    Attributes:
        columns: that share a scale; 256: a panel, which repeats the scale of a longer group.
        scale: what is stored for a group. "f16": the scale; "u8", "i8": b, for f · b; "e8m0": b,
            for half of 2^(b - 127), because levels of MXFP4 are doubled to be integers.
        shift: what is stored besides. "": nothing, a number is scale · level. "f16": a minimum,
            which is added; "u8": b, for a minimum of f · b with another f; "zero": b, which is
            taken off the level.
    """

    columns: int
    scale: str
    shift: str = ""

    @property
    def factors(self) -> int:
        """float16 numbers of a row's panel that all its groups share."""
        return (self.scale in ("u8", "i8")) + (self.shift == "u8")

    def dtypes(self) -> dict[str, np.dtype[np.generic]]:
        """Of the fields of KeptCodes besides the codes, in the order in which a panel holds them;
        without those that the format has not got.
        """
        kinds = {"factors": "f16" if self.factors else "", "scales": self.scale}
        kinds["shifts"] = self.shift
        return {name: _DTYPES[kind] for name, kind in kinds.items() if kind}

    def row_nbytes(self, columns: int) -> int:
        """Bytes of a row's scales and shifts in a panel of so many columns."""
        sizes = {name: dtype.itemsize for name, dtype in self.dtypes().items()}
        each = sizes["scales"] + sizes.get("shifts", 0)
        return self.factors * 2 + math.ceil(columns / self.columns) * each


@dataclass(frozen=True)
class Format:
    """How the numbers of a weight are stored.

    Attributes:
        name: what recipes, graph.json and the command line call it.
        code: its number in program.bin and in the core.
        bits: of one number, without scales.
        columns: stored columns are a multiple of these.
        levels: what each code stands for; none: it stores floats, without codes.
        groups: of a kept format.
    """

    name: str
    code: int
    bits: int
    columns: int = 1
    levels: tuple[int, ...] = ()
    groups: Groups | None = None

    @property
    def is_matrix(self) -> bool:
        """False for vectors: raw numbers, no blocks."""
        return self != VECTOR

    @property
    def is_quantized(self) -> bool:
        """Whether it is one of ours: rotated panels of codes, which numbers are rounded to."""
        return bool(self.levels) and self.groups is None

    @property
    def is_kept(self) -> bool:
        """Whether it holds codes that another scheme made, as they are."""
        return self.groups is not None

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
        whole, rest = divmod(stored, PANEL_COLS)
        scales = whole * self.scales_nbytes(PANEL_COLS) + self.scales_nbytes(rest)
        return BLOCK_ROWS * (stored * self.bits // 8 + scales)

    def scales_nbytes(self, columns: int) -> int:
        """Bytes of a row's scales in a panel of so many columns; whatever goes with them, too."""
        if columns == 0 or not self.levels:
            return 0
        return self.groups.row_nbytes(columns) if self.groups else _SCALE_NBYTES

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


def _kept(name: str, code: int, levels: Iterable[int], *groups: int | str) -> Format:
    found = tuple(levels)
    return Format(
        name,
        code,
        len(found).bit_length() - 1,
        PART_COLS,
        found,
        Groups(*groups),  # type: ignore[arg-type]
    )


_E2M1 = (0, 1, 2, 3, 4, 6, 8, 12)
"""Twice the numbers of FP4: 0, 0.5, 1, 1.5, 2, 3, 4, 6."""

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
        _kept("q8_0", 8, range(-128, 128), 32, "f16"),
        _kept("q4_0", 9, range(-8, 8), 32, "f16"),
        _kept("q4_1", 10, range(16), 32, "f16", "f16"),
        _kept("q5_0", 11, range(-16, 16), 32, "f16"),
        _kept("q5_1", 12, range(32), 32, "f16", "f16"),
        _kept("q4_k", 13, range(16), 32, "u8", "u8"),
        _kept("q5_k", 14, range(32), 32, "u8", "u8"),
        _kept("q6_k", 15, range(-32, 32), 16, "i8"),
        _kept("mxfp4", 16, (*_E2M1, *(-level for level in _E2M1)), 32, "e8m0"),
        _kept("int4_g32", 17, range(16), 32, "f16", "zero"),
        _kept("int4_g64", 18, range(16), 64, "f16", "zero"),
        _kept("int4_g128", 19, range(16), 128, "f16", "zero"),
        _kept("int4", 20, range(16), PANEL_COLS, "f16", "zero"),
        _kept("int8_g32", 21, range(256), 32, "f16", "zero"),
        _kept("int8_g64", 22, range(256), 64, "f16", "zero"),
        _kept("int8_g128", 23, range(256), 128, "f16", "zero"),
        _kept("int8", 24, range(256), PANEL_COLS, "f16", "zero"),
    )
}
"""Name → format, in the order of their codes."""


def named(name: str) -> Format:
    """The format of that name. Raises RequestError, listing the choices."""
    if not isinstance(name, str) or name not in FORMATS:
        raise RequestError(f"weight format {name!r:.80}", f"one of {', '.join(FORMATS)}")
    return FORMATS[name]


@dataclass(frozen=True)
class Field:
    """What an array of codes or scales must be. `zero`: what a row of zeros holds there."""

    dtype: np.dtype[np.generic]
    shape: tuple[int, int]
    zero: float = 0


@dataclass(frozen=True)
class Codes:
    """A quantised matrix before it is laid out in bytes: level · its panel's scale, rotated.

    Codes come from rounding: to nearest (quant/rounding.py) or by a calibration (quant/gptq.py).

    Attributes:
        format: the name of a quantised format.
        levels: int8 [rows, stored columns], each one of the format's.
        scales: float16 [rows, panels].
    """

    format: str
    levels: I8
    scales: F16

    def fields(self, rows: int, cols: int) -> dict[str, Field]:
        """What its arrays must be for a matrix [rows, cols].

        Rounding zeros gives scales of -0: a signed maximum of 0 over the first, negative divisor.
        """
        format = named(self.format)
        stored = format.stored_cols(cols)
        panels = math.ceil(stored / PANEL_COLS)
        return {
            "levels": Field(np.dtype(np.int8), (rows, stored), format.zero_level),
            "scales": Field(np.dtype(np.float16), (rows, panels), -0.0),
        }

    def values(self) -> F32:
        """The rotated numbers, [rows, stored columns]: exact in float32."""
        rows, columns = self.levels.shape
        scales = np.repeat(self.scales.astype(np.float32), PANEL_COLS // PART_COLS, axis=1)
        parts = self.levels.reshape(rows, columns // PART_COLS, PART_COLS)
        with np.errstate(invalid="ignore"):  # damaged scales may be NaN or infinite
            values: F32 = parts * scales[:, : columns // PART_COLS, None]
        return values.reshape(rows, columns)


@dataclass(frozen=True)
class KeptCodes:
    """A matrix as another scheme stored it, in a kept format: what a file's bytes say, and no more.

    A group is `columns` columns of a row (Groups), the last one of a row maybe fewer; groups of
    the whole row, or longer than a panel, are repeated for each panel.

    Attributes:
        format: the name of a kept format.
        codes: uint8 [rows, stored columns], below 2^bits. Those of columns that pad a row are 0.
        scales: [rows, groups], float16, uint8 or int8 as the format says.
        shifts: [rows, groups], float16 or uint8; [rows, 0] in a format without.
        factors: float16 [rows, panels * factors]; for each panel what multiplies its scales, then
            what multiplies its shifts: of Q4_K and Q5_K d and -dmin, of Q6_K d.
    """

    format: str
    codes: U8
    scales: NDArray[np.generic]
    shifts: NDArray[np.generic]
    factors: F16

    @classmethod
    def of(
        cls,
        format: str,
        codes: NDArray[np.generic],
        scales: NDArray[np.generic],
        shifts: NDArray[np.generic] | None = None,
        factors: NDArray[np.generic] | None = None,
    ) -> KeptCodes:
        """From codes [rows, columns], padded here. Fields without content may be left out."""
        rows, columns = codes.shape
        pad = named(format).stored_cols(columns) - columns
        given_codes = codes.astype(np.uint8, copy=False)
        padded = np.pad(given_codes, ((0, 0), (0, pad))) if pad else given_codes
        none = np.zeros((rows, 0), np.uint8)
        given = none.astype(np.float16) if factors is None else factors.astype(np.float16)
        return cls(format, padded, scales, none if shifts is None else shifts, given)

    def fields(self, rows: int, cols: int) -> dict[str, Field]:
        """What its arrays must be for a matrix [rows, cols]."""
        format = named(self.format)
        assert format.groups is not None
        stored, dtypes = format.stored_cols(cols), format.groups.dtypes()
        groups = math.ceil(stored / format.groups.columns)
        factors = math.ceil(stored / PANEL_COLS) * format.groups.factors
        counts = {"scales": groups, "shifts": groups, "factors": factors}
        found = {"codes": Field(np.dtype(np.uint8), (rows, stored))}
        return found | {name: Field(dtype, (rows, counts[name])) for name, dtype in dtypes.items()}

    def values(self) -> F32:
        """The numbers, [rows, stored columns], in float32: level · scale, then plus the minimum.

        Each product is rounded once, as the schemes' own decoders do it.
        """
        format = named(self.format)
        assert format.groups is not None
        groups = format.groups
        values: F32 = np.array(format.levels, np.float32).take(self.codes)
        with np.errstate(invalid="ignore", over="ignore"):  # damaged scales
            if groups.shift == "zero":
                values -= self._by_column(self.shifts.astype(np.float32))
            values *= self._by_column(self.group_scales())
            if groups.shift in ("f16", "u8"):
                values += self._by_column(self.group_shifts())
        return values

    def _by_column(self, numbers: F32) -> F32:
        """Numbers of groups, [rows, groups], for each column."""
        groups = named(self.format).groups
        assert groups is not None
        return np.repeat(numbers, groups.columns, axis=1)[:, : self.codes.shape[1]]

    def group_scales(self) -> F32:
        """[rows, groups], float32."""
        groups = named(self.format).groups
        assert groups is not None
        if groups.scale == "e8m0":
            return np.ldexp(np.float32(0.5), self.scales.astype(np.int32) - E8M0_BIAS)
        return self._numbers(self.scales, groups.scale, 0)

    def group_shifts(self) -> F32:
        """The minima [rows, groups] of a format that has them, float32."""
        groups = named(self.format).groups
        assert groups is not None
        return self._numbers(self.shifts, groups.shift, groups.factors - 1)

    def _numbers(self, stored: NDArray[np.generic], kind: str, factor: int) -> F32:
        groups = named(self.format).groups
        assert groups is not None
        found = stored.astype(np.float32)
        if kind in ("u8", "i8"):
            panel = np.arange(stored.shape[1]) * groups.columns // PANEL_COLS
            with np.errstate(invalid="ignore"):
                found *= self.factors[:, factor :: groups.factors].astype(np.float32)[:, panel]
        return found


def round_up(n: int, multiple: int) -> int:
    """The least multiple that is not below n."""
    return -(-n // multiple) * multiple
