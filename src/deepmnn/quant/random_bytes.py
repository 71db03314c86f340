"""Random weights straight in their stored form: gigabytes in seconds, for benchmarks.

The bytes of a packed matrix are drawn, not computed: codes are uniform, scales share one size with
random signs, so values have a deviation of about 1 / sqrt(columns) and mean 0.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from deepmnn.checkpoint.random import generator
from deepmnn.graph.ir import Weight
from deepmnn.graph.weights import BLOCK_ROWS
from deepmnn.quant.pack import OFFSET, U8, block_nbytes, matrix_shape, weight_nbytes

PIECE = 1 << 20
"""About as many bytes are drawn at a time: the temporaries stay in cache."""

_UNIFORM_DEVIATION = {"w8": 256 / math.sqrt(12), "w4": 16 / math.sqrt(12)}
_SIGN_AND_JITTER = np.uint16(0x803F)  # fp16: sign, and the low bits of the mantissa


def draw(weight: Weight, seed: int) -> U8:
    """Stored bytes of a random w8 or w4 matrix, the same for the same (seed, weight name)."""
    rows, cols = matrix_shape(weight)
    group_size, dtype = weight.group_size, weight.dtype
    random = generator(seed, weight.name)
    out = np.empty(weight_nbytes(weight), np.uint8)
    blocks = math.ceil(rows / BLOCK_ROWS)
    per_block = block_nbytes(dtype, cols, group_size)
    body = out[: blocks * per_block].reshape(blocks, math.ceil(cols / group_size), -1)
    out[blocks * per_block :] = 0
    for begin in range(0, blocks, max(1, PIECE // per_block)):
        piece = body[begin : begin + max(1, PIECE // per_block)]
        words = random.integers(0, 1 << 64, -(-piece.size // 8), np.uint64)
        piece[:] = words.view(np.uint8)[: piece.size].reshape(piece.shape)
        _shape_scales(piece, dtype, cols)
        _clear_columns(piece, dtype, cols, group_size)
    _clear_rows(body[-1], dtype, rows)
    return out


def _shape_scales(groups: NDArray[np.uint8], dtype: str, cols: int) -> None:
    """Turns the random bits at each group's end into scales of one size, of either sign."""
    scales = groups.reshape(-1, groups.shape[2]).view(np.uint16)[:, -BLOCK_ROWS:]
    size = np.float16(1 / (math.sqrt(cols) * _UNIFORM_DEVIATION[dtype]))
    scales &= _SIGN_AND_JITTER
    scales |= size.view(np.uint16) & ~_SIGN_AND_JITTER


def _clear_columns(groups: NDArray[np.uint8], dtype: str, cols: int, group_size: int) -> None:
    """Code zero in the columns past the matrix, in the last group of every block."""
    columns = 4 if dtype == "w8" else 8  # columns in 64 bytes
    last = groups[:, -1, : -2 * BLOCK_ROWS].reshape(len(groups), -1, BLOCK_ROWS, 4)
    for column in range(cols % group_size or group_size, group_size):
        step, within = divmod(column, columns)
        codes = last[:, step, :, within % 4]
        if dtype == "w8":
            codes[:] = OFFSET["w8"]
        elif within < 4:
            codes[:] = (codes & 0xF0) | OFFSET["w4"]
        else:
            codes[:] = (codes & 0x0F) | (OFFSET["w4"] << 4)


def _clear_rows(block: NDArray[np.uint8], dtype: str, rows: int) -> None:
    """Code zero and scale 0 in the rows of the last block past the matrix."""
    padding = rows % BLOCK_ROWS
    if padding:
        codes = block[:, : -2 * BLOCK_ROWS].reshape(len(block), -1, BLOCK_ROWS, 4)
        codes[:, :, padding:] = OFFSET["w8"] if dtype == "w8" else OFFSET["w4"] * 0x11
        block[:, -2 * BLOCK_ROWS + 2 * padding :] = 0
