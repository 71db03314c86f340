"""Random weights straight in their stored form: gigabytes in seconds, for benchmarks.

The bytes of a packed matrix are drawn, not computed: codes are uniform, scales share one size with
random signs, and multipliers are its last few steps. Values have a deviation of about
1 / sqrt(columns) and mean 0.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from deepmnn.formats import BLOCK_ROWS, MULTIPLIER_MAX, PANEL_COLS, U8, Format, named
from deepmnn.graph.ir import Weight
from deepmnn.quant.layout import STEP_BYTES, Panels, panels
from deepmnn.source.random import generator

PIECE = 1 << 20
"""About as many bytes are drawn at a time: the temporaries stay in cache."""

_MULTIPLIERS = np.arange(MULTIPLIER_MAX - 3, MULTIPLIER_MAX + 1, dtype=np.int8)
_SIGN_AND_JITTER = np.uint16(0x803F)  # fp16: sign, and the low bits of the mantissa


def draw(weight: Weight, seed: int) -> U8:
    """Stored bytes of a random quantised matrix, the same for the same (seed, weight name)."""
    format, group_size = named(weight.format), weight.group_size
    rows, cols = weight.matrix_shape
    random = generator(seed, weight.name)
    out = np.empty(weight.nbytes, np.uint8)
    count = math.ceil(rows / BLOCK_ROWS)
    nbytes = format.block_nbytes(cols, group_size)
    blocks = out[: count * nbytes].reshape(count, nbytes)
    out[count * nbytes :] = 0
    for begin in range(0, count, max(1, PIECE // nbytes)):
        piece = blocks[begin : begin + max(1, PIECE // nbytes)]
        words = random.integers(0, 1 << 64, -(-piece.size // 8), np.uint64)
        piece[:] = words.view(np.uint8)[: piece.size].reshape(piece.shape)
        parts = panels(piece, format.name, cols, group_size)
        for part in parts:
            _shape_scales(part, format, cols)
        padding = range(cols, format.stored_cols(cols, group_size))
        _clear_columns(parts[-1].codes[:, -1], format, padding)
    for part in panels(blocks[-1:], format.name, cols, group_size):
        _clear_rows(part, format, rows % BLOCK_ROWS or BLOCK_ROWS)
    return out


def _deviation(format: Format) -> float:
    """Of uniform codes, times their multipliers."""
    codes = 2 * format.offset / math.sqrt(12)
    if not format.multipliers:
        return codes
    multipliers = float(np.sqrt(np.mean(_MULTIPLIERS.astype(np.float64) ** 2)))
    return codes * multipliers / (MULTIPLIER_MAX + 1)


def _shape_scales(part: Panels, format: Format, cols: int) -> None:
    """Turns random bits into scales of one size, of either sign, and into multipliers."""
    scales = part.scales.view(np.uint16)
    size = np.float16(1 / (math.sqrt(cols) * _deviation(format)))
    scales &= _SIGN_AND_JITTER
    scales |= size.view(np.uint16) & ~_SIGN_AND_JITTER
    part.multipliers[:] = _MULTIPLIERS[part.multipliers & 3]


def _clear_columns(codes: NDArray[np.uint8], format: Format, padding: range) -> None:
    """Code zero in the columns past the matrix: codes [blocks, steps, 16, 4] of a panel."""
    mask = (1 << format.bits) - 1
    for column in padding:
        quad, within = divmod(column % PANEL_COLS, STEP_BYTES)
        step, place = divmod(quad, format.codes_per_byte)
        shift = place * format.bits
        ours = codes[:, step, :, within]
        ours[:] = (ours & (0xFF ^ mask << shift)) | (format.offset << shift)


def _clear_rows(part: Panels, format: Format, rows: int) -> None:
    """Code zero, multipliers and scales 0 in the rows of a block past its first `rows`."""
    places = range(format.codes_per_byte)
    part.codes[..., rows:, :] = sum(format.offset << place * format.bits for place in places)
    part.multipliers[..., rows:] = 0
    part.scales[..., rows:] = 0
