"""The weight layouts of docs/layouts.md in numpy: the definition the C++ packer is tested against.

Quantising a group of weights w (one row, group_size columns), all in float32 without fused
multiply-add:

    m     = the element of largest magnitude, sign kept (the first one on ties)
    for q in CANDIDATES[dtype], the first best kept:
        scale = float32(float16(m / q)), the magnitude clamped to 65504
        codes = clip(round_half_even(w * (1 / scale)), low, high)      (all 0 when scale is 0)
        error = sum over columns, in order, of (w - codes * scale)²

A negative q puts the largest magnitude at the longer, negative end of the code range.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from deepmnn import _core
from deepmnn.errors import CheckpointError, RequestError
from deepmnn.graph.ir import Weight
from deepmnn.graph.weights import BLOCK_ROWS, F32

U8 = NDArray[np.uint8]
_T = TypeVar("_T", bound=np.generic)

CANDIDATES: dict[str, tuple[float, ...]] = {
    "w4": (-8.0, -8.5, -9.0, -9.5, -10.0, -11.0, 7.0, -7.5),
    "w8": (-128.0, 127.0),
}
"""Divisors of the signed maximum that are tried as scales, in this order."""

OFFSET = {"w4": 8, "w8": 128}
"""Code of zero; codes run from -offset to offset - 1."""

GROUP_SIZES = (32, 64, 128)
DTYPES = ("vector", "f32", "bf16", "w8", "w4")
_FP16_MAX = np.float32(65504.0)


@dataclass(frozen=True)
class Quantized:
    """Signed codes int8 [rows, groups * group_size] and float16 scales [rows, groups]."""

    codes: NDArray[np.int8]
    scales: NDArray[np.float16]


def packed_nbytes(dtype: str, rows: int, cols: int, group_size: int = 0) -> int:
    """Bytes of a stored weight, padded to 64. A vector has rows = 1.

    Raises RequestError for an unknown dtype or a group size the dtype does not have.
    """
    check_format(dtype, group_size)
    if dtype == "vector":
        return _ceil(rows * cols * 4, 64)
    return _ceil(math.ceil(rows / BLOCK_ROWS) * block_nbytes(dtype, cols, group_size), 64)


def block_nbytes(dtype: str, cols: int, group_size: int = 0) -> int:
    """Bytes of one block of 16 rows of a matrix."""
    if dtype == "f32":
        return BLOCK_ROWS * cols * 4
    if dtype == "bf16":
        return BLOCK_ROWS * _ceil(cols, 2) * 2
    codes = group_size if dtype == "w8" else group_size // 2
    return math.ceil(cols / group_size) * BLOCK_ROWS * (codes + 2)


def check_format(dtype: str, group_size: int) -> None:
    """Raises RequestError unless dtype and group_size are a format of docs/layouts.md."""
    if dtype not in DTYPES:
        raise RequestError(f"weight format {dtype!r}", f"one of {', '.join(DTYPES)}")
    allowed = GROUP_SIZES if dtype in OFFSET else (0,)
    if group_size not in allowed:
        raise RequestError(f"group_size {group_size} for {dtype}", f"one of {allowed}")


def quantize(w: F32, dtype: str, group_size: int) -> Quantized:
    """Round-to-nearest codes and least-squared-error scales of w [rows, cols] ("w8" or "w4")."""
    check_format(dtype, group_size)
    rows, cols = w.shape
    groups = math.ceil(cols / group_size)
    padded = np.zeros((rows, groups * group_size), np.float32)
    padded[:, :cols] = w
    grouped = padded.reshape(rows, groups, group_size)
    largest = np.abs(grouped).argmax(axis=2)[:, :, None]
    signed_max = np.take_along_axis(grouped, largest, axis=2)  # [rows, groups, 1]
    best_error = np.full((rows, groups), np.inf, np.float32)
    codes = np.zeros(grouped.shape, np.float32)
    scales = np.zeros((rows, groups), np.float16)
    for index, divisor in enumerate(CANDIDATES[dtype]):
        scale, trial, error = _candidate(grouped, signed_max, divisor, OFFSET[dtype])
        better = (error < best_error) | (index == 0)
        best_error = np.where(better, error, best_error)
        scales = np.where(better, scale[:, :, 0], scales)
        codes = np.where(better[:, :, None], trial, codes)
    return Quantized(codes.astype(np.int8).reshape(rows, -1), scales)


def _candidate(
    grouped: F32, signed_max: F32, divisor: float, offset: int
) -> tuple[NDArray[np.float16], F32, F32]:
    """Scale, codes and squared error of every group [rows, groups, group_size] for one divisor."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        wide = np.clip(signed_max / np.float32(divisor), -_FP16_MAX, _FP16_MAX)
        scale = wide.astype(np.float16)
        step = scale.astype(np.float32)
        inverse = np.where(step == 0, np.float32(0), np.float32(1) / step)
        codes = np.clip(np.rint(grouped * inverse), -offset, offset - 1)
        difference = grouped - codes * step
        squares = difference * difference
        error = np.zeros(squares.shape[:2], np.float32)
        for column in range(squares.shape[2]):
            error += squares[:, :, column]
    return scale, codes, error


def pack(w: F32, dtype: str, group_size: int = 0) -> U8:
    """Stored bytes of w [rows, cols] (a vector: any shape), quantised where dtype asks for it."""
    rows, cols = w.shape if dtype != "vector" else (1, w.size)
    out = np.zeros(packed_nbytes(dtype, rows, cols, group_size), np.uint8)
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
        data = _pack_codes(quantize(w, dtype, group_size), dtype, group_size)
    out[: data.size] = data
    return out


