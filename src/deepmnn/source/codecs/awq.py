"""AWQ weights in the layout "gemm", as AutoAWQ stores them.

A Linear layer NAME of `rows` outputs and `cols` inputs is

    NAME.qweight  int32 [cols, rows / 8]     codes, packed along the outputs
    NAME.qzeros   int32 [groups, rows / 8]   zero points, packed the same way
    NAME.scales   [groups, rows]

and weight[row, col] = (code − zero) · scale of the row and of group col // group_size. A word holds
eight outputs, from its lowest bits on those with the numbers 0, 2, 4, 6, 1, 3, 5, 7.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from deepmnn.source.codecs.checks import PACKED, check_part, finite, group_size, groups_of, matrix
from deepmnn.source.codecs.coded import Coded, MatrixCodec
from deepmnn.source.codecs.packing import U8, unpack_bits
from deepmnn.source.codecs.settings import group_columns, integer, refuse, text
from deepmnn.source.entry import FLOATS
from deepmnn.source.store import Store

_BITS = 4
_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in a word each of its eight outputs lies."""

_QWEIGHT = ".qweight"


class Awq(MatrixCodec):
    """AWQ of 4 bits.

    Args:
        group_sizes: numbers of columns that may share a scale; None: all of a row.
    """

    scheme = "awq"

    def __init__(self, store: Store, group_sizes: tuple[int | None, ...]) -> None:
        self._store = store
        self._group_sizes = group_sizes
        stems = [n.removesuffix(_QWEIGHT) for n in store.names() if n.endswith(_QWEIGHT)]
        self._parts = {
            f"{stem}.weight": tuple(
                part
                for part in (stem + _QWEIGHT, stem + ".qzeros", stem + ".scales")
                if part in store
            )
            for stem in stems
        }

    @classmethod
    def recognise(cls, quantization: Mapping[str, Any] | None, store: Store) -> Self | None:
        """By quant_method."""
        if quantization is None or text(quantization, "quant_method") != cls.scheme:
            return None
        for field in ("version", "checkpoint_format", "format"):
            if (layout := text(quantization, field)) not in (None, "gemm"):
                raise refuse(
                    f"AWQ weights in the layout {layout!r:.80} (quantization_config.{field})",
                    "the layout gemm",
                    "Quantise again with version gemm, or convert from the original checkpoint.",
                )
        integer(quantization, "bits", (_BITS,))
        return cls(store, (group_columns(quantization),))

    def parts(self) -> dict[str, tuple[str, ...]]:
        """Every weight → qweight, qzeros and scales."""
        return self._parts

    def shape(self, name: str) -> tuple[int, ...]:
        """[rows, cols], if all parts fit each other. Raises as `read`."""
        store, stem = self._store, name.removesuffix(".weight")
        cols, words = matrix(store, stem + _QWEIGHT, PACKED)
        shapes = ((groups_of(cols, size), words) for size in self._group_sizes)
        groups, _ = check_part(store, stem + ".qzeros", PACKED, *shapes)
        check_part(store, stem + ".scales", FLOATS, (groups, words * 8))
        return words * 8, cols

    def coded(self, name: str) -> Coded:
        """Raises TensorNotFoundError for a missing part, CheckpointError for parts that do not
        fit.
        """
        stem, (rows, cols) = name.removesuffix(".weight"), self.shape(name)
        qweight = stem + _QWEIGHT
        scales = finite(stem + ".scales", self._store.read(stem + ".scales"))
        zeros = _unpacked(self._store.stored(stem + ".qzeros"))
        return Coded(
            (rows, cols),
            _BITS,
            lambda: np.ascontiguousarray(_unpacked(self._store.stored(qweight)).T),
            scales.T,
            group_size(stem + ".scales", cols, len(scales), self._group_sizes),
            zeros=zeros.T.astype(np.float32),
        )


def _unpacked(words: NDArray[Any]) -> U8:
    """[n, words] → codes [n, 8 · words] in the order of the outputs."""
    n, count = words.shape
    codes = unpack_bits(words, _BITS, count * 8).reshape(n, count, 8)
    return codes[:, :, _PLACES].reshape(n, count * 8)
