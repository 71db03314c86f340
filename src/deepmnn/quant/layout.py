"""Codes and floats ↔ stored bytes: docs/layouts.md in numpy, which the core is tested against.

Nothing here rounds to codes: they may come from quant/rounding.py or from a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from deepmnn.errors import RequestError
from deepmnn.formats import (
    ALIGNMENT,
    BF16_MATRIX,
    BLOCK_ROWS,
    F16,
    F32,
    F32_MATRIX,
    I8,
    PANEL_COLS,
    U8,
    VECTOR,
    Codes,
    Format,
    named,
)

STEP_BYTES = 4
"""Of every row, neighbouring bytes of a panel: a step is so many, of 16 rows."""

_T = TypeVar("_T", bound=np.generic)
_NUMBERS: dict[Format, np.dtype[np.generic]] = {
    VECTOR: np.dtype("<f4"),
    F32_MATRIX: np.dtype("<f4"),
    BF16_MATRIX: np.dtype(ml_dtypes.bfloat16),
}
"""What the formats of floats store."""


@dataclass(frozen=True)
class Panels:
    """Views of the parts of neighbouring panels, all of one width, in the bytes of blocks.

    Attributes:
        codes: uint8 [blocks, panels, steps, 16 rows, 4]; a step is 4 columns of bytes, and where
            codes share a byte as many times 4, the first 4 in its lowest bits.
        multipliers: int8 [blocks, panels, groups, 16 rows]; no groups where there are none.
        scales: float16 [blocks, panels, 1, 16 rows].
    """

    codes: U8
    multipliers: I8
    scales: F16


def pack(codes: Codes) -> U8:
    """Stored bytes of a quantised matrix, as long as its format says."""
    format, signed = named(codes.format), codes.codes
    if codes.multipliers is not None:
        signed = _turned(signed, codes.multipliers)
    rows, columns = signed.shape
    stored = _whole_blocks(signed).view(np.uint8) + np.uint8(format.offset)
    quads = stored.reshape(-1, BLOCK_ROWS, columns // STEP_BYTES, STEP_BYTES).swapaxes(1, 2)
    count = len(quads)
    steps: U8 = quads[:, :: format.codes_per_byte].copy()
    for index in range(1, format.codes_per_byte):
        steps |= quads[:, index :: format.codes_per_byte] << np.uint8(index * format.bits)
    used = count * format.block_nbytes(columns, codes.group_size)
    out = np.zeros(format.nbytes(rows, columns, codes.group_size), np.uint8)
    parts = panels(out[:used].reshape(count, -1), codes.format, columns, codes.group_size)
    _fill([part.codes for part in parts], steps)
    _fill([part.scales for part in parts], _by_blocks(codes.scales))
    if codes.multipliers is not None:
        _fill([part.multipliers for part in parts], _by_blocks(codes.multipliers))
    return out


def pack_floats(w: F32, format: str) -> U8:
    """Stored bytes of w [rows, cols] in a format of floats; of a vector, of any shape."""
    storage = named(format)
    numbers = np.asarray(w, np.float32)
    if storage.is_matrix:
        numbers = _whole_blocks(np.pad(numbers, ((0, 0), (0, -w.shape[1] % storage.columns))))
        shape = (-1, BLOCK_ROWS, numbers.shape[1] // storage.columns, storage.columns)
        numbers = numbers.reshape(shape).swapaxes(1, 2)
    data = np.ascontiguousarray(numbers.astype(_NUMBERS[storage])).reshape(-1).view(np.uint8)
    return np.pad(data, (0, -data.size % ALIGNMENT))


def unpack(packed: U8, format: str, rows: int, cols: int, group_size: int = 0) -> F32:
    """The float32 values of stored bytes: [rows, cols], or [cols] for a vector.

    Raises RequestError when `packed` is not as long as the format says.
    """
    storage = named(format)
    nbytes = storage.nbytes(rows, cols, group_size)
    if packed.nbytes != nbytes:
        raise RequestError(
            f"{packed.nbytes} bytes for a {format} weight [{rows}, {cols}]", f"{nbytes}"
        )
    data = np.ascontiguousarray(packed).view(np.uint8).reshape(-1)
    if not storage.is_matrix:
        return data[: cols * 4].view(_NUMBERS[storage]).astype(np.float32)
    blocks = math.ceil(rows / BLOCK_ROWS)
    data = data[: blocks * storage.block_nbytes(cols, group_size)]
    if storage.is_quantized:
        values = unpack_codes(data, format, cols, group_size).values()
    else:
        steps = storage.stored_cols(cols) // storage.columns
        lanes = data.view(_NUMBERS[storage]).reshape(blocks, steps, BLOCK_ROWS, storage.columns)
        values = lanes.swapaxes(1, 2).astype(np.float32, copy=False)
    return np.ascontiguousarray(values.reshape(blocks * BLOCK_ROWS, -1)[:rows, :cols])


def unpack_codes(packed: U8, format: str, cols: int, group_size: int) -> Codes:
    """The codes of the whole blocks in `packed`: rows as they are stored, a multiple of 16."""
    storage = named(format)
    nbytes = storage.block_nbytes(cols, group_size)
    blocks = packed[: packed.size // nbytes * nbytes].reshape(-1, nbytes)
    parts = panels(blocks, format, cols, group_size)
    steps = _join([part.codes for part in parts])
    mask = np.uint8((1 << storage.bits) - 1)
    shared = [
        steps >> np.uint8(index * storage.bits) & mask for index in range(storage.codes_per_byte)
    ]
    rows = len(blocks) * BLOCK_ROWS
    quads = np.stack(shared, axis=2).reshape(len(blocks), -1, BLOCK_ROWS, STEP_BYTES)
    stored = quads.swapaxes(1, 2).reshape(rows, -1)
    codes = (stored - np.uint8(storage.offset)).view(np.int8)  # wraps to the sign
    scales = _join([part.scales for part in parts]).swapaxes(1, 2).reshape(rows, -1)
    multipliers = None
    if storage.multipliers:
        multipliers = _join([part.multipliers for part in parts]).swapaxes(1, 2).reshape(rows, -1)
        codes = _turned(codes, multipliers)
    return Codes(format, codes, multipliers, scales, group_size)


def panels(blocks: U8, format: str, cols: int, group_size: int) -> list[Panels]:
    """The panels of blocks [n, block_nbytes]: whole ones, then the last one if it is narrower."""
    storage = named(format)
    columns = storage.stored_cols(cols, group_size)
    whole = columns // PANEL_COLS
    end = blocks.shape[1] - storage.block_nbytes(columns % PANEL_COLS, group_size)
    parts = [
        (blocks[:, :end], whole, PANEL_COLS),
        (blocks[:, end:], 1, columns % PANEL_COLS),
    ]
    return [
        _panels(data.reshape(len(data), count, -1), storage, width, group_size)
        for data, count, width in parts
        if count * width > 0
    ]


def _panels(data: U8, format: Format, columns: int, group_size: int) -> Panels:
    """The parts of panels [blocks, panels, bytes] of so many columns."""
    shape = data.shape[:2]
    steps = columns // (STEP_BYTES * format.codes_per_byte)
    groups = columns // group_size if format.multipliers else 0
    multipliers = steps * BLOCK_ROWS * STEP_BYTES
    scales = multipliers + groups * BLOCK_ROWS
    return Panels(
        data[:, :, :multipliers].reshape(*shape, steps, BLOCK_ROWS, STEP_BYTES),
        data[:, :, multipliers:scales].reshape(*shape, groups, BLOCK_ROWS).view(np.int8),
        data[:, :, scales:].reshape(*shape, 1, -1).view("<f2"),
    )


def _turned(codes: I8, multipliers: I8) -> I8:
    """Codes c [rows, columns], in groups with a negative multiplier -1 - c: as they are stored,
    from codes as they count, and the other way round.
    """
    turn = np.where(multipliers < 0, np.int8(-1), np.int8(0))
    turned: I8 = codes ^ np.repeat(turn, codes.shape[1] // turn.shape[1], axis=1)
    return turned


def _whole_blocks(matrix: NDArray[_T]) -> NDArray[_T]:
    """Zero rows appended."""
    return np.pad(matrix, ((0, -len(matrix) % BLOCK_ROWS), (0, 0)))


def _by_blocks(matrix: NDArray[_T]) -> NDArray[_T]:
    """[rows, n] → [blocks, n, 16 rows], zero rows appended."""
    return _whole_blocks(matrix).reshape(-1, BLOCK_ROWS, matrix.shape[1]).swapaxes(1, 2)


def _join(views: Sequence[NDArray[_T]]) -> NDArray[_T]:
    """[blocks, panels, n, ...] one after another: [blocks, all n, ...]."""
    return np.concatenate(
        [v.reshape(len(v), v.shape[1] * v.shape[2], *v.shape[3:]) for v in views], axis=1
    )


def _fill(views: Sequence[NDArray[_T]], values: NDArray[_T]) -> None:
    """Writes [blocks, all n, ...] to what `_join` would make it of."""
    at = 0
    for view in views:
        n = view.shape[1] * view.shape[2]
        view[:] = values[:, at : at + n].reshape(view.shape)
        at += n
