"""llm.mnn.weight: one file of blobs that the ops of a .mnn model point into.

A quantised matrix is rounded to MNN's symmetric blocks: value = code · scale, one fp16 scale per
row and block of columns. The artifact's own codes cannot be kept, because its panels are rotated.
`Storing` says which matrices get how many bits. The blob is

    u8 2, then rows and cols (u16, or u32 when one needs it)
    u8 count of code values (0: 256), then the values as int8, ascending
    codes + offset, row by row: a byte each (8 bits), or two to a byte, the first high (4 bits)
    fp16 scales [rows, blocks], then the f32 bias [rows] if there is one

Blocks of less than 32 columns are not worth their scales: that matrix is stored as the float32
values it stands for. No published DeepSeek model has one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deepmnn.errors import RequestError, argument
from deepmnn.formats import ALIGNMENT, BF16_MATRIX, BLOCK_ROWS, F32, U8, named
from deepmnn.graph.ir import Weight
from deepmnn.quant.blocks import round_blocks
from deepmnn.quant.layout import unpack

Rows = NDArray[np.intp]

_CHUNK_ROWS = 4096
LEAST_BLOCK = 32
BLOCK = {4: 64, 8: 128}
"""Columns that share a scale, by the bits of a code, where nothing else is asked for."""

BLOCK_SIZES = (32, 64, 128, 256)
"""Those that may be asked for."""

_FP16_MAX = 65504.0
SHAPE_16_MAX = 0xFFFF


class Writable(Protocol):
    """A file, or something that counts on its way there."""

    def write(self, data: memoryview, /) -> object:
        """Appends."""


@dataclass(frozen=True)
class Storing:
    """How matrices are stored.

    Attributes:
        half: those of floats, but for routers, as fp16.
        bits: of those of floats, but for routers, once rounded: 4 (then 8 for the embedding and
            MLA's up-projections) or 8; None: they stay floats. Quantised ones of up to 4 bits
            become 4, others 8.
        block: columns that share a scale; None: as BLOCK says. Or the largest part of these that
            divides the columns.

    Raises RequestError for bits, or columns, that there are none of.
    """

    half: bool = False
    bits: int | None = None
    block: int | None = None

    def __post_init__(self) -> None:
        if self.bits not in (None, *BLOCK):
            raise RequestError(
                argument("bits", f" is {self.bits!r:.40}"), " or ".join(map(str, BLOCK))
            )
        if self.block not in (None, *BLOCK_SIZES):
            raise RequestError(
                argument("block_size", f" is {self.block!r:.40}"), f"one of {BLOCK_SIZES}"
            )

    def bits_of(self, weight: Weight) -> int:
        """Of a code once written, 0 for floats: a byte where a row does not fill whole bytes."""
        format = named(weight.format)
        if format.is_quantized or format.is_kept:
            bits = 4 if format.bits <= 4 else 8
        elif self.bits is None or not format.is_matrix or weight.role == "router":
            return 0
        else:
            bits = 8 if weight.role in ("embedding", "latent") else self.bits
        return bits if weight.shape[1] % 2 == 0 else 8

    def block_size(self, weight: Weight) -> int:
        """Columns of a quantised matrix that share a scale once written."""
        return math.gcd(weight.shape[1], self.block or BLOCK[self.bits_of(weight)])


class WeightFile:
    """Appends blobs to a file.

    whole tells, for a quantised matrix that has been written whole and in order, where its codes
    begin and the bytes of its codes and of its scales.
    """

    def __init__(self, file: Writable, storing: Storing = Storing()) -> None:
        self._file = file
        self.storing = storing
        self.position = 0
        self.whole: dict[str, tuple[int, int, int]] = {}

    def linear(
        self, weight: Weight, packed: U8, rows: Rows, bias: F32 | None = None
    ) -> dict[str, Any]:
        """Writes rows of a stored matrix, in that order; → the Convolution2D fields they need.

        A negative row is one of zeros.
        """
        if self.storing.bits_of(weight) and self.storing.block_size(weight) >= LEAST_BLOCK:
            return self._quantised(weight, packed, rows, bias)
        return self._floats(weight, packed, rows, bias)

    def floats(self, values: F32) -> tuple[int, int]:
        """Writes plain float32; → (offset, bytes)."""
        start = self.position
        return start, self.write(np.ascontiguousarray(values, "<f4"))

    def codes(self, weight: Weight, packed: U8, rows: Rows) -> tuple[int, int]:
        """Writes the codes of rows and then their scales; → the bytes of both."""
        nbytes, bits, all_scales = 0, self.storing.bits_of(weight), []
        for piece in pieces(rows):
            values = piece_values(weight, packed, piece)
            codes, scales = round_blocks(values, self.storing.block_size(weight), bits)
            all_scales.append(scales)
            stored = codes.view(np.uint8) + np.uint8(1 << bits - 1)
            nbytes += self.write(stored if bits == 8 else stored[:, ::2] << 4 | stored[:, 1::2])
        return nbytes, self.write(np.concatenate(all_scales).astype("<f2"))

    def write(self, array: NDArray[Any]) -> int:
        """Appends an array's bytes; → how many."""
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self._file.write(data.data)
        self.position += data.nbytes
        return data.nbytes

    def _quantised(
        self, weight: Weight, packed: U8, rows: Rows, bias: F32 | None
    ) -> dict[str, Any]:
        cols, bits = weight.shape[1], self.storing.bits_of(weight)
        offset = 1 << bits - 1
        start, wide = self.position, max(len(rows), cols) > SHAPE_16_MAX
        self.write(np.array([2], np.uint8))
        self.write(np.array([len(rows), cols], "<u4" if wide else "<u2"))
        self.write(np.array([2 * offset % 256], np.uint8))
        self.write(np.arange(-offset, offset, dtype=np.int8))
        begin = self.position
        codes, scales = self.codes(weight, packed, rows)
        if np.array_equal(rows, np.arange(weight.shape[0])):
            self.whole[weight.name] = (begin, codes, scales)
        bias_nbytes = 0 if bias is None else self.write(bias.astype("<f4"))
        return {
            "quanParameter": {
                "type": 1,
                "quantScale": 1.0,
                "aMaxOrBits": bits,
                "readType": 0,
                "shapeInt32": wide,
                "scaleStorage": "FP16",
            },
            "external": [start, begin - start + codes, scales, bias_nbytes, 0],
        }

    def _floats(self, weight: Weight, packed: U8, rows: Rows, bias: F32 | None) -> dict[str, Any]:
        start = self.position
        half = self.storing.half and weight.role != "router"
        half = (half or weight.format == BF16_MATRIX.name) and fits_half(weight, packed, rows)
        for piece in pieces(rows):
            values = piece_values(weight, packed, piece)
            self.write(values.astype("<f2") if half else values)
        nbytes = self.position - start
        bias_nbytes = self.write(np.zeros(len(rows), "<f4") if bias is None else bias)
        if half:
            return {"quanParameter": {"type": 3}, "external": [start, nbytes, 0, bias_nbytes, 0]}
        return {"external": [start, nbytes, bias_nbytes]}


def pieces(rows: Rows) -> list[Rows]:
    """At most _CHUNK_ROWS at a time: a vocabulary never lies in memory unpacked."""
    return [rows[start : start + _CHUNK_ROWS] for start in range(0, len(rows), _CHUNK_ROWS)]


def _blocks(weight: Weight, packed: U8, rows: Rows) -> U8:
    """The blocks of 16 rows that hold these rows, in ascending order (zero rows: the first)."""
    rows = np.maximum(rows, 0)
    size = _block_nbytes(weight)
    count = -(-weight.shape[0] // BLOCK_ROWS)
    return packed[: count * size].reshape(count, size)[np.unique(rows // BLOCK_ROWS)].reshape(-1)


def _block_nbytes(weight: Weight) -> int:
    return named(weight.format).block_nbytes(weight.shape[1])


def _local(rows: Rows) -> Rows:
    """Where each row lies within `_blocks` of them."""
    rows = np.maximum(rows, 0)
    blocks = rows // BLOCK_ROWS
    return np.searchsorted(np.unique(blocks), blocks) * BLOCK_ROWS + rows % BLOCK_ROWS


def piece_values(weight: Weight, packed: U8, rows: Rows) -> F32:
    """The values of rows of a stored matrix; a negative row is one of zeros."""
    cols = weight.shape[1]
    blocks = _blocks(weight, packed, rows)
    count = blocks.nbytes // _block_nbytes(weight) * BLOCK_ROWS
    stored = np.pad(blocks, (0, -blocks.nbytes % ALIGNMENT))  # as `unpack` wants it
    values = unpack(stored, weight.format, count, cols)[_local(rows)]
    return np.where(rows[:, None] < 0, np.float32(0), values)


def fits_half(weight: Weight, packed: U8, rows: Rows) -> bool:
    """Whether no value overflows fp16; those too small for it lose at most 3e-8."""
    return all(
        np.abs(piece_values(weight, packed, piece)).max() <= _FP16_MAX for piece in pieces(rows)
    )
