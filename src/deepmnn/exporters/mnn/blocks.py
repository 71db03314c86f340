"""Numbers → codes in MNN's symmetric blocks: rounded to nearest, scales of least squared error."""

from __future__ import annotations

import numpy as np

from deepmnn.formats import F16, F32, I8
from deepmnn.quant.rounding import inverse

_SHARES = (-1.0, -1.0625, -1.125, -1.1875, -1.25, -1.375, 0.875, -0.9375)
"""Of half the code range: what the largest number is divided by, for the scales that are tried."""


def round_blocks(w: F32, size: int, bits: int) -> tuple[I8, F16]:
    """Codes [rows, cols] of w and scales [rows, cols / size]: value = code · scale."""
    blocks = w.reshape(len(w), -1, size)
    offset = 1 << bits - 1
    largest = np.abs(blocks).argmax(axis=2)[:, :, None]
    top = np.take_along_axis(blocks, largest, axis=2)
    best = np.zeros(top.shape, np.float16)
    least = np.full(top.shape, np.inf, np.float32)
    for share in _SHARES if bits <= 4 else (-1.0, (offset - 1) / offset):
        scales = np.clip(top / np.float32(share * offset), -65504, 65504).astype(np.float16)
        wide = scales.astype(np.float32)
        difference = blocks - _codes(blocks, wide, offset) * wide
        error = np.square(difference).sum(axis=2, keepdims=True)
        best, least = np.where(error < least, scales, best), np.minimum(error, least)
    codes = _codes(blocks, best.astype(np.float32), offset).astype(np.int8)
    return codes.reshape(w.shape), best[:, :, 0]


def _codes(blocks: F32, scales: F32, offset: int) -> F32:
    codes: F32 = np.clip(np.rint(blocks * inverse(scales)), -offset, offset - 1)
    return codes
