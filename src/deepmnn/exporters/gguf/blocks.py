"""Codes of kept formats → the blocks of ggml's types: source/gguf/groups.py backwards.

Nothing is rounded. A type whose name is a kept format's has exactly its fields. Integers with a
scale and a zero point (GPTQ, AWQ, compressed-tensors) fit types of GGUF, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepmnn.formats import F16, PART_COLS, U8, KeptCodes, named
from deepmnn.source.gguf.types import TYPES

KEPT_TYPES = {kind.kept_format: kind for kind in TYPES.values() if kind.kept_format is not None}
"""Kept format → the type of its name."""

_FIELDS = ("codes", "scales", "shifts", "factors")

_Array = NDArray[Any]
_Parts = Iterator[U8]


def blocks(codes: KeptCodes) -> U8:
    """The stored bytes of a matrix in a format of KEPT_TYPES, [blocks, bytes of a block].

    Its columns are whole blocks.
    """
    kind = KEPT_TYPES[codes.format]
    count = codes.codes.size // kind.block
    fields = (getattr(codes, name).reshape(count, -1) for name in _FIELDS)
    return np.concatenate(list(_PARTS[codes.format](*fields)), axis=1)


def types_of(codes: KeptCodes) -> tuple[str, ...]:
    """The types whose blocks hold these codes, the smallest first.

    Integers less their zero points fit Q4_0 and Q8_0, exactly, if none is too large. Those of 4
    bits are Q4_1, too: the minimum, zero point times scale, is rounded to float16, which moves
    numbers by less than a hundredth of the step between two codes.
    """
    if codes.format in KEPT_TYPES:
        return (KEPT_TYPES[codes.format].name,)
    half = len(named(codes.format).levels) // 2
    levels = _levels(codes)
    symmetric = bool(levels.min() >= -half and levels.max() < half)
    if named(codes.format).bits > 4:
        return ("Q8_0",) if symmetric else ()
    with np.errstate(over="ignore"):
        minima = _minima(codes.scales, codes.shifts)
    near = codes.shifts.max() < 2 * half and np.isfinite(minima).all()
    return (*(("Q4_0",) if symmetric else ()), *(("Q4_1",) if near else ()))


def as_type(codes: KeptCodes, type: str) -> KeptCodes:
    """The same codes in the format of one of those types."""
    format = named(codes.format)
    if codes.format in KEPT_TYPES or format.groups is None:
        return codes
    columns = codes.codes.shape[1]
    scales, zeros = (
        np.repeat(of_groups, format.groups.columns // PART_COLS, axis=1)[:, : columns // PART_COLS]
        for of_groups in (codes.scales, codes.shifts)
    )
    if type == "Q4_1":
        return KeptCodes.of(type.lower(), codes.codes, scales, _minima(scales, zeros))
    return KeptCodes.of(type.lower(), _levels(codes) + len(format.levels) // 2, scales)


def _levels(codes: KeptCodes) -> NDArray[np.int16]:
    """Integers less their zero points."""
    groups = named(codes.format).groups
    assert groups is not None
    zeros = np.repeat(codes.shifts, groups.columns, axis=1)[:, : codes.codes.shape[1]]
    levels: NDArray[np.int16] = codes.codes.astype(np.int16) - zeros.astype(np.int16)
    return levels


def _minima(scales: _Array, zeros: _Array) -> F16:
    minima: F16 = (-scales.astype(np.float32) * zeros).astype(np.float16)
    return minima


def with_rows(codes: KeptCodes, rows: NDArray[np.intp]) -> KeptCodes:
    """Some rows of a matrix, in this order."""
    arrays: dict[str, Any] = {name: getattr(codes, name)[rows] for name in _FIELDS}
    return replace(codes, **arrays)


def _q4(codes: U8, scales: _Array, shifts: _Array, factors: _Array) -> _Parts:
    yield _bytes(scales)
    yield _bytes(shifts)
    yield _merged(codes, 16, (0, 4))


def _q5(codes: U8, scales: _Array, shifts: _Array, factors: _Array) -> _Parts:
    yield _bytes(scales)
    yield _bytes(shifts)
    yield np.packbits(codes >> np.uint8(4), axis=1, bitorder="little")
    yield _merged(codes & np.uint8(15), 16, (0, 4))


def _q8_0(codes: U8, scales: _Array, shifts: _Array, factors: _Array) -> _Parts:
    yield _bytes(scales)
    yield codes ^ np.uint8(128)


def _q4_k(codes: U8, scales: _Array, shifts: _Array, factors: _Array) -> _Parts:
    yield _scales_and_minima(scales, shifts, factors)
    yield _merged(codes, 32, (0, 4))


def _q5_k(codes: U8, scales: _Array, shifts: _Array, factors: _Array) -> _Parts:
    yield _scales_and_minima(scales, shifts, factors)
    yield _merged(codes >> np.uint8(4), 32, range(8))
    yield _merged(codes & np.uint8(15), 32, (0, 4))


def _q6_k(codes: U8, scales: _Array, shifts: _Array, factors: _Array) -> _Parts:
    yield _merged(codes & np.uint8(15), 64, (0, 4))
    yield _merged(codes >> np.uint8(4), 32, (0, 2, 4, 6))
    yield _bytes(scales)
    yield _bytes(factors)


_PARTS: dict[str, Callable[[U8, _Array, _Array, _Array], _Parts]] = {
    "q4_0": _q4,
    "q4_1": _q4,
    "mxfp4": _q4,
    "q5_0": _q5,
    "q5_1": _q5,
    "q8_0": _q8_0,
    "q4_k": _q4_k,
    "q5_k": _q5_k,
    "q6_k": _q6_k,
}
"""Format → what lies in its blocks, one after another, of fields [blocks, n]."""


def _scales_and_minima(scales: U8, minima: U8, factors: _Array) -> U8:
    """Two factors, and 8 scales and 8 minima of 6 bits: the upper bits of the last four of each lie
    above the first four.
    """
    first, second = (half[:, :4] | (half[:, 4:] & 48) << np.uint8(2) for half in (scales, minima))
    rest = (scales[:, 4:] & 15) | (minima[:, 4:] & 15) << np.uint8(4)
    return np.concatenate(
        [_bytes(factors[:, :1]), _bytes(-factors[:, 1:]), first, second, rest], axis=1
    )


def _merged(codes: U8, width: int, shifts: Sequence[int]) -> U8:
    """Runs of `width` codes, one run at each shift, into `width` bytes."""
    runs = codes.reshape(len(codes), -1, len(shifts), width)
    shifted = runs << np.array(shifts, np.uint8)[:, None]
    merged: U8 = np.bitwise_or.reduce(shifted, axis=2).reshape(len(codes), -1)
    return merged


def _bytes(numbers: _Array) -> U8:
    """float16 numbers, or bytes, of each block."""
    little = numbers.astype(numbers.dtype.newbyteorder("<"), copy=False)
    return np.ascontiguousarray(little).view(np.uint8).reshape(len(numbers), -1)
