"""The weight layouts of docs/layouts.md in numpy: the definition the C++ packer is tested against.

Quantising is float32 without fused multiply-add. For columns w of one row and a scale

    codes = clip(round_half_even(w * (1 / scale)), low, high)          (all 0 when scale is 0)
    error = sum over columns, in order, of (w - codes * scale)²

and of several scales, tried in turn, the first with the least error is kept. They are

    m     = the element of w of largest magnitude, sign kept (the first one on ties)
    scale = m / q for each q of CANDIDATES, the magnitude clamped to 65504

A negative q puts the largest magnitude at the longer, negative end of the code range.

w8: w is the columns of a panel, and every scale is rounded to float16.

w4: w is the columns of a group, whose best scale is its `own`. From all of a panel's groups

    S    = float16(min(65504, max |own| * float32(16 / 15)))
    unit = S / 16

and for each group the scales tried are multiplier * unit, with these multipliers, clipped to ±15:

    middle = clip(round_half_even(own / unit), -15, 15)                (0 when unit is 0)
    middle, middle - 1, middle + 1
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from deepmnn import _core
from deepmnn.errors import CheckpointError, RequestError
from deepmnn.formats import (
    BLOCK_ROWS,
    F16,
    F32,
    I8,
    MULTIPLIER_MAX,
    PANEL_COLS,
    U8,
    Codes,
    named,
    round_up,
)
from deepmnn.graph.ir import Weight

_T = TypeVar("_T", bound=np.generic)

CANDIDATES: dict[str, tuple[float, ...]] = {
    "w4": (-8.0, -8.5, -9.0, -9.5, -10.0, -11.0, 7.0, -7.5),
    "w8": (-128.0, 127.0),
}
"""Divisors of the signed maximum that are tried as scales, in this order."""

_FP16_MAX = np.float32(65504.0)


@dataclass(frozen=True)
class Panels:
    """Views of the parts of neighbouring panels, all of one width, in the bytes of blocks.

    Attributes:
        codes: uint8 [blocks, panels, steps, 16 rows, 4]; a step is 4 columns of w8, 8 of w4.
        multipliers: int8 [blocks, panels, groups, 16 rows]; w8 has no groups.
        scales: float16 [blocks, panels, 1, 16 rows].
    """

    codes: U8
    multipliers: I8
    scales: F16


def quantize(w: F32, dtype: str, group_size: int) -> Codes:
    """Round-to-nearest codes and least-squared-error scales of w [rows, cols] ("w8" or "w4")."""
    named(dtype).check_group_size(group_size)
    rows, cols = w.shape
    grouped = _pad(np.asarray(w, np.float32), 1, group_size).reshape(rows, -1, group_size)
    largest = np.abs(grouped).argmax(axis=2)[:, :, None]
    signed_max = np.take_along_axis(grouped, largest, axis=2)[:, :, 0]  # [rows, groups]
    tried = [
        np.clip(signed_max / np.float32(divisor), -_FP16_MAX, _FP16_MAX)
        for divisor in CANDIDATES[dtype]
    ]
    if dtype == "w8":
        tried = [scales.astype(np.float16).astype(np.float32) for scales in tried]
    codes, own = _least_error(grouped, tried, named(dtype).offset)
    multipliers, scales = None, own.astype(np.float16)
    if dtype == "w4":
        codes, multipliers, scales = _share_scales(grouped, own)
    columns = named(dtype).stored_cols(cols, group_size)
    signed = codes.reshape(rows, -1)[:, :columns].astype(np.int8)
    return Codes(dtype, signed, multipliers, scales, group_size)


def _share_scales(grouped: F32, own: F32) -> tuple[F32, I8, F16]:
    """w4 of groups [rows, groups, columns] that would best have scales `own` [rows, groups].

    Returns the codes, shaped like the groups, the multipliers and the panels' scales.
    """
    per_panel = PANEL_COLS // grouped.shape[2]
    largest = _pad(np.abs(own), 1, per_panel).reshape(len(own), -1, per_panel).max(axis=2)
    scales = np.minimum(largest * np.float32(16 / 15), _FP16_MAX).astype(np.float16)
    units = scales.astype(np.float32) * np.float32(1 / 16)
    units = np.repeat(units, per_panel, axis=1)[:, : own.shape[1]]
    middle = np.clip(np.rint(_divide(own, units)), -MULTIPLIER_MAX, MULTIPLIER_MAX)
    multipliers = [
        np.clip(middle + step, -MULTIPLIER_MAX, MULTIPLIER_MAX)
        for step in np.array([0, -1, 1], np.float32)
    ]
    tried = [multiplier * units for multiplier in multipliers]
    codes, best = _least_error(grouped, tried, named("w4").offset)
    return codes, _divide(best, units).astype(np.int8), scales  # exact: units have 11 bits


def _least_error(grouped: F32, tried: Sequence[F32], offset: int) -> tuple[F32, F32]:
    """For groups [rows, groups, columns] the best of some scales, each [rows, groups], and the
    codes that go with it, shaped like the groups.
    """
    best, least = np.zeros_like(tried[0]), np.full(tried[0].shape, np.inf, np.float32)
    codes = np.zeros_like(grouped)
    for index, scales in enumerate(tried):
        trial, error = _rounded(grouped, scales[:, :, None], offset)
        better = (error < least) | (index == 0)
        least = np.where(better, error, least)
        best = np.where(better, scales, best)
        codes = np.where(better[:, :, None], trial, codes)
    return codes, best


def _rounded(grouped: F32, scales: F32, offset: int) -> tuple[F32, F32]:
    """The codes of groups for scales [rows, groups, 1], and their squared error [rows, groups]."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        inverse = _divide(np.ones_like(scales), scales)
        codes = np.clip(np.rint(grouped * inverse), -offset, offset - 1)
        difference = grouped - codes * scales
        squares = difference * difference
        error = np.zeros(squares.shape[:2], np.float32)
        for column in range(squares.shape[2]):
            error += squares[:, :, column]
    return codes, error


