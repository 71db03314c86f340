"""Random weights straight in their stored form: gigabytes in seconds, for benchmarks.

The bytes of a packed matrix are drawn, not computed: codes are uniform, and scales share one size
with random signs. Values have a deviation of about 1 / sqrt(columns) and mean 0.
"""

from __future__ import annotations

import math

import numpy as np

from deepmnn.formats import BLOCK_ROWS, U8, Format, named
from deepmnn.graph.ir import Weight
from deepmnn.quant.layout import Panels, pack, panels, unpack_codes
from deepmnn.source.random import generator

PIECE = 1 << 20
"""About as many bytes are drawn at a time: the temporaries stay in cache."""

_SIGN_AND_JITTER = np.uint16(0x803F)  # fp16: sign, and the low bits of the mantissa


def draw(weight: Weight, seed: int) -> U8:
    """Stored bytes of a random quantised matrix, the same for the same (seed, weight name)."""
    format = named(weight.format)
    rows, cols = weight.matrix_shape
    random = generator(seed, weight.name)
    out = np.empty(weight.nbytes, np.uint8)
    count = math.ceil(rows / BLOCK_ROWS)
    nbytes = format.block_nbytes(cols)
    blocks = out[: count * nbytes].reshape(count, nbytes)
    out[count * nbytes :] = 0
    for begin in range(0, count, max(1, PIECE // nbytes)):
        piece = blocks[begin : begin + max(1, PIECE // nbytes)]
        words = random.integers(0, 1 << 64, -(-piece.size // 8), np.uint64)
        piece[:] = words.view(np.uint8)[: piece.size].reshape(piece.shape)
        for views in panels(piece, format.name, cols):
            _shape_scales(views, format, cols)
    if rows % BLOCK_ROWS:
        for views in panels(blocks[-1:], format.name, cols):
            views.scales[..., rows % BLOCK_ROWS :] = 0
        blocks[-1] = pack(unpack_codes(blocks[-1].copy(), format.name, cols))[:nbytes]  # zero codes
    return out


def _shape_scales(views: Panels, format: Format, cols: int) -> None:
    """Turns random bits into scales of one size, of either sign."""
    scales = views.scales.view(np.uint16)
    deviation = float(np.std(format.levels))  # of uniform codes
    size = np.float16(1 / (math.sqrt(cols) * deviation))
    scales &= _SIGN_AND_JITTER
    scales |= size.view(np.uint16) & ~_SIGN_AND_JITTER
