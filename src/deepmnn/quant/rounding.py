"""Numbers → codes, rounded to nearest, in numpy: the definition that the core is tested against.

All of it is float32 without fused multiply-add. For columns w of one row and a scale

    codes = clip(round_half_even(w * (1 / scale)), -offset, offset - 1)  (all 0 when scale is 0)
    error = sum over columns, in order, of (w - codes * scale)²

and of several scales, tried in turn, the first with the least error is kept. They are

    m     = the element of w of largest magnitude, sign kept (the first one on ties)
    scale = m / q for each q of the format's divisors, the magnitude clamped to 65504

A negative q puts the largest magnitude at the longer, negative end of the code range.

`panel_scales`: w is the columns of a panel, and every scale is rounded to float16.

`group_multipliers`: w is the columns of a group, whose best scale is its `own`. From all of a
panel's groups

    S    = float16(min(65504, max |own| * float32(16 / 15)))
    unit = S / 16

and for each group the scales tried are multiplier * unit, with these multipliers, clipped to ±15:

    middle = clip(round_half_even(own / unit), -15, 15)                (0 when unit is 0)
    middle, middle - 1, middle + 1
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from deepmnn.errors import RequestError
from deepmnn.formats import F16, F32, I8, MULTIPLIER_MAX, PANEL_COLS, Codes, named

Rounded = tuple[F32, I8 | None, F16]
"""Codes shaped like the groups, multipliers [rows, groups], scales [rows, panels]."""

_FP16_MAX = np.float32(65504.0)
_UNIT = np.float32(1 / (MULTIPLIER_MAX + 1))


def round_to_nearest(w: F32, format: str, group_size: int) -> Codes:
    """Codes of w [rows, cols] with scales of least squared error.

    Raises RequestError for a format without codes, or a group size that it does not have.
    """
    storage = named(format)
    storage.check_group_size(group_size)
    if format not in RULES:
        raise RequestError(f"codes in format {format!r}", f"one of {', '.join(RULES)}")
    rows, cols = w.shape
    padded = np.pad(np.asarray(w, np.float32), ((0, 0), (0, -cols % group_size)))
    rounded, multipliers, scales = RULES[format](
        padded.reshape(rows, -1, group_size), storage.offset
    )
    columns = storage.stored_cols(cols, group_size)
    codes = rounded.reshape(rows, -1)[:, :columns].astype(np.int8)
    return Codes(format, codes, multipliers, scales, group_size)


def panel_scales(divisors: Sequence[float], grouped: F32, offset: int) -> Rounded:
    """Of groups [rows, groups, columns] that are panels: each has a scale."""
    tried = [
        scales.astype(np.float16).astype(np.float32) for scales in _candidates(grouped, divisors)
    ]
    codes, scales = _least_error(grouped, tried, offset)
    return codes, None, scales.astype(np.float16)


def group_multipliers(divisors: Sequence[float], grouped: F32, offset: int) -> Rounded:
    """Of groups [rows, groups, columns]: each has a multiplier of its panel's scale."""
    _, own = _least_error(grouped, _candidates(grouped, divisors), offset)
    per_panel = PANEL_COLS // grouped.shape[2]
    padded = np.pad(np.abs(own), ((0, 0), (0, -own.shape[1] % per_panel)))
    largest = padded.reshape(len(own), -1, per_panel).max(axis=2)
    scales = np.minimum(largest * np.float32(16 / 15), _FP16_MAX).astype(np.float16)
    units = np.repeat(scales.astype(np.float32) * _UNIT, per_panel, axis=1)[:, : own.shape[1]]
    middle = np.clip(np.rint(_divide(own, units)), -MULTIPLIER_MAX, MULTIPLIER_MAX)
    tried = [
        np.clip(middle + step, -MULTIPLIER_MAX, MULTIPLIER_MAX) * units
        for step in np.array([0, -1, 1], np.float32)
    ]
    codes, best = _least_error(grouped, tried, offset)
    return codes, _divide(best, units).astype(np.int8), scales  # exact: units have 11 bits


RULES: dict[str, Callable[[F32, int], Rounded]] = {
    "w8": partial(panel_scales, (-128.0, 127.0)),
    "w4": partial(group_multipliers, (-8.0, -8.5, -9.0, -9.5, -10.0, -11.0, 7.0, -7.5)),
}
"""How the numbers of each quantised format are rounded, and the divisors it tries, in order."""


def _candidates(grouped: F32, divisors: Sequence[float]) -> list[F32]:
    """Scales of groups [rows, groups, columns] to be tried, each [rows, groups]."""
    largest = np.abs(grouped).argmax(axis=2)[:, :, None]
    signed_max = np.take_along_axis(grouped, largest, axis=2)[:, :, 0]
    return [
        np.clip(signed_max / np.float32(divisor), -_FP16_MAX, _FP16_MAX) for divisor in divisors
    ]


def _least_error(grouped: F32, tried: Sequence[F32], offset: int) -> tuple[F32, F32]:
    """For groups [rows, groups, columns] the best of some scales, each [rows, groups], and the
    codes that go with it, shaped like the groups.
    """
    best, least = np.zeros_like(tried[0]), np.full(tried[0].shape, np.inf, np.float32)
    codes = np.zeros_like(grouped)
    for index, scales in enumerate(tried):
        trial, error = _rounded(grouped, scales[:, :, None], offset)
        better = (error < least) | (index == 0)
        least = np.where(better, error, least)
        best = np.where(better, scales, best)
        codes = np.where(better[:, :, None], trial, codes)
    return codes, best


def _rounded(grouped: F32, scales: F32, offset: int) -> tuple[F32, F32]:
    """The codes of groups for scales [rows, groups, 1], and their squared error [rows, groups]."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        inverse = _divide(np.ones_like(scales), scales)
        codes = np.clip(np.rint(grouped * inverse), -offset, offset - 1)
        difference = grouped - codes * scales
        squares = difference * difference
        error = np.zeros(squares.shape[:2], np.float32)
        for column in range(squares.shape[2]):
            error += squares[:, :, column]
    return codes, error


def _divide(a: F32, b: F32) -> F32:
    """a / b, and 0 where b is 0."""
    return np.divide(a, b, out=np.zeros_like(a), where=b != 0)
