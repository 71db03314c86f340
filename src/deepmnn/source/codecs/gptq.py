"""GPTQ weights, as GPTQModel and AutoGPTQ store them.

A Linear layer NAME of `rows` outputs and `cols` inputs is

    NAME.qweight  int32 [cols · bits / 32, rows]   codes, packed along the inputs
    NAME.qzeros   int32 [groups, rows · bits / 32] zero points, packed along the outputs
    NAME.scales   [groups, rows]
    NAME.g_idx    int32 [cols]                     the group of each input

and weight[row, col] = (code − zero) · scale of the row and of the group of col. Columns lie in the
model's order even with desc_act (act-order): then g_idx is no longer col // group_size.

In the format "gptq" (v1) a zero point is stored as one less, in "gptq_v2" as it is. v1 cannot store
0. GPTQModel subtracts from the whole packed word and adds to it again, which restores even that;
other readers add to each code, and take the same bits for another number.

What bits and groups a layer has is read off its tensors, so that rules of config.json which give
some layers others need no matching of names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from deepmnn.errors import UnsupportedModelError
from deepmnn.graph.weights import F32
from deepmnn.source.codecs.checks import (
    ORIGINAL,
    PACKED,
    RE_DOWNLOAD,
    check_part,
    finite,
    group_order,
    group_size,
    groups_of,
    matrix,
    vector,
)
from deepmnn.source.codecs.coded import Coded, MatrixCodec
from deepmnn.source.codecs.packing import unpack_bits
from deepmnn.source.codecs.settings import group_columns, integer, refuse, text
from deepmnn.source.entry import FLOATS
from deepmnn.source.store import Store

BITS = (2, 3, 4, 8)
FORMATS = ("gptq", "gptq_v2")

_QWEIGHT = ".qweight"
_OTHERS = (".qzeros", ".scales", ".g_idx")


@dataclass(frozen=True)
class _Sizes:
    """Of one layer: [rows, cols] in `groups` groups, in codes of so many bits."""

    rows: int
    cols: int
    groups: int
    bits: int


class Gptq(MatrixCodec):
    """GPTQ in both formats, of 2, 3, 4 and 8 bits.

    Args:
        bits: those that layers may have.
        group_sizes: numbers of columns that may share a scale, None: all of a row; where `ruled` is
            False.
        ruled: `dynamic` rules give some layers other bits and groups; all have a g_idx.
        ordered: columns of a group are neighbours, so g_idx may be missing.
        v2: zero points are stored as they are.
        whole_words: v1's zero points were subtracted from as words.
    """

    scheme = "gptq"

    def __init__(
        self,
        store: Store,
        bits: tuple[int, ...],
        group_sizes: tuple[int | None, ...],
        ruled: bool = False,
        ordered: bool = True,
        v2: bool = False,
        whole_words: bool = False,
    ) -> None:
        self._store = store
        self._bits = bits
        self._group_sizes = group_sizes
        self._ruled = ruled
        self._ordered = ordered
        self._v2 = v2
        self._whole_words = whole_words
        stems = [n.removesuffix(_QWEIGHT) for n in store.names() if n.endswith(_QWEIGHT)]
        self._parts = {
            f"{stem}.weight": (
                stem + _QWEIGHT,
                *(stem + other for other in _OTHERS if stem + other in store),
            )
            for stem in stems
        }

    @classmethod
    def recognise(cls, quantization: Mapping[str, Any] | None, store: Store) -> Self | None:
        """By quant_method."""
        if quantization is None or text(quantization, "quant_method") != cls.scheme:
            return None
        name = text(quantization, "checkpoint_format") or text(quantization, "format")
        if quantization.get("is_marlin_format") is True:
            name = "marlin"
        if name not in (None, *FORMATS):
            raise refuse(f"GPTQ weights in the format {name!r:.80}", " or ".join(FORMATS))
        if text(quantization, "pack_dtype") not in (None, "int32"):
            raise refuse("GPTQ weights packed in other words than int32", "pack_dtype int32")
        rules = quantization.get("dynamic")
        own = integer(quantization, "bits", BITS)
        return cls(
            store,
            (own, *_bits_of(rules)),
            (group_columns(quantization),),
            ruled=bool(rules),
            ordered=quantization.get("desc_act") is not True,
            v2=name == "gptq_v2",
            whole_words=_is_of_gptqmodel(quantization),
        )

    def parts(self) -> dict[str, tuple[str, ...]]:
        """Every weight → qweight, and what lies beside it."""
        return self._parts

    def shape(self, name: str) -> tuple[int, ...]:
        """[rows, cols], if all parts fit each other. Raises as `read`."""
        sizes = self._sizes(name)
        return sizes.rows, sizes.cols

    def coded(self, name: str) -> Coded:
        """Raises TensorNotFoundError for a missing part, CheckpointError for parts that do not fit,
        UnsupportedModelError for zero points that are read in two ways.
        """
        stem, sizes = name.removesuffix(".weight"), self._sizes(name)
        scales = finite(stem + ".scales", self._store.read(stem + ".scales"))
        qweight = stem + _QWEIGHT
        if stem + ".g_idx" in self._store:
            g_idx = self._store.stored(stem + ".g_idx")
            order, columns = group_order(stem + ".g_idx", g_idx, sizes.groups)
        else:
            order = None
            columns = group_size(stem + ".scales", sizes.cols, sizes.groups, self._group_sizes)
        return Coded(
            (sizes.rows, sizes.cols),
            sizes.bits,
            lambda: unpack_bits(self._store.stored(qweight).T, sizes.bits, sizes.cols),
            scales.T,
            columns,
            zeros=self._zeros(stem, sizes).T,
            order=order,
        )

    def _zeros(self, stem: str, sizes: _Sizes) -> F32:
        """[groups, rows]."""
        words: NDArray[Any] = self._store.stored(stem + ".qzeros").view(np.uint32)
        if self._v2:
            return unpack_bits(words, sizes.bits, sizes.rows).astype(np.float32)
        if self._whole_words and sizes.bits != 3:
            ones = np.uint32(0xFFFFFFFF // ((1 << sizes.bits) - 1))  # a one in each code
            return unpack_bits(words + ones, sizes.bits, sizes.rows).astype(np.float32)
        zeros = unpack_bits(words, sizes.bits, sizes.rows)
        if (zeros == (1 << sizes.bits) - 1).any():
            raise UnsupportedModelError(
                f"tensor {stem + '.qzeros'!r:.200} stores zero points of which readers of the "
                "format gptq make different numbers (0 below one)",
                "symmetric weights, or the format gptq_v2",
                "Quantise again with GPTQModel and format gptq_v2, or convert from the original "
                "checkpoint.",
            )
        return zeros.astype(np.float32) + np.float32(1)

    def _sizes(self, name: str) -> _Sizes:
        """Checks every part against the others, and config.json, by shapes alone."""
        store, stem = self._store, name.removesuffix(".weight")
        words, rows = matrix(store, stem + _QWEIGHT, PACKED)
        groups, _ = matrix(store, stem + ".scales", FLOATS)
        bits, cols = self._bits[0], words * 32 // self._bits[0]
        if stem + ".g_idx" in store or self._ruled or not self._ordered:
            cols = vector(store, stem + ".g_idx", ("I32", "I64"))
            bits = words * 32 // cols
        elif len(set(self._bits)) > 1:
            bits = max(1, matrix(store, stem + ".qzeros", PACKED)[1] * 32 // rows)
            cols = words * 32 // bits
        if bits not in self._bits or bits * cols != words * 32:
            expected = " or ".join(map(str, dict.fromkeys(self._bits)))
            raise UnsupportedModelError(
                f"tensor {stem + _QWEIGHT!r:.200} has {words} rows of words for {cols} columns",
                f"codes of {expected} bits, as config.json says",
                RE_DOWNLOAD,
            )
        allowed = {min(groups, cols)}
        if not self._ruled:
            allowed = {groups_of(cols, size) for size in self._group_sizes}
        shapes = ((number, rows) for number in sorted(allowed))
        groups, _ = check_part(store, stem + ".scales", FLOATS, *shapes)
        check_part(store, stem + ".qzeros", PACKED, (groups, -(-rows * bits // 32)))
        return _Sizes(rows, cols, groups, bits)


def _bits_of(rules: object) -> tuple[int, ...]:
    """The bits that GPTQModel's `dynamic` rules, regex → settings, give to some layers."""
    if not rules:
        return ()
    if not isinstance(rules, dict) or not all(isinstance(r, dict) for r in rules.values()):
        raise UnsupportedModelError(
            f"quantization_config.dynamic is {rules!r:.80}", "an object of rules", ORIGINAL
        )
    return tuple(integer(rule, "bits", BITS) for rule in rules.values() if "bits" in rule)


def _is_of_gptqmodel(quantization: Mapping[str, Any]) -> bool:
    """Whether GPTQModel wrote the checkpoint: meta.quantizer is "gptqmodel:VERSION"."""
    meta = quantization.get("meta")
    quantizer = meta.get("quantizer") if isinstance(meta, dict) else None
    first = quantizer[0] if isinstance(quantizer, list) and quantizer else quantizer
    return isinstance(first, str) and first.startswith("gptqmodel")