def _pack_codes(quantized: Quantized, dtype: str, group_size: int) -> U8:
    """Codes and scales of whole groups, interleaved group by group inside blocks of 16 rows."""
    codes = _pad(quantized.codes, BLOCK_ROWS, 1).astype(np.int16) + OFFSET[dtype]
    scales = _pad(quantized.scales, BLOCK_ROWS, 1)
    groups = scales.shape[1]
    if dtype == "w4":
        nibbles = codes.astype(np.uint8).reshape(-1, 2, 4)
        codes8 = nibbles[:, 0] | (nibbles[:, 1] << 4)
    else:
        codes8 = codes.astype(np.uint8)
    quads = codes8.reshape(len(codes) // BLOCK_ROWS, BLOCK_ROWS, groups, -1, 4)
    body = np.ascontiguousarray(quads.transpose(0, 2, 3, 1, 4)).reshape(len(quads), groups, -1)
    tail = np.ascontiguousarray(scales.reshape(-1, BLOCK_ROWS, groups).transpose(0, 2, 1))
    return np.concatenate([body, tail.view(np.uint8)], axis=2).reshape(-1)


def unpack(packed: U8, dtype: str, rows: int, cols: int, group_size: int = 0) -> F32:
    """The float32 values of stored bytes: [rows, cols], or [cols] for a vector.

    Raises RequestError when `packed` is not as long as the format says.
    """
    nbytes = packed_nbytes(dtype, rows, cols, group_size)
    if packed.nbytes != nbytes:
        raise RequestError(
            f"{packed.nbytes} bytes for a {dtype} weight [{rows}, {cols}]", f"{nbytes}"
        )
    data = np.ascontiguousarray(packed).view(np.uint8).reshape(-1)
    if dtype == "vector":
        return data[: cols * 4].view("<f4").astype(np.float32)
    blocks = math.ceil(rows / BLOCK_ROWS)
    data = data[: blocks * block_nbytes(dtype, cols, group_size)]
    if dtype == "f32":
        values = data.view("<f4").reshape(blocks, cols, BLOCK_ROWS).transpose(0, 2, 1)
    elif dtype == "bf16":
        pairs = data.view(ml_dtypes.bfloat16).reshape(blocks, _ceil(cols, 2) // 2, BLOCK_ROWS, 2)
        values = pairs.transpose(0, 2, 1, 3).astype(np.float32)
    else:
        values = _unpack_codes(data, dtype, cols, group_size)
    return np.ascontiguousarray(values.reshape(blocks * BLOCK_ROWS, -1)[:rows, :cols])


def unpack_codes(packed: U8, dtype: str, cols: int, group_size: int) -> Quantized:
    """The codes and scales of whole blocks of a "w8" or "w4" matrix: rows as stored, a multiple
    of 16, and columns padded to whole groups.
    """
    body_nbytes = BLOCK_ROWS * (group_size if dtype == "w8" else group_size // 2)
    groups = packed.reshape(-1, math.ceil(cols / group_size), body_nbytes + BLOCK_ROWS * 2)
    blocks, count = groups.shape[:2]
    scales = np.ascontiguousarray(groups[:, :, body_nbytes:]).view("<f2").transpose(0, 2, 1)
    quads = groups[:, :, :body_nbytes].reshape(blocks, count, -1, BLOCK_ROWS, 4)
    if dtype == "w4":
        quads = np.stack([quads & 15, quads >> 4], axis=3)  # [blocks, groups, steps, 2, 16, 4]
        quads = quads.reshape(blocks, count, -1, BLOCK_ROWS, 4)
    codes = (quads - np.uint8(OFFSET[dtype])).view(np.int8)  # wraps around to the signed code
    rows = blocks * BLOCK_ROWS
    return Quantized(codes.transpose(0, 3, 1, 2, 4).reshape(rows, -1), scales.reshape(rows, count))


def _unpack_codes(data: U8, dtype: str, cols: int, group_size: int) -> F32:
    quantized = unpack_codes(data, dtype, cols, group_size)
    values = quantized.codes.astype(np.float32).reshape(*quantized.scales.shape, group_size)
    with np.errstate(invalid="ignore", over="ignore"):  # damaged scales may be NaN or infinite
        values *= quantized.scales.astype(np.float32)[:, :, None]
    return values


def matrix_shape(weight: Weight) -> tuple[int, int]:
    """Rows and columns as stored: a vector has one row."""
    if weight.dtype == "vector":
        return 1, math.prod(weight.shape)
    rows, cols = weight.shape
    return rows, cols


def weight_nbytes(weight: Weight) -> int:
    """Stored bytes of a weight of a graph."""
    return packed_nbytes(weight.dtype, *matrix_shape(weight), weight.group_size)


def unpack_weight(weight: Weight, packed: U8) -> F32:
    """The float32 values of a stored weight, in the weight's own shape."""
    values = unpack(packed, weight.dtype, *matrix_shape(weight), weight.group_size)
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
    if weight.dtype == "vector":
        return pack(array, weight.dtype)
    matrix = np.ascontiguousarray(array, np.float32)
    return _core.quantize_pack(matrix, weight.dtype, weight.group_size, threads)


def _ceil(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _pad(matrix: NDArray[_T], rows: int, cols: int) -> NDArray[_T]:
    """Zero rows and columns appended up to whole multiples."""
    out = np.zeros((_ceil(matrix.shape[0], rows), _ceil(matrix.shape[1], cols)), matrix.dtype)
    out[: matrix.shape[0], : matrix.shape[1]] = matrix
    return out


def _bytes(array: NDArray[np.generic]) -> U8:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
