"""Numbers → codes in blocks of columns as MNN has them: value = code · scale, unrotated.

Codes are the integers of 4 or 8 bits, and every row of a block has a float16 scale. The largest
magnitude of a block, sign kept, is divided by some divisors for the scales that are tried.

Codes of 4 bits come back from what they stand for: of the divisors -8 to -1 one finds their scale,
with no error at all. So what GPTQ rounds may be handed on as float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from deepmnn.formats import F16, F32, I8, PART_COLS, U8, Codes, Format
from deepmnn.graph.ir import Weight
from deepmnn.graph.tensors import tensors
from deepmnn.quant.gptq import Feedback, Grid, damping_for, feedback, round_to_grid
from deepmnn.quant.rounding import inverse

BITS = 4
"""Of the codes that moments are used for: 8 are good enough when each is rounded to nearest."""

_FEW = (-8.0, -8.5, -9.0, -9.5, -10.0, -11.0, 7.0, -7.5)
_EXACT = tuple(map(float, range(-8, 0)))
_MANY = (-128.0, 127.0)
_LEVELS = Format("int4", -1, BITS, PART_COLS, tuple(range(-8, 8)))


def round_blocks(w: F32, size: int, bits: int) -> tuple[I8, F16]:
    """Codes [rows, cols] of w and scales [rows, cols / size], of least squared error."""
    blocks = w.reshape(len(w), -1, size)
    offset = 1 << bits - 1
    largest = np.abs(blocks).argmax(axis=2)[:, :, None]
    top = np.take_along_axis(blocks, largest, axis=2)
    best = np.zeros(top.shape, np.float16)
    least = np.full(top.shape, np.inf, np.float32)
    for divisor in dict.fromkeys((*_FEW, *_EXACT)) if bits == BITS else _MANY:
        scales = np.clip(top / np.float32(divisor), -65504, 65504).astype(np.float16)
        wide = scales.astype(np.float32)
        difference = blocks - _codes(blocks, wide, offset) * wide
        error = np.square(difference).sum(axis=2, keepdims=True)
        best, least = np.where(error < least, scales, best), np.minimum(error, least)
    codes = _codes(blocks, best.astype(np.float32), offset).astype(np.int8)
    return codes.reshape(w.shape), best[:, :, 0]


def _codes(blocks: F32, scales: F32, offset: int) -> F32:
    codes: F32 = np.clip(np.rint(blocks * inverse(scales)), -offset, offset - 1)
    return codes


class Blocks:
    """A Rounder (quant/rounder.py): codes of 4 bits in blocks.

    Args:
        size_of: columns of a block of a weight, a multiple of 32; 0: it gets no codes of 4 bits.
    """

    def __init__(self, size_of: Callable[[Weight], int]) -> None:
        self._size_of = size_of

    def formats(self, weights: Iterable[Weight]) -> dict[str, str]:
        """Tensor → "int4-64" for blocks of 64 columns."""
        return {
            tensor.name: f"{_LEVELS.name}-{self._size_of(weight)}"
            for weight in weights
            if self._size_of(weight)
            for tensor in tensors(weight.expr)
        }

    def feedback(self, moments: F32, rows: int) -> Feedback:
        """Of inputs as they are."""
        return feedback(moments, damping_for(rows))

    def round(self, w: F32, errors: Feedback, format: str) -> U8:
        """All scales, then all codes, a byte each."""
        levels, scales = round_to_grid(w, errors, Grid(_LEVELS, _size(format), _FEW))
        return np.concatenate([part.reshape(-1).view(np.uint8) for part in (scales, levels)])

    def values(self, stored: U8, format: str, shape: tuple[int, int]) -> F32:
        """code · scale."""
        rows, cols = shape
        split = 2 * rows * (cols // _size(format))
        scales = stored[:split].view(np.float16).astype(np.float32)
        levels = stored[split:].view(np.int8).reshape(rows, -1, _size(format))
        values: F32 = levels * scales.reshape(rows, -1, 1)
        return values.reshape(shape)

    def codes(self, stored: U8, format: str, shape: tuple[int, int]) -> Codes | None:
        """None: they are no codes of our engine."""
        return None


def _size(format: str) -> int:
    return int(format.rpartition("-")[2])