def _divide(a: F32, b: F32) -> F32:
    """a / b, and 0 where b is 0."""
    return np.divide(a, b, out=np.zeros_like(a), where=b != 0)


def pack(w: F32, dtype: str, group_size: int = 0) -> U8:
    """Stored bytes of w [rows, cols] (a vector: any shape), quantised where dtype asks for it."""
    rows, cols = w.shape if dtype != "vector" else (1, w.size)
    out = np.zeros(named(dtype).nbytes(rows, cols, group_size), np.uint8)
    if dtype == "vector":
        data = np.ascontiguousarray(w, "<f4").reshape(-1).view(np.uint8)
    elif dtype == "f32":
        blocks = _pad(w, BLOCK_ROWS, 1).reshape(-1, BLOCK_ROWS, cols)
        data = _bytes(blocks.transpose(0, 2, 1))
    elif dtype == "bf16":
        halves = _pad(w, BLOCK_ROWS, 2).astype(ml_dtypes.bfloat16).view(np.uint16)
        pairs = halves.reshape(-1, BLOCK_ROWS, halves.shape[1] // 2, 2)
        data = _bytes(pairs.transpose(0, 2, 1, 3))
    else:
        data = pack_codes(quantize(w, dtype, group_size))
    out[: data.size] = data
    return out


def panels(blocks: U8, dtype: str, cols: int, group_size: int) -> list[Panels]:
    """The panels of blocks [n, block_nbytes]: whole ones, then the last one if it is narrower."""
    columns = named(dtype).stored_cols(cols, group_size)
    whole = columns // PANEL_COLS
    end = blocks.shape[1] - named(dtype).block_nbytes(columns % PANEL_COLS, group_size)
    parts = [
        (blocks[:, :end], whole, PANEL_COLS),
        (blocks[:, end:], 1, columns % PANEL_COLS),
    ]
    return [
        _panels(data.reshape(len(data), count, -1), dtype, width, group_size)
        for data, count, width in parts
        if count * width > 0
    ]


def _panels(data: U8, dtype: str, columns: int, group_size: int) -> Panels:
    """The parts of panels [blocks, panels, bytes] of so many columns."""
    shape = data.shape[:2]
    steps, groups = (columns // 4, 0) if dtype == "w8" else (columns // 8, columns // group_size)
    multipliers = steps * BLOCK_ROWS * 4
    scales = multipliers + groups * BLOCK_ROWS
    return Panels(
        data[:, :, :multipliers].reshape(*shape, steps, BLOCK_ROWS, 4),
        data[:, :, multipliers:scales].reshape(*shape, groups, BLOCK_ROWS).view(np.int8),
        data[:, :, scales:].reshape(*shape, 1, -1).view("<f2"),
    )


def pack_codes(quantized: Codes) -> U8:
    """The blocks of a quantised matrix, rows padded to whole ones: `unpack_codes` reads them."""
    signed = quantized.codes
    if quantized.multipliers is not None:
        signed = _turned(signed, quantized.multipliers)
    codes = _pad(signed, BLOCK_ROWS, 1).view(np.uint8) + np.uint8(named(quantized.format).offset)
    count, columns = len(codes) // BLOCK_ROWS, codes.shape[1]
    steps: U8 = codes.reshape(count, BLOCK_ROWS, -1, 4).swapaxes(1, 2)
    if quantized.format == "w4":
        steps = steps[:, ::2] | steps[:, 1::2] << np.uint8(4)
    nbytes = named(quantized.format).block_nbytes(columns, quantized.group_size)
    blocks = np.empty((count, nbytes), np.uint8)
    parts = panels(blocks, quantized.format, columns, quantized.group_size)
    _fill([part.codes for part in parts], steps)
    _fill([part.scales for part in parts], _by_blocks(quantized.scales))
    if quantized.multipliers is not None:
        _fill([part.multipliers for part in parts], _by_blocks(quantized.multipliers))
    return blocks.reshape(-1)


def unpack_codes(packed: U8, dtype: str, cols: int, group_size: int) -> Codes:
    """The codes, multipliers and scales of the whole blocks in `packed`: rows as they are stored, a
    multiple of 16.
    """
    nbytes = named(dtype).block_nbytes(cols, group_size)
    blocks = packed[: packed.size // nbytes * nbytes].reshape(-1, nbytes)
    parts = panels(blocks, dtype, cols, group_size)
    steps = _join([part.codes for part in parts])
    nibbles = (steps & 15, steps >> 4) if dtype == "w4" else (steps,)
    rows = len(blocks) * BLOCK_ROWS
    quads = np.stack(nibbles, axis=2).reshape(len(blocks), -1, BLOCK_ROWS, 4).swapaxes(1, 2)
    codes = (quads.reshape(rows, -1) - np.uint8(named(dtype).offset)).view(
        np.int8
    )  # wraps to the sign
    scales = _join([part.scales for part in parts]).swapaxes(1, 2).reshape(rows, -1)
    multipliers = None
    if dtype == "w4":
        multipliers = _join([part.multipliers for part in parts]).swapaxes(1, 2).reshape(rows, -1)
        codes = _turned(codes, multipliers)
    return Codes(dtype, codes, multipliers, scales, group_size)


def _turned(codes: I8, multipliers: I8) -> I8:
    """Codes c [rows, columns] of w4, in groups with a negative multiplier -1 - c: as they are
    stored, from codes as they count, and the other way round.
    """
    turn = np.where(multipliers < 0, np.int8(-1), np.int8(0))
    turned: I8 = codes ^ np.repeat(turn, codes.shape[1] // turn.shape[1], axis=1)
    return turned


def _by_blocks(matrix: NDArray[_T]) -> NDArray[_T]:
    """[rows, n] → [blocks, n, 16 rows], zero rows appended."""
    padded = _pad(matrix, BLOCK_ROWS, 1)
    return padded.reshape(-1, BLOCK_ROWS, matrix.shape[1]).swapaxes(1, 2)


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


def unpack(packed: U8, dtype: str, rows: int, cols: int, group_size: int = 0) -> F32:
    """The float32 values of stored bytes: [rows, cols], or [cols] for a vector.

    Raises RequestError when `packed` is not as long as the format says.
    """
    nbytes = named(dtype).nbytes(rows, cols, group_size)
    if packed.nbytes != nbytes:
        raise RequestError(
            f"{packed.nbytes} bytes for a {dtype} weight [{rows}, {cols}]", f"{nbytes}"
        )
    data = np.ascontiguousarray(packed).view(np.uint8).reshape(-1)
    if dtype == "vector":
        return data[: cols * 4].view("<f4").astype(np.float32)
    blocks = math.ceil(rows / BLOCK_ROWS)
    data = data[: blocks * named(dtype).block_nbytes(cols, group_size)]
    if dtype == "f32":
        values = data.view("<f4").reshape(blocks, cols, BLOCK_ROWS).transpose(0, 2, 1)
    elif dtype == "bf16":
        pairs = data.view(ml_dtypes.bfloat16).reshape(blocks, round_up(cols, 2) // 2, BLOCK_ROWS, 2)
        values = pairs.transpose(0, 2, 1, 3).astype(np.float32)
    else:
        values = unpack_codes(data, dtype, cols, group_size).values()
    return np.ascontiguousarray(values.reshape(blocks * BLOCK_ROWS, -1)[:rows, :cols])


def unpack_weight(weight: Weight, packed: U8) -> F32:
    """The float32 values of a stored weight, in the weight's own shape."""
    values = unpack(packed, weight.format, *weight.matrix_shape, weight.group_size)
    return values.reshape(weight.shape)


def pack_weight(weight: Weight, array: F32, threads: int = 1) -> U8:
    """Stored bytes of a weight whose values are `array`, by the C++ packer.

    Raises CheckpointError when a value is not a finite number.
    """
    if array.size and not (np.isfinite(array.min()) and np.isfinite(array.max())):
        raise CheckpointError(
            f"weight {weight.name!r} contains NaN or infinity",
            "finite numbers",
            "The checkpoint is damaged; download it again.",
        )
    if weight.format == "vector":
        return pack(array, weight.format)
    matrix = np.ascontiguousarray(array, np.float32)
    return _core.quantize_pack(matrix, weight.format, weight.group_size, threads)


def _pad(matrix: NDArray[_T], rows: int, cols: int) -> NDArray[_T]:
    """Zero rows and columns appended up to whole multiples."""
    out = np.zeros((round_up(matrix.shape[0], rows), round_up(matrix.shape[1], cols)), matrix.dtype)
    out[: matrix.shape[0], : matrix.shape[1]] = matrix
    return out


def _bytes(array: NDArray[np.generic]) -> U8:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
