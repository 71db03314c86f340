"""A checkpoint whose matrices were quantised by other schemes, simply."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from deepmnn.formats import F32, PANEL_COLS, KeptCodes, named, round_up
from deepmnn.source.source import Source
from deepmnn.source.wrapped import WrappedSource


class KeptSource(WrappedSource):
    """Another source, with tensors in kept formats: those whose name matches a pattern, the first
    that does. They read as what their codes stand for.
    """

    def __init__(self, source: Source, formats: Mapping[str, str]) -> None:
        super().__init__(source)
        self._formats = formats
        self.taken: list[str] = []

    def kept_format(self, name: str) -> str | None:
        found = (kept for glob, kept in self._formats.items() if fnmatchcase(name, glob))
        return next(found, None) if len(self.shape(name)) == 2 else None

    def codes(self, name: str) -> KeptCodes | None:
        format = self.kept_format(name)
        self.taken += [name] if format else []
        return kept_codes(self._source.read(name), format) if format else None

    def read(self, name: str) -> F32:
        w, format = self._source.read(name), self.kept_format(name)
        return kept_codes(w, format).values()[:, : w.shape[1]] if format else w


def kept_codes(w: F32, format: str) -> KeptCodes:
    """w [rows, cols] rounded to nearest: scales from the largest number of a group."""
    storage = named(format)
    groups = storage.groups
    assert groups is not None
    levels, (rows, cols) = np.array(storage.levels), w.shape
    columns = storage.stored_cols(cols)
    padded = np.pad(w, ((0, 0), (0, round_up(columns, groups.columns) - cols)))
    split = padded.reshape(rows, -1, groups.columns).astype(np.float64)
    low, high = np.minimum(split.min(axis=2), 0), np.maximum(split.max(axis=2), 0)
    size = (high - low) / levels.max() if groups.shift else np.maximum(-low, high) / levels.max()
    size = np.maximum(size, 1e-6)
    scales, factor = _stored(size, groups.scale, groups.columns)
    factors = [] if factor is None else [factor]
    shifts = None
    if groups.shift == "zero":
        shifts = np.rint(-low / size).astype(np.uint8)
    elif groups.shift:
        shifts, factor = _stored(-low, groups.shift, groups.columns)
        shifts = -shifts if factor is None else shifts
        factors += [] if factor is None else [-factor]
    none = KeptCodes.of(
        format,
        np.zeros((rows, columns), np.uint8),
        scales,
        shifts,
        np.stack(factors, axis=2).reshape(rows, -1) if factors else None,
    )
    step = none.group_scales()[:, :, None]
    if groups.shift == "zero":
        wanted = split / step + none.shifts[:, :, None].astype(float)
    else:
        wanted = (split - (none.group_shifts()[:, :, None] if groups.shift else 0)) / step
    order = np.argsort(levels, kind="stable")
    middles = (levels[order][1:] + levels[order][:-1]) / 2
    codes = order[np.searchsorted(middles, wanted)].reshape(rows, -1)[:, :cols]
    return KeptCodes.of(format, codes, none.scales, none.shifts, none.factors)


def _stored(
    numbers: NDArray[np.float64], kind: str, columns: int
) -> tuple[NDArray[np.generic], NDArray[np.float16] | None]:
    """Positive numbers [rows, groups] as a format stores them, and the factors of panels."""
    if kind == "f16":
        return numbers.astype(np.float16), None
    if kind == "e8m0":
        return (np.ceil(np.log2(numbers)) + 128).astype(np.uint8), None
    per_panel = PANEL_COLS // columns
    padded = np.pad(numbers, ((0, 0), (0, -numbers.shape[1] % per_panel)))
    top = 127 if kind == "i8" else 63
    factors = (padded.reshape(len(numbers), -1, per_panel).max(axis=2) / top).astype(np.float16)
    each = np.repeat(np.maximum(factors.astype(float), 1e-7), per_panel, axis=1)
    whole = np.clip(np.rint(numbers / each[:, : numbers.shape[1]]), 1, top)
    return whole.astype(np.int8 if kind == "i8" else np.uint8), factors
