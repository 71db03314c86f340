"""What rounding did to the weights that are stored, measured on some rows of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepmnn import _core
from deepmnn.conversion.report.facts import LevelFacts
from deepmnn.formats import BLOCK_ROWS, F32, FORMATS, PANEL_COLS, U8, Codes, Format, named
from deepmnn.graph.ir import Weight
from deepmnn.quant.layout import unpack_codes

_NUMBERS = 1 << 17
"""Of a matrix that are compared, about; one block of rows at least."""

_BARS = 96
_MARGIN = 1.1
"""How far bars reach beyond the outermost levels."""


@dataclass(frozen=True)
class Rounded:
    """Sums of squares over a whole matrix, estimated from some of its rows."""

    errors: float
    squares: float


class Rounding:
    """Compares stored bytes with the numbers that they stand for.

    Attributes:
        found: weight → what was measured.
    """

    def __init__(self) -> None:
        self.found: dict[str, Rounded] = {}
        self._bars: dict[str, NDArray[np.int64]] = {}

    def add(self, weight: Weight, numbers: F32, data: U8) -> None:
        """A matrix, of these numbers, is stored as these bytes."""
        format = named(weight.format)
        rows, cols = weight.matrix_shape
        chosen = _blocks(rows, cols)
        picked = (chosen[:, None] * BLOCK_ROWS + np.arange(BLOCK_ROWS)).reshape(-1)
        picked = picked[picked < rows]
        w = np.ascontiguousarray(numbers.reshape(rows, cols)[picked], np.float32)
        nbytes = format.block_nbytes(cols)
        count = -(-rows // BLOCK_ROWS)
        stored = np.zeros(format.nbytes(len(picked), cols), np.uint8)
        taken = data[: count * nbytes].reshape(count, nbytes)[chosen].reshape(-1)
        stored[: taken.size] = taken
        values = _core.unpack(stored, weight.format, len(picked), cols)
        if format.is_quantized:
            codes = unpack_codes(taken, weight.format, cols)
            assert isinstance(codes, Codes)
            self._count(format, _core.rotate(w), codes)
        whole = rows / max(len(picked), 1)
        self.found[weight.name] = Rounded(_squares(w - values) * whole, _squares(w) * whole)

    def levels(self) -> tuple[LevelFacts, ...]:
        """The numbers of all matrices, by format."""
        return tuple(
            LevelFacts(
                name,
                tuple(sorted(format.levels)),
                *_span(format),
                tuple(self._bars[name].tolist()),
            )
            for name, format in FORMATS.items()
            if name in self._bars
        )

    def _count(self, format: Format, rotated: F32, codes: Codes) -> None:
        low, high = _span(format)
        bars = self._bars.setdefault(format.name, np.zeros(_BARS, np.int64))
        rows, cols = rotated.shape
        scales = np.repeat(codes.scales[:rows].astype(np.float32), PANEL_COLS, axis=1)[:, :cols]
        x = rotated[scales != 0] / scales[scales != 0]
        places = (np.clip((x - low) / (high - low), 0, 1) * _BARS).astype(np.int64)
        bars += np.bincount(np.minimum(places, _BARS - 1), minlength=_BARS)


def relative(found: Sequence[Rounded]) -> float | None:
    """The error of some matrices together; None where there are none, or no numbers but 0."""
    squares = sum(one.squares for one in found)
    return math.sqrt(sum(one.errors for one in found) / squares) if squares else None


def _blocks(rows: int, cols: int) -> NDArray[np.int64]:
    """Blocks of rows, evenly spread over a matrix."""
    count = -(-rows // BLOCK_ROWS)
    wanted = min(count, max(1, _NUMBERS // (BLOCK_ROWS * max(cols, 1))))
    return ((np.arange(wanted) + 0.5) * count / wanted).astype(np.int64)


def _span(format: Format) -> tuple[float, float]:
    return min(format.levels) * _MARGIN, max(format.levels) * _MARGIN


def _squares(x: F32) -> float:
    return float(np.square(x, dtype=np.float64).sum())
