"""Numbers → codes, rounded to nearest, in numpy: the definition that the core is tested against.

All of it is float32 without fused multiply-add. For the rotated columns w of one row of a panel
(quant/rotation.py) and a scale

    codes = clip(round_half_even(w * (1 / scale)), -offset, offset - 1)  (all 0 when scale is 0)
    error = sum over columns, in order, of (w - codes * scale)²

and of several scales, tried in turn, the first with the least error is kept. They are

    m     = the element of w of largest magnitude, sign kept (the first one on ties)
    scale = float16(m / q) for each q of `divisors`, the magnitude clamped to 65504

A negative q puts the largest magnitude at the longer, negative end of the code range. Where codes
have few bits it pays to clip the largest numbers: those q are smaller than the range.
"""

from __future__ import annotations

import numpy as np

from deepmnn.errors import RequestError
from deepmnn.formats import F32, PANEL_COLS, Codes, Format, named
from deepmnn.quant.rotation import rotate

_FP16_MAX = np.float32(65504.0)
_SHARES = (-1.0, -1.0625, -1.125, -1.1875, -1.25, -1.375, 0.875, -0.9375)
_NARROW_BITS = 6
"""Codes of more bits try two scales: both ends of their range."""


def divisors(format: Format) -> tuple[float, ...]:
    """Of a panel's signed maximum: the scales that are tried, in order."""
    if format.bits > _NARROW_BITS:
        return -float(format.offset), float(format.offset - 1)
    return tuple(share * format.offset for share in _SHARES)


def round_to_nearest(w: F32, format: str) -> Codes:
    """Codes of w [rows, cols] with scales of least squared error.

    Raises RequestError for a format without codes.
    """
    storage = named(format)
    if not storage.is_quantized:
        raise RequestError(f"codes in format {format!r}", "a format with codes")
    rotated = rotate(w)
    rows, stored = rotated.shape
    panels = np.pad(rotated, ((0, 0), (0, -stored % PANEL_COLS))).reshape(rows, -1, PANEL_COLS)
    codes, scales = _least_error(panels, storage)
    signed = codes.reshape(rows, -1)[:, :stored].astype(np.int8)
    return Codes(format, signed, scales.astype(np.float16))


def _least_error(panels: F32, format: Format) -> tuple[F32, F32]:
    """The codes of panels [rows, panels, columns] and the scale of each, [rows, panels]."""
    largest = np.abs(panels).argmax(axis=2)[:, :, None]
    signed_max = np.take_along_axis(panels, largest, axis=2)[:, :, 0]
    best, least = np.zeros_like(signed_max), np.full(signed_max.shape, np.inf, np.float32)
    codes = np.zeros_like(panels)
    for index, divisor in enumerate(divisors(format)):
        exact = np.clip(signed_max / np.float32(divisor), -_FP16_MAX, _FP16_MAX)
        scales = exact.astype(np.float16).astype(np.float32)
        trial, error = _rounded(panels, scales[:, :, None], format.offset)
        better = (error < least) | (index == 0)
        least = np.where(better, error, least)
        best = np.where(better, scales, best)
        codes = np.where(better[:, :, None], trial, codes)
    return codes, best


def _rounded(panels: F32, scales: F32, offset: int) -> tuple[F32, F32]:
    """The codes of panels for scales [rows, panels, 1], and their squared error [rows, panels]."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales != 0)
        codes = np.clip(np.rint(panels * inverse), -offset, offset - 1)
        difference = panels - codes * scales
        squares = difference * difference
        error = np.zeros(squares.shape[:2], np.float32)
        for column in range(squares.shape[2]):
            error += squares[:, :, column]
    return codes, error
