"""Numbers → codes, rounded to nearest, in numpy: the definition that the core is tested against.

All of it is float32 without fused multiply-add. For the rotated columns w of one row of a panel
(quant/rotation.py) and a scale

    x      = w * (1 / scale)                                            (0 when scale is 0)
    levels = the format's nearest to x: where they are all the integers from low to high,
             clip(round_half_even(x), low, high); else of two equally near ones the higher
    error  = sum over columns, in order, of (w - levels * scale)²

and of several scales, tried in turn, the first with the least error is kept. They are

    m     = the element of w of largest magnitude, sign kept (the first one on ties)
    scale = float16(m / q) for each q of the format's divisors, the magnitude clamped to 65504

A negative q puts the largest magnitude at the longer, negative end of the levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from deepmnn.errors import RequestError
from deepmnn.formats import F16, F32, PANEL_COLS, Codes, Format, named
from deepmnn.quant.rotation import rotate

DIVISORS: dict[str, tuple[float, ...]] = {
    "w8": (-125.0, -126.0, -127.0, -128.0, -129.0, -130.0, 126.0, 127.0),
    "w6": (-30.0, -30.5, -31.0, -31.5, -32.0, -32.5, -33.0, -34.0),
    "w5": (-105.0, -111.0, -117.0, -122.0, -127.0, 108.0, 114.0, 120.0),
    "w4": (-54.0, -51.0, -57.0, -60.0, -63.0, -66.0, 56.0, 62.0),
    "w3": (-59.0, -74.0, -79.0, -84.0, -89.0, -94.0, 79.0, 87.0),
}
"""What a panel's signed maximum is divided by for the scales that are tried, in order. With few
levels it pays to clip the largest numbers. The least level is one of them: what codes stood for
once rounds to the same codes again."""

_FP16_MAX = np.float32(65504.0)


def round_to_nearest(w: F32, format: str) -> Codes:
    """Codes of w [rows, cols] with scales of least squared error.

    Raises RequestError for a format without codes.
    """
    storage = named(format)
    if not storage.is_quantized:
        raise RequestError(f"codes in format {format!r}", "a format with codes")
    rotated = rotate(w)
    levels, scales = [], []
    for start in range(0, rotated.shape[1], PANEL_COLS):
        found, scale = _least_error(rotated[:, start : start + PANEL_COLS], storage)
        levels.append(found.astype(np.int8))
        scales.append(scale.astype(np.float16))
    return Codes(format, np.concatenate(levels, axis=1), np.stack(scales, axis=1))


def scales_to_try(largest: F32, divisors: Sequence[float]) -> F32:
    """Numbers of float16 for columns with these signed maxima [rows]: [tries, rows]."""
    exact = largest / np.array(divisors, np.float32)[:, None]
    halves: F16 = np.clip(exact, -_FP16_MAX, _FP16_MAX).astype(np.float16)
    return halves.astype(np.float32)


def inverse(scales: F32) -> F32:
    """1 / scales, 0 for those that are 0."""
    out: F32 = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales != 0)
    return out


def nearest(x: F32, format: Format) -> F32:
    """The level of a format that is nearest to each x."""
    cells = _cells(format)
    if cells is None:
        integers: F32 = np.clip(np.rint(x), min(format.levels), max(format.levels))
        return integers
    places = np.clip(np.floor(x * 2), -256, 255).astype(np.intp)
    return cells[places + 256]


@cache
def _cells(format: Format) -> F32 | None:
    """The nearest level to all of n / 2 - 128 .. (n + 1) / 2 - 128, for each n below 512: borders
    between integer levels are multiples of a half. None where levels are all the integers of a
    range.
    """
    levels = np.sort(np.array(format.levels, np.float32))
    if np.all(np.diff(levels) == 1):
        return None
    borders = (levels[1:] + levels[:-1]) / 2
    return levels[np.searchsorted(borders, np.arange(512) / 2 - 128, side="right")]


def _least_error(panel: F32, format: Format) -> tuple[F32, F32]:
    """The levels of a panel [rows, columns] and the scale of each row."""
    largest = np.abs(panel).argmax(axis=1)[:, None]
    signed_max = np.take_along_axis(panel, largest, axis=1)[:, 0]
    best, least = np.zeros_like(signed_max), np.full(len(panel), np.inf, np.float32)
    levels = np.zeros_like(panel)
    for index, scales in enumerate(scales_to_try(signed_max, DIVISORS[format.name])):
        trial, error = _rounded(panel, scales[:, None], format)
        better = (error < least) | (index == 0)
        least = np.where(better, error, least)
        best = np.where(better, scales, best)
        levels = np.where(better[:, None], trial, levels)
    return levels, best


def _rounded(panel: F32, scales: F32, format: Format) -> tuple[F32, F32]:
    """The levels of a panel for scales [rows, 1], and the squared error of each row."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        levels = nearest(panel * inverse(scales), format)
        difference = panel - levels * scales
        squares = difference * difference
        error = np.zeros(len(panel), np.float32)
        for column in range(panel.shape[1]):
            error += squares[:, column]
    return levels, error
