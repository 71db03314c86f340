"""How a calibration rounds a matrix, once it knows the second moments of what that multiplies."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Protocol

import numpy as np

from deepmnn import _core
from deepmnn.formats import F32, U8, Codes, named
from deepmnn.graph.ir import Weight
from deepmnn.graph.tensors import tensors
from deepmnn.quant.gptq import Feedback, damping_for, feedback, gptq
from deepmnn.quant.layout import unpack_codes
from deepmnn.quant.rotation import rotate_moments


class Rounder(Protocol):
    """Rounds to one kind of codes. `stored` are a matrix's codes and scales as bytes."""

    def formats(self, weights: Iterable[Weight]) -> dict[str, str]:
        """Checkpoint tensor → the format that it is rounded to; without those that are not."""
        ...

    def feedback(self, moments: F32, rows: int) -> Feedback:
        """Of inputs with these second moments, summed over so many rows."""
        ...

    def round(self, w: F32, errors: Feedback, format: str) -> U8:
        """w [rows, cols], as bytes."""
        ...

    def values(self, stored: U8, format: str, shape: tuple[int, int]) -> F32:
        """The numbers that they stand for."""
        ...

    def codes(self, stored: U8, format: str, shape: tuple[int, int]) -> Codes | None:
        """The same as codes of our engine; None where they are none."""
        ...


class Panels:
    """The rotated panels of our engine: stored as the engine has them."""

    def __init__(self) -> None:
        self._threads = _core.available_cores()

    def formats(self, weights: Iterable[Weight]) -> dict[str, str]:
        """The quantised formats of weights; what is looked up multiplies nothing."""
        return {
            tensor.name: weight.format
            for weight in weights
            if named(weight.format).is_quantized and weight.role != "embedding"
            for tensor in tensors(weight.expr)
        }

    def feedback(self, moments: F32, rows: int) -> Feedback:
        """Of rotated inputs."""
        rotate = partial(_core.rotate, threads=self._threads)
        return feedback(rotate_moments(moments, rotate), damping_for(rows))

    def round(self, w: F32, errors: Feedback, format: str) -> U8:
        """Rotated first."""
        codes = gptq(_core.rotate(w, threads=self._threads), errors, format)
        levels, scales = map(np.ascontiguousarray, (codes.levels, codes.scales))
        return _core.pack(levels, scales, format, self._threads)

    def values(self, stored: U8, format: str, shape: tuple[int, int]) -> F32:
        """Rotated back."""
        return _core.unpack(stored, format, *shape)

    def codes(self, stored: U8, format: str, shape: tuple[int, int]) -> Codes | None:
        """As they are."""
        rows, cols = shape
        whole = unpack_codes(stored, format, cols)
        assert isinstance(whole, Codes)
        return Codes(format, whole.levels[:rows], whole.scales[:rows])


class Nearest(Panels):
    """The same, each number rounded to nearest: for a pass that only wants the moments."""

    def round(self, w: F32, errors: Feedback, format: str) -> U8:
        """Without the feedback."""
        return _core.quantize_pack(w, format)
