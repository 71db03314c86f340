"""FP8 weights with scales, as DeepSeek and FBGEMM store them, and others without a word of it.

A weight [rows, cols] in e4m3 or e5m2 comes with scales by which it is multiplied: one for the whole
tensor, one for each row [rows] or [rows, 1], or one for each block of the matrix
[ceil(rows / block rows), ceil(cols / block cols)], ragged at the lower and right edges
(weight_dequant in DeepSeek-V3's inference/kernel.py). The block size stands in config.json:
quantization_config.weight_block_size. What the scales are called differs, what they mean does not
(transformers renames all of them to weight_scale_inv, which in spite of its name is a factor, too).
compressed_tensors.py and modelopt.py have such weights among others. DeepSeek-V4 has experts in
FP4 among its FP8: int8 [rows, cols / 2], with exponents [rows, cols / 32].
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, Self

import numpy as np

from deepmnn.errors import CheckpointError, TensorNotFoundError, UnsupportedModelError
from deepmnn.graph.weights import F32
from deepmnn.source.codecs.checks import finite
from deepmnn.source.codecs.coded import Coded, MatrixCodec
from deepmnn.source.codecs.packing import E2M1, FP8_LEVELS, unpack_nibbles
from deepmnn.source.entry import FLOATS
from deepmnn.source.store import Store

FP8 = tuple(FP8_LEVELS)
METHODS = ("fp8", "fbgemm_fp8")
"""Values of quant_method whose FP8 weights are these."""

SCALE_SUFFIX = "_scale_inv"
DEFAULT_BLOCK = (128, 128)
SCALES = (*FLOATS, "F8_E8M0")
"""Types of scales. Those of F8_E8M0 (scale_fmt ue8m0) are powers of two."""

FP4_GROUP = 32
"""Columns that share a scale where weights are FP4 (expert_dtype fp4 of DeepSeek-V4)."""

Block = tuple[int, int]

_SUFFIXES = (SCALE_SUFFIX, "_scale")
_BESIDE = (".scale", ".qscale_weight")
_UNREAD = ("_zero_point", "_scale_2", "_global_scale", "_g_idx", "_offset")
"""What would change the numbers, if a scheme had it."""


class Fp8(MatrixCodec):
    """FP8 weights and their scales, whether config.json speaks of them or not.

    Args:
        block: rows and columns that share a scale where scales are a matrix; None: config.json
            does not say.
    """

    scheme = "fp8"

    def __init__(self, store: Store, block: Block | None) -> None:
        self._store = store
        self._block = block
        self._parts = _parts(store)

    @classmethod
    def recognise(cls, quantization: Mapping[str, Any] | None, store: Store) -> Self | None:
        """By quant_method, or by the types of tensors."""
        codec = cls(store, None if quantization is None else block_size(quantization))
        method = cls.scheme if quantization is None else quantization.get("quant_method")
        if codec.parts():
            return codec if method in METHODS else None
        return codec if quantization is not None and method == cls.scheme else None

    def parts(self) -> dict[str, tuple[str, ...]]:
        """FP8 weights with what belongs to them."""
        return self._parts

    def shape(self, name: str) -> tuple[int, ...]:
        """That of the weight, if its scale is known. Raises as `read`."""
        self._scale_of(name)
        shape = self._store.shape(name)
        return (shape[0], 2 * shape[1]) if self._is_fp4(name) else shape

    def coded(self, name: str) -> Coded:
        """Raises TensorNotFoundError, CheckpointError, or UnsupportedModelError when it is not
        clear what the scales mean.
        """
        scale = self._scale_of(name)
        if self._is_fp4(name):
            return self._coded_fp4(name, scale)
        block = self._block or (DEFAULT_BLOCK if scale.endswith(SCALE_SUFFIX) else None)
        return coded_fp8(self._store, name, scale, [] if block is None else [block])

    def read(self, name: str) -> F32:
        """What the codes stand for, in any number of dimensions."""
        return super().read(name).reshape(self.shape(name))

    def _is_fp4(self, name: str) -> bool:
        return self._store.dtype(name) == "I8"

    def _coded_fp4(self, name: str, scale_name: str) -> Coded:
        """Two codes of a byte, the first in its low half, as DeepSeek's inference/convert.py has
        them.
        """
        rows, cols = self.shape(name)
        scale = finite(scale_name, self._store.read(scale_name))
        if scale.shape != (rows, -(-cols // FP4_GROUP)):
            raise CheckpointError(
                f"{scale_name!r:.200} has shape {list(scale.shape)}",
                f"a scale for each {FP4_GROUP} columns of {[rows, cols]}",
                "The checkpoint is damaged; download it again.",
            )
        return Coded(
            (rows, cols),
            4,
            lambda: unpack_nibbles(self._store.stored(name).view(np.uint8)),
            scale,
            FP4_GROUP,
            levels=E2M1,
        )

    def _scale_of(self, name: str) -> str:
        """The tensor of scales: one, of floats, and nothing else that would change the numbers."""
        scales = self._parts[name][1:]
        if not scales:
            raise TensorNotFoundError(
                f"{self._store.path} has no tensor {name + SCALE_SUFFIX!r:.200}",
                f"the scales of the FP8 weight {name!r:.200}",
                "The checkpoint is incomplete, or quantised in a scheme that is not read; "
                "download it again, or convert from the original checkpoint.",
            )
        dtypes = {scale: self._store.dtype(scale) for scale in scales}
        if len(scales) > 1 or not set(dtypes.values()) <= set(SCALES):
            found = ", ".join(f"{scale!r:.200} ({dtype})" for scale, dtype in dtypes.items())
            raise UnsupportedModelError(
                f"the FP8 weight {name!r:.200} comes with {found}",
                "one tensor of scales, of floats",
                "Convert from the original checkpoint, before it was quantised.",
            )
        return scales[0]


def _parts(store: Store) -> dict[str, tuple[str, ...]]:
    """Every FP8 weight → itself, and the tensors that are called as if they belonged to it."""
    found: dict[str, tuple[str, ...]] = {}
    for name in store.names():
        if (store.dtype(name) in FP8 and not _is_scale(name, store)) or _is_fp4(name, store):
            others = [name + suffix for suffix in _SUFFIXES + _UNREAD]
            if name.endswith(".weight"):
                others += [name.removesuffix(".weight") + suffix for suffix in _BESIDE]
            found[name] = (name, *(other for other in others if other in store))
    return found


def _is_fp4(name: str, store: Store) -> bool:
    """Whether a tensor holds two codes of FP4 in each byte: bytes [rows, cols / 2], with exponents
    beside them that are called as DeepSeek-V4 calls them.
    """
    scale = name.removesuffix("weight") + "scale"
    return (
        name.endswith(".weight")
        and store.dtype(name) == "I8"
        and len(store.shape(name)) == 2
        and scale in store
        and store.dtype(scale) == "F8_E8M0"
    )


def _is_scale(name: str, store: Store) -> bool:
    """Whether an FP8 tensor is called as if it were the scales of another."""
    return any(name.removesuffix(suffix) in store for suffix in _SUFFIXES if name.endswith(suffix))


def block_size(quantization: Mapping[str, Any]) -> Block | None:
    """Rows and columns that share a scale; None where there are no blocks, or of unknown size.

    DeepSeek's own configs (quant_method "fp8") that do not say have 128 × 128, as in transformers.
    Raises UnsupportedModelError.
    """
    own = quantization.get("quant_method", Fp8.scheme) == Fp8.scheme
    default = list(DEFAULT_BLOCK) if own else None
    block = quantization.get("weight_block_size", default)
    return None if block is None else checked_block(block, "weight_block_size")


def checked_block(block: object, field: str) -> Block:
    """A block's rows and columns. Raises UnsupportedModelError."""
    if (
        not isinstance(block, list)
        or len(block) != 2
        or not all(type(size) is int and 0 < size < 1 << 31 for size in block)
    ):
        raise UnsupportedModelError(
            f"quantization_config.{field} is {block!r:.80}", "two positive sizes"
        )
    return block[0], block[1]


