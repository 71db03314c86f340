"""Random weights straight in their stored form: gigabytes in seconds, for benchmarks.

The bytes of a packed matrix are drawn, not computed: codes are uniform, scales share one size with
random signs, and so do w4's multipliers but for a few steps. Values have a deviation of about
1 / sqrt(columns) and mean 0.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from deepmnn.formats import BLOCK_ROWS, PANEL_COLS, U8, named
from deepmnn.graph.ir import Weight
from deepmnn.quant.pack import Panels, panels
from deepmnn.source.random import generator

PIECE = 1 << 20
"""About as many bytes are drawn at a time: the temporaries stay in cache."""

_MULTIPLIERS = np.array([12, 13, 14, 15], np.int8)
_DEVIATION = {
    "w8": 256 / math.sqrt(12),
    "w4": 16 / math.sqrt(12) * np.sqrt(np.mean(_MULTIPLIERS.astype(np.float64) ** 2)) / 16,
}
"""Of uniform codes, times their multipliers."""
_SIGN_AND_JITTER = np.uint16(0x803F)  # fp16: sign, and the low bits of the mantissa


def draw(weight: Weight, seed: int) -> U8:
    """Stored bytes of a random w8 or w4 matrix, the same for the same (seed, weight name)."""
    rows, cols = weight.matrix_shape
    group_size, dtype = weight.group_size, weight.format
    random = generator(seed, weight.name)
    out = np.empty(weight.nbytes, np.uint8)
    count = math.ceil(rows / BLOCK_ROWS)
    nbytes = named(dtype).block_nbytes(cols, group_size)
    blocks = out[: count * nbytes].reshape(count, nbytes)
    out[count * nbytes :] = 0
    for begin in range(0, count, max(1, PIECE // nbytes)):
        piece = blocks[begin : begin + max(1, PIECE // nbytes)]
        words = random.integers(0, 1 << 64, -(-piece.size // 8), np.uint64)
        piece[:] = words.view(np.uint8)[: piece.size].reshape(piece.shape)
        parts = panels(piece, dtype, cols, group_size)
        for part in parts:
            _shape_scales(part, dtype, cols)
        _clear_columns(
            parts[-1].codes[:, -1], dtype, cols, named(dtype).stored_cols(cols, group_size)
        )
    for part in panels(blocks[-1:], dtype, cols, group_size):
        _clear_rows(part, dtype, rows % BLOCK_ROWS or BLOCK_ROWS)
    return out


def _shape_scales(part: Panels, dtype: str, cols: int) -> None:
    """Turns random bits into scales of one size, of either sign, and into multipliers."""
    scales = part.scales.view(np.uint16)
    size = np.float16(1 / (math.sqrt(cols) * _DEVIATION[dtype]))
    scales &= _SIGN_AND_JITTER
    scales |= size.view(np.uint16) & ~_SIGN_AND_JITTER
    part.multipliers[:] = _MULTIPLIERS[part.multipliers & 3]


def _clear_columns(codes: NDArray[np.uint8], dtype: str, cols: int, stored: int) -> None:
    """Code zero in the stored columns past the matrix: codes [blocks, steps, 16, 4] of a panel."""
    per_step = 4 if dtype == "w8" else 8
    for column in range(cols, stored):
        step, within = divmod(column % PANEL_COLS, per_step)
        ours = codes[:, step, :, within % 4]
        if dtype == "w8":
            ours[:] = named("w8").offset
        elif within < 4:
            ours[:] = (ours & 0xF0) | named("w4").offset
        else:
            ours[:] = (ours & 0x0F) | (named("w4").offset << 4)


def _clear_rows(part: Panels, dtype: str, rows: int) -> None:
    """Code zero, multipliers and scales 0 in the rows of a block past its first `rows`."""
    part.codes[..., rows:, :] = named("w8").offset if dtype == "w8" else named("w4").offset * 0x11
    part.multipliers[..., rows:] = 0
    part.scales[..., rows:] = 0
