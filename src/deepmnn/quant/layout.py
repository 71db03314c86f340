"""Codes and floats ↔ stored bytes: docs/layouts.md in numpy, which the core is tested against.

Nothing here rounds to codes: they may come from quant/rounding.py or from a checkpoint.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeVar

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
    PANEL_COLS,
    PART_COLS,
    U8,
    VECTOR,
    Codes,
    Format,
    KeptCodes,
    named,
)
from deepmnn.quant.rotation import unrotate

_T = TypeVar("_T", bound=np.generic)
_NUMBERS: dict[Format, np.dtype[np.generic]] = {
    VECTOR: np.dtype("<f4"),
    F32_MATRIX: np.dtype("<f4"),
    BF16_MATRIX: np.dtype(ml_dtypes.bfloat16),
}
"""What the formats of floats store."""


_QUAD = 4
"""Neighbouring columns of a row whose bytes lie together."""

_QUADS = PART_COLS // _QUAD

_WORD = np.dtype("<u4")
"""The codes of a quad, a byte each."""

_EVERY_BYTE = 0x01010101

_PIECE = 1 << 18
"""About as many bytes are packed at a time: they stay in cache."""


@dataclass(frozen=True)
class Panels:
    """Views of neighbouring panels, all of one width, in the bytes of blocks.

    Attributes:
        parts: uint8 [blocks, panels, parts, bytes of 32 columns of codes].
        scales: what follows them [blocks, panels, n, 16 rows]: of ours float16 and n = 1, of a kept
            format bytes.
    """

    parts: U8
    scales: NDArray[Any]


def pack(codes: Codes | KeptCodes) -> U8:
    """Stored bytes of a quantised matrix, as long as its format says."""
    format = named(codes.format)
    if isinstance(codes, KeptCodes):
        stored = _whole_blocks(codes.codes)
    else:
        code_of = np.zeros(256, np.uint8)  # by level, as a byte
        code_of[np.array(format.levels, np.int8).view(np.uint8)] = np.arange(len(format.levels))
        stored = code_of[_whole_blocks(codes.levels).view(np.uint8)]
        _set_zeros(stored, _whole_blocks(codes.scales), 0)  # their bytes need not be stored
    blocks, columns = len(stored) // BLOCK_ROWS, stored.shape[1]
    quads = np.ascontiguousarray(stored).view(_WORD)
    parts = quads.reshape(blocks, BLOCK_ROWS, columns // PART_COLS, _QUADS)
    packed = _to_planes(parts.transpose(0, 2, 3, 1), format)  # [blocks, parts, bytes]
    out = np.zeros(format.nbytes(*stored.shape), np.uint8)
    used = blocks * format.block_nbytes(columns)
    part = panel = 0
    for views in panels(out[:used].reshape(blocks, -1), format.name, columns):
        count, width = views.parts.shape[1:3]
        views.parts[:] = packed[:, part : part + count * width].reshape(views.parts.shape)
        _put_scales(codes, views.scales, panel, width * PART_COLS)
        part, panel = part + count * width, panel + count
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


def unpack(packed: U8, format: str, rows: int, cols: int) -> F32:
    """The float32 values of stored bytes: [rows, cols], or [cols] for a vector.

    Raises RequestError when `packed` is not as long as the format says.
    """
    storage = named(format)
    nbytes = storage.nbytes(rows, cols)
    if packed.nbytes != nbytes:
        raise RequestError(
            f"{packed.nbytes} bytes for a {format} weight [{rows}, {cols}]", f"{nbytes}"
        )
    data = np.ascontiguousarray(packed).view(np.uint8).reshape(-1)
    if not storage.is_matrix:
        return data[: cols * 4].view(_NUMBERS[storage]).astype(np.float32)
    blocks = math.ceil(rows / BLOCK_ROWS)
    data = data[: blocks * storage.block_nbytes(cols)]
    if storage.is_quantized or storage.is_kept:
        found = unpack_codes(data, format, cols)
        values = found.values() if isinstance(found, KeptCodes) else unrotate(found.values())
    else:
        steps = storage.stored_cols(cols) // storage.columns
        lanes = data.view(_NUMBERS[storage]).reshape(blocks, steps, BLOCK_ROWS, storage.columns)
        values = lanes.swapaxes(1, 2).astype(np.float32, copy=False)
    return np.ascontiguousarray(values.reshape(blocks * BLOCK_ROWS, -1)[:rows, :cols])


def unpack_codes(packed: U8, format: str, cols: int) -> Codes | KeptCodes:
    """The codes of the whole blocks in `packed`: rows as they are stored, a multiple of 16."""
    storage = named(format)
    nbytes = storage.block_nbytes(cols)
    blocks = packed[: packed.size // nbytes * nbytes].reshape(-1, nbytes)
    rows = len(blocks) * BLOCK_ROWS
    each = panels(blocks, format, cols)
    parts = [views.parts.reshape(len(blocks), -1, views.parts.shape[3]) for views in each]
    quads = np.concatenate([_from_planes(part, storage) for part in parts], axis=1)
    stored = quads.transpose(0, 3, 1, 2, 4).reshape(rows, -1)
    if storage.is_kept:
        return _kept_codes(storage, stored, [views.scales for views in each])
    levels = np.array(storage.levels, np.int8)[stored]
    scales = np.concatenate([views.scales[:, :, 0] for views in each], axis=1)
    scales = scales.swapaxes(1, 2).reshape(rows, -1)
    _set_zeros(levels, scales, storage.zero_level)
    return Codes(format, levels, scales)


def panels(blocks: U8, format: str, cols: int) -> list[Panels]:
    """The panels of blocks [n, block_nbytes]: whole ones, then the last one if it is narrower."""
    storage = named(format)
    columns = storage.stored_cols(cols)
    whole, rest = divmod(columns, PANEL_COLS)
    end = blocks.shape[1] - (storage.block_nbytes(rest) if rest else 0)
    found = []
    for data, count, width in (blocks[:, :end], whole, PANEL_COLS), (blocks[:, end:], 1, rest):
        if count * width > 0:
            each = data.reshape(len(data), count, -1)
            codes = BLOCK_ROWS * width * storage.bits // 8
            parts = each[:, :, :codes].reshape(len(data), count, width // PART_COLS, -1)
            scales = each[:, :, codes:]
            if storage.is_quantized:
                scales = scales.view("<f2")
            found.append(Panels(parts, scales.reshape(len(data), count, -1, BLOCK_ROWS)))
    return found


def _set_zeros(codes: NDArray[Any], scales: F16, zero: int) -> None:
    """Gives the numbers of a row's panel this code, or level, where they are zeros because its
    scale is.
    """
    for panel in np.flatnonzero((scales == 0).any(axis=0)):
        columns = slice(panel * PANEL_COLS, (panel + 1) * PANEL_COLS)
        codes[scales[:, panel] == 0, columns] = zero


def _put_scales(codes: Codes | KeptCodes, views: NDArray[Any], panel: int, width: int) -> None:
    """Fills the scales of panels of `width` columns, `panel` the first of them."""
    if not isinstance(codes, KeptCodes):
        ours = _by_block(codes.scales)[:, panel : panel + views.shape[1]]
        views[:, :, 0] = np.where(ours == 0, 0, ours)  # not -0
        return
    for name, dtype, begin, each in _fields(named(codes.format), width):
        per_panel = _per_panel(named(codes.format), name)
        ours = _by_block(getattr(codes, name))[:, panel * per_panel :][:, : views.shape[1] * each]
        ours = np.ascontiguousarray(ours, dtype).reshape(*views.shape[:2], -1).view(np.uint8)
        views[:, :, begin : begin + ours.shape[2] // BLOCK_ROWS] = ours.reshape(
            *views.shape[:2], -1, BLOCK_ROWS
        )


def _kept_codes(format: Format, codes: U8, scales: list[U8]) -> KeptCodes:
    rows, columns = codes.shape
    found: dict[str, list[NDArray[Any]]] = {}
    for views in scales:
        width = PANEL_COLS if views is scales[0] and columns >= PANEL_COLS else columns % PANEL_COLS
        for name, dtype, begin, each in _fields(format, width):
            data = views[:, :, begin : begin + each * dtype.itemsize]
            data = np.ascontiguousarray(data).reshape(len(views), views.shape[1], -1).view(dtype)
            found.setdefault(name, []).append(data.reshape(len(views), -1, BLOCK_ROWS))
    arrays = {
        name: np.concatenate(parts, axis=1).swapaxes(1, 2).reshape(rows, -1)
        for name, parts in found.items()
    }
    return KeptCodes.of(format.name, codes, **arrays)


def _fields(format: Format, width: int) -> list[tuple[str, np.dtype[Any], int, int]]:
    """What follows the codes of a panel of `width` columns: the field of KeptCodes, its dtype,
    where it begins in bytes of a row, and how many of it a row has.
    """
    assert format.groups is not None
    count, begin, found = math.ceil(width / format.groups.columns), 0, []
    counts = {"factors": format.groups.factors, "scales": count, "shifts": count}
    for name, dtype in format.groups.dtypes().items():
        found.append((name, dtype.newbyteorder("<"), begin, counts[name]))
        begin += counts[name] * dtype.itemsize
    return found


def _per_panel(format: Format, name: str) -> int:
    """Of a field of KeptCodes, for a row."""
    assert format.groups is not None
    return format.groups.factors if name == "factors" else PANEL_COLS // format.groups.columns


def _by_block(matrix: NDArray[_T]) -> NDArray[_T]:
    """[rows, n] → [blocks, n, 16]."""
    return _whole_blocks(matrix).reshape(-1, BLOCK_ROWS, matrix.shape[1]).swapaxes(1, 2)


def _to_planes(quads: NDArray[np.uint32], format: Format) -> U8:
    """Quads of unsigned codes, a byte each, [blocks, parts, quads, 16] → their bytes [blocks,
    parts, n], plane after plane.
    """
    out = np.empty((*quads.shape[:2], PART_COLS * BLOCK_ROWS * format.bits // 8), np.uint8)
    words = out.view(_WORD)
    step = max(1, _PIECE // max(1, out[:1].size))
    for first in range(0, len(quads), step):
        piece, begin = np.ascontiguousarray(quads[first : first + step]), 0
        for bits, shift in format.planes():
            shared = 8 // bits  # quads of a byte, the first in its lowest bits
            ours = piece >> _WORD.type(shift) & _WORD.type(_EVERY_BYTE * ((1 << bits) - 1))
            plane = ours[:, :, ::shared].copy()
            for index in range(1, shared):
                plane |= ours[:, :, index::shared] << _WORD.type(index * bits)
            end = begin + _QUADS // shared * BLOCK_ROWS
            words[first : first + step, :, begin:end] = plane.reshape(*plane.shape[:2], -1)
            begin = end
    return out


def _from_planes(parts: U8, format: Format) -> U8:
    """The inverse: [..., n] → [..., quads, 16, 4]."""
    codes = np.zeros((*parts.shape[:-1], _QUADS, BLOCK_ROWS, _QUAD), np.uint8)
    begin = 0
    for bits, shift in format.planes():
        shared = 8 // bits
        end = begin + PART_COLS * BLOCK_ROWS * bits // 8
        plane = parts[..., begin:end].reshape(*parts.shape[:-1], -1, BLOCK_ROWS, _QUAD)
        for index in range(shared):
            ours = plane >> np.uint8(index * bits) & np.uint8((1 << bits) - 1)
            codes[..., index::shared, :, :] |= ours << np.uint8(shift)
        begin = end
    return codes


def _whole_blocks(matrix: NDArray[_T]) -> NDArray[_T]:
    """Zero rows appended, where some are missing."""
    missing = -len(matrix) % BLOCK_ROWS
    return np.pad(matrix, ((0, missing), (0, 0))) if missing else matrix