def coded_fp8(store: Store, name: str, scale_name: str, blocks: Collection[Block]) -> Coded:
    """An FP8 tensor as codes; what has not two dimensions is one row.

    Raises CheckpointError when the scales do not fit the weight.
    """
    shape = store.shape(name)
    matrix = (shape[0], shape[1]) if len(shape) == 2 else (1, math.prod(shape))
    scale = finite(scale_name, store.read(scale_name))
    scales, group_size = spread_scales(scale_name, scale, shape, blocks)
    return Coded(
        matrix,
        8,
        lambda: store.stored(name).view(np.uint8).reshape(matrix),
        scales,
        group_size,
        levels=FP8_LEVELS[store.dtype(name)],
    )


def spread_scales(
    scale_name: str, scale: F32, shape: tuple[int, ...], blocks: Collection[Block]
) -> tuple[F32, int]:
    """The scales of a weight as `Coded` has them, and the columns that share one.

    Args:
        scale: one, one for each row, or one for each block.
        shape: of the weight.
        blocks: sizes that config.json speaks of. A group of columns is a block of one row.

    Raises CheckpointError when the scales do not fit the weight, or fit it in several ways.
    """
    cols = shape[1] if len(shape) == 2 else max(1, math.prod(shape))
    if scale.size == 1:
        return scale.reshape(1, 1), cols
    rows = shape[0] if len(shape) == 2 else -1
    if scale.shape in ((rows,), (rows, 1)):
        return scale.reshape(rows, 1), cols
    fitting = {block for block in blocks if len(shape) == 2 and scale.shape == _grid(shape, block)}
    if len(fitting) != 1:
        sizes = " or ".join(str(list(block)) for block in dict.fromkeys(blocks))
        raise CheckpointError(
            f"{scale_name!r:.200} has shape {list(scale.shape)}",
            f"scales for a weight {list(shape)}: one, one for each row, or "
            + (f"blocks of {sizes}" if sizes else "blocks, of which it says nothing"),
            "Check quantization_config in config.json.",
        )
    high, wide = fitting.pop()
    return scale if high == 1 else scale.repeat(min(high, rows), axis=0)[:rows], wide


def _grid(shape: tuple[int, ...], block: Block) -> tuple[int, ...]:
    return tuple(math.ceil(n / size) for n, size in zip(shape, block, strict=True))
