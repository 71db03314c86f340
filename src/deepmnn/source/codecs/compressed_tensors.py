"""Weights as compressed-tensors stores them (llm-compressor, vLLM).

What a module NAME is stored in depends on its format; `rows` are outputs, `cols` inputs:

    pack-quantized        weight_packed int32 [rows, cols · bits / 32], weight_shape [rows, cols],
                          weight_scale, perhaps weight_zero_point int32, packed along the rows,
                          perhaps weight_g_idx [cols]: the group of each column
    int-quantized         weight int8 [rows, cols], weight_scale, perhaps weight_zero_point int8
    float-quantized       weight e4m3 [rows, cols], weight_scale
    mxfp8-quantized       weight e4m3 [rows, cols], weight_scale: exponents [rows, cols / 32]
    nvfp4-pack-quantized  weight_packed uint8 [rows, cols / 2], weight_scale e4m3 [rows, cols / 16],
                          weight_global_scale [1], by which the other scales are divided
    mxfp4-pack-quantized  weight_packed uint8 [rows, cols / 2], weight_scale: exponents
    sparse-24-bitmask,    compressed: what is not 0, of any of the types above or plain, and
    sparse-bitmask        bitmask [rows, cols / 8], shape [rows, cols]

A scale belongs to the tensor, a row, a group of columns or a block. What each module has is read
off its tensors; of config.json only the bits and the sizes of groups and blocks that some have are
needed. So nothing depends on `targets` and `ignore`, whose regular expressions are a stranger's.
Scales of activations and of the KV cache are not used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from deepmnn.errors import CheckpointError, UnsupportedModelError
from deepmnn.graph.weights import F32
from deepmnn.source.codecs.bitmask import dense_codes, dense_shape
from deepmnn.source.codecs.checks import (
    ORIGINAL,
    PACKED,
    RE_DOWNLOAD,
    check_dtype,
    check_part,
    finite,
    group_order,
    matrix,
    stored_shape,
)
from deepmnn.source.codecs.coded import Coded, MatrixCodec
from deepmnn.source.codecs.fp8 import FP8, SCALES, Block, checked_block, spread_scales
from deepmnn.source.codecs.packing import (
    E2M1,
    FP8_LEVELS,
    exponents,
    unpack_bits,
    unpack_nibbles,
    unsigned,
)
from deepmnn.source.codecs.settings import group_columns, integer, refuse, text
from deepmnn.source.entry import FLOATS, to_float32
from deepmnn.source.store import Store

_UNREAD = {
    "marlin-24": "Quantise again with save_compressed=True and another format, or convert from the "
    "original checkpoint.",
    "mxfp6-pack-quantized": ORIGINAL,
}
"""Formats that are not read → what to do."""

_SPARSE = ("dense", "sparse-24-bitmask", "sparse-bitmask")

_PARTS = ("_scale", "_zero_point", "_shape", "_global_scale", "_g_idx")
_ACTIVATIONS = (
    "input_scale",
    "input_zero_point",
    "input_global_scale",
    "output_scale",
    "output_zero_point",
)
_MASKED = ("compressed", "bitmask", "shape", "row_offsets")

_EXPONENTS = ("U8", "F8_E8M0")
_BITS = range(1, 9)


class CompressedTensors(MatrixCodec):
    """Every format of compressed-tensors whose weights can be read.

    Args:
        bits: those that packed weights may have.
        blocks: rows and columns that share a scale, in some modules.
    """

    scheme = "compressed-tensors"

    def __init__(self, store: Store, bits: tuple[int, ...], blocks: tuple[Block, ...]) -> None:
        self._store = store
        self._bits = bits
        self._blocks = blocks
        self._parts: dict[str, tuple[str, ...]] = {}
        for name in store.names():
            stem, _, last = name.rpartition(".")
            if main := self._main(name, last):
                beside = [*main, *(f"weight{part}" for part in _PARTS), *_ACTIVATIONS]
                parts = [f"{stem}.{part}" for part in beside if f"{stem}.{part}" in store]
                self._parts[f"{stem}.weight"] = tuple(parts)

    def _main(self, name: str, last: str) -> tuple[str, ...]:
        """What the codes of a weight are stored in, where `name` is the first of it."""
        if last == "weight_packed":
            return (last,)
        if last == "weight" and self._store.dtype(name) in (*FP8, "I8"):
            return (last,)
        if last == "compressed" and name.removesuffix(last) + "bitmask" in self._store:
            return _MASKED
        return ()

    @classmethod
    def recognise(cls, quantization: Mapping[str, Any] | None, store: Store) -> Self | None:
        """By quant_method."""
        if quantization is None or text(quantization, "quant_method") != cls.scheme:
            return None
        if quantization.get("transform_config"):
            raise refuse("rotated weights (compressed-tensors: transform_config)", "others")
        sparsity = quantization.get("sparsity_config") or {}
        groups = quantization.get("config_groups") or {}
        for field, block in (("sparsity_config", sparsity), ("config_groups", groups)):
            if not isinstance(block, dict):
                raise refuse(f"quantization_config.{field} is {block!r:.80}", "an object")
        if sparsity and text(sparsity, "format") not in (None, *_SPARSE):
            raise refuse(
                f"sparse weights in the format {sparsity['format']!r:.80} (compressed-tensors)",
                " or ".join(_SPARSE),
                _UNREAD["marlin-24"],
            )
        weights = [_weights_of(group) for group in groups.values()]
        found = [quantization, *groups.values()]
        for form in (text(each, "format") for each in found if isinstance(each, dict)):
            if form in _UNREAD:
                raise refuse(
                    f"weights in the format {form} (compressed-tensors)", "others", _UNREAD[form]
                )
        return cls(
            store,
            tuple(integer(each, "num_bits", _BITS) for each in weights if each),
            tuple(block for each in weights for block in _block_of(each)),
        )

    def parts(self) -> dict[str, tuple[str, ...]]:
        """Every quantised weight → what it is stored in, and the scales of its activations."""
        return self._parts

    def shape(self, name: str) -> tuple[int, ...]:
        """[rows, cols], if the codes' parts fit each other. Raises as `read`."""
        stem = name.removesuffix("weight")
        if stem + "weight_packed" in self._store:
            return self._packed_shape(stem)
        if stem + "compressed" in self._store:
            return dense_shape(self._store, stem)
        return matrix(self._store, name, (*FP8, "I8"))

    def read(self, name: str) -> F32:
        """What the codes stand for; or a sparse weight that is not quantised."""
        if self._is_plain(name):
            return to_float32(dense_codes(self._store, name.removesuffix("weight")))
        return super().read(name)

    def matrix(self, name: str) -> Coded | None:
        """What is quantised."""
        return None if self._is_plain(name) else super().matrix(name)

    def _is_plain(self, name: str) -> bool:
        """Whether it is sparse and not quantised."""
        stem = name.removesuffix("weight")
        if stem + "weight_packed" in self._store or stem + "compressed" not in self._store:
            return False
        check_dtype(self._store, stem + "compressed", (*FLOATS, *FP8, "I8"))
        return self._store.dtype(stem + "compressed") in FLOATS

    def coded(self, name: str) -> Coded:
        """Raises TensorNotFoundError for a missing part, CheckpointError for parts that do not fit,
        UnsupportedModelError for what none of the formats above has.
        """
        stem = name.removesuffix("weight")
        rows, cols = self.shape(name)
        if stem + "weight_packed" not in self._store:
            return self._naive(stem, (rows, cols))
        if self._store.dtype(stem + "weight_packed") == "U8":
            return self._float4(stem, (rows, cols))
        return self._integers(stem, (rows, cols))

    # ------------------------------------------------------------------------------ formats

    def _integers(self, stem: str, shape: tuple[int, int]) -> Coded:
        """Integers in words: code u stands for u − 2^(bits − 1), and so does a zero point's."""
        name = stem + "weight_packed"
        bits = self._bits_of(name, shape[1])
        scale = finite(stem + "weight_scale", self._scale(stem, FLOATS))
        if stem + "weight_g_idx" in self._store:
            scales = scale
            order, group_size = self._order(stem, shape, scale)
        else:
            order = None
            scales, group_size = self._spread(stem, scale, shape)
        zeros = np.full((1, 1), 1 << (bits - 1), np.float32)
        if stem + "weight_zero_point" in self._store:
            zeros = self._packed_zeros(stem, shape, bits, scale)
        return Coded(
            shape,
            bits,
            lambda: unpack_bits(self._store.stored(name), bits, shape[1]),
            scales,
            group_size,
            zeros,
            order,
        )

    def _naive(self, stem: str, shape: tuple[int, int]) -> Coded:
        """A byte for each weight: int8 or FP8."""
        sparse = stem + "compressed" in self._store
        dtype = self._store.dtype(stem + ("compressed" if sparse else "weight"))
        scale = finite(stem + "weight_scale", self._scale(stem, (*SCALES, "U8")))
        scales, group_size = self._spread(stem, scale, shape)
        zeros = np.zeros((1, 1), np.float32)
        if (zero_point := stem + "weight_zero_point") in self._store:
            check_dtype(self._store, zero_point, ("I8", *FP8, *FLOATS))
            check_part(self._store, zero_point, (self._store.dtype(zero_point),), scale.shape)
            zeros, _ = self._spread(stem, self._store.read(zero_point), shape)

        def codes() -> NDArray[Any]:
            return dense_codes(self._store, stem) if sparse else self._store.stored(stem + "weight")

        if dtype == "I8":
            return Coded(shape, 8, lambda: unsigned(codes()), scales, group_size, zeros + 128)
        return Coded(
            shape,
            8,
            lambda: codes().view(np.uint8),
            scales,
            group_size,
            zeros,
            levels=FP8_LEVELS[dtype],
        )

    def _float4(self, stem: str, shape: tuple[int, int]) -> Coded:
        """FP4 with scales of e4m3 below one of the tensor, or with exponents."""
        if 6 in self._bits:
            raise refuse("weights in the format mxfp6-pack-quantized", "others")
        scale = finite(stem + "weight_scale", self._scale(stem, ("F8_E4M3", *_EXPONENTS, *FLOATS)))
        if (whole := stem + "weight_global_scale") in self._store:
            check_part(self._store, whole, FLOATS, (), (1,))
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                scale = finite(whole, scale / self._store.read(whole).reshape(()))
        elif self._store.dtype(stem + "weight_scale") not in _EXPONENTS:
            self._store.shape(whole)  # raises: it is missing
        scales, group_size = self._spread(stem, scale, shape)
        return Coded(
            shape,
            4,
            lambda: unpack_nibbles(self._store.stored(stem + "weight_packed")),
            scales,
            group_size,
            levels=E2M1,
        )

    # -------------------------------------------------------------------------------- parts

    def _packed_shape(self, stem: str) -> tuple[int, int]:
        name = stem + "weight_packed"
        if self._store.dtype(name) == "U8":
            rows, pairs = matrix(self._store, name, ("U8",))
            return rows, pairs * 2
        rows, words = matrix(self._store, name, PACKED)
        shape = stored_shape(self._store, stem + "weight_shape")
        if shape[0] != rows or not (words - 1) * 4 < shape[1] <= words * 32:
            raise CheckpointError(
                f"tensor {stem + 'weight_shape'!r:.200} says {list(shape)}",
                f"the shape of {rows} rows of {words} words",
                RE_DOWNLOAD,
            )
        self._bits_of(name, shape[1])
        return shape

    def _bits_of(self, name: str, cols: int) -> int:
        """Those of config.json's groups that the words of a row make `cols` codes of."""
        words = self._store.shape(name)[1]
        fitting = {bits for bits in self._bits if -(-cols * bits // 32) == words}
        if len(fitting) != 1:
            told = " or ".join(map(str, dict.fromkeys(self._bits))) or "no"
            raise UnsupportedModelError(
                f"tensor {name!r:.200} has {words} words for {cols} columns",
                f"codes of {told} bits, as config_groups in config.json say, without gaps",
                "Check config.json. Older versions of compressed-tensors (0.10 is one) leave gaps "
                "between codes of 3, 5, 6 and 7 bits: quantise again with a newer one.",
            )
        return fitting.pop()

    def _scale(self, stem: str, dtypes: tuple[str, ...]) -> F32:
        name = stem + "weight_scale"
        check_dtype(self._store, name, dtypes)
        if self._store.dtype(name) == "U8":
            return exponents(self._store.stored(name))
        return self._store.read(name)

    def _spread(self, stem: str, scale: F32, shape: tuple[int, int]) -> tuple[F32, int]:
        """Raises CheckpointError when scales do not fit a weight of this shape."""
        blocks = [(high, min(wide, shape[1])) for high, wide in self._blocks]
        return spread_scales(stem + "weight_scale", scale, shape, blocks)

    def _order(
        self, stem: str, shape: tuple[int, int], scale: F32
    ) -> tuple[NDArray[np.int64] | None, int]:
        """Of columns in groups, by weight_g_idx; −1 there says that groups are in order."""
        name = stem + "weight_g_idx"
        check_part(self._store, name, ("I32", "I64"), (shape[1],))
        if scale.ndim != 2 or len(scale) != shape[0]:
            raise CheckpointError(
                f"tensor {stem + 'weight_scale'!r:.200} has shape {list(scale.shape)}",
                f"[{shape[0]}, groups]",
                RE_DOWNLOAD,
            )
        g_idx = self._store.stored(name)
        if (g_idx == -1).all():
            return None, self._spread(stem, scale, shape)[1]
        return group_order(name, g_idx, scale.shape[1])

    def _packed_zeros(self, stem: str, shape: tuple[int, int], bits: int, scale: F32) -> F32:
        """[rows, groups], packed along the rows; those that are not packed are int8."""
        name = stem + "weight_zero_point"
        if self._store.dtype(name) == "I8":
            check_part(self._store, name, ("I8",), scale.shape)
            zeros = self._store.read(name) + np.float32(1 << (bits - 1))
            return self._spread(stem, zeros, shape)[0]
        groups = scale.shape[1] if scale.ndim == 2 else 1
        check_part(self._store, name, PACKED, (-(-shape[0] * bits // 32), groups))
        return unpack_bits(self._store.stored(name).T, bits, shape[0]).T.astype(np.float32)


def _weights_of(group: object) -> Mapping[str, Any]:
    """What a group of config_groups says of weights; {} where they are not quantised."""
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(group, dict) or not (weights is None or isinstance(weights, dict)):
        raise refuse(f"quantization_config.config_groups has {group!r:.80}", "objects with weights")
    return weights or {}


def _block_of(weights: Mapping[str, Any]) -> list[Block]:
    """The rows and columns that share a scale; a group is a block of one row."""
    if text(weights, "strategy") == "block":
        block = weights.get("block_structure")
        if isinstance(block, str):  # "128x128", in old checkpoints
            sizes = block.split("x")
            block = [int(n) if n.isdecimal() and len(n) < 10 else n for n in sizes]
        return [checked_block(block, "config_groups, block_structure")]
    columns = group_columns(weights)
    return [] if columns is None else [(1, columns)]
