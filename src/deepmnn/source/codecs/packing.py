"""Codes that share bytes: streams of bits, pairs of nibbles, and the numbers of 4 and 8 bits."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""What the codes of FP4 stand for (OCP Microscaling Formats, section 5.3.3)."""

with np.errstate(invalid="ignore"):
    FP8_LEVELS = {
        "F8_E4M3": np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32),
        "F8_E5M2": np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e5m2).astype(np.float32),
    }
"""What the codes of FP8 stand for."""


def unpack_bits(words: NDArray[Any], bits: int, count: int) -> U8:
    """The codes in streams of 32-bit words.

    Code i of a row lies in its bits [i · bits, (i + 1) · bits), from the lowest of the first word
    on; where bits does not divide 32, a code may begin in one word and end in the next.

    Args:
        words: [rows, words] of 32 bits.
        bits: of a code, 1 … 8.
        count: codes of a row.

    Returns [rows, count].
    """
    data = np.ascontiguousarray(words).view(np.uint8)
    rows, eights = len(data), -(-count // 8)  # eight codes are `bits` whole bytes
    size = min(data.shape[1], eights * bits)
    stream = np.zeros((rows, eights * bits), np.uint8)
    stream[:, :size] = data[:, :size]
    wide = np.zeros((rows, eights, 8), np.uint8)
    wide[..., :bits] = stream.reshape(rows, eights, bits)
    numbers = wide.view("<u8")[..., 0]
    codes = np.empty((rows, eights, 8), np.uint8)
    for i in range(8):
        codes[..., i] = numbers >> np.uint64(i * bits) & np.uint64((1 << bits) - 1)
    return codes.reshape(rows, eights * 8)[:, :count]


def unsigned(codes: NDArray[np.int8]) -> U8:
    """Signed codes with 128 added to each."""
    return codes.view(np.uint8) ^ np.uint8(128)


def unpack_nibbles(packed: U8, low_first: bool = True) -> U8:
    """Two codes of 4 bits of each byte: [..., n] → [..., 2 · n]."""
    codes = np.empty((*packed.shape, 2), np.uint8)
    codes[..., 0 if low_first else 1] = packed & 15
    codes[..., 1 if low_first else 0] = packed >> 4
    return codes.reshape(*packed.shape[:-1], -1)


def exponents(stored: NDArray[Any]) -> NDArray[np.float32]:
    """The scales 2^(e − 127) that E8M0 stores as bytes e; 255 is NaN."""
    scales: NDArray[np.float32] = stored.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    return scales
