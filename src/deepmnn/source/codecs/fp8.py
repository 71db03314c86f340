"""FP8 weights with scales, as DeepSeek, compressed-tensors, ModelOpt and FBGEMM store them.

A weight [rows, cols] in e4m3 or e5m2 comes with scales by which it is multiplied: one for the whole
tensor, one for each row [rows] or [rows, 1], or one for each block of the matrix
[ceil(rows / block rows), ceil(cols / block cols)], ragged at the lower and right edges
(weight_dequant in DeepSeek-V3's inference/kernel.py). The block size stands in config.json:
quantization_config.weight_block_size, or weights.block_structure of compressed-tensors' groups.
What the scales are called differs, what they mean does not (transformers renames all of them to
weight_scale_inv, which in spite of its name is a factor, too).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from deepmnn.errors import CheckpointError, TensorNotFoundError, UnsupportedModelError
from deepmnn.graph.weights import F32
from deepmnn.source.codecs.codec import Codec
from deepmnn.source.entry import FLOATS
from deepmnn.source.store import Store

FP8 = ("F8_E4M3", "F8_E5M2")
METHODS = ("fp8", "compressed-tensors", "modelopt", "fbgemm_fp8")
"""Values of quant_method whose FP8 weights are these."""

SCALE_SUFFIX = "_scale_inv"
DEFAULT_BLOCK = (128, 128)

_SUFFIXES = (SCALE_SUFFIX, "_scale")
_BESIDE = (".scale", ".qscale_weight")
_UNREAD = ("_zero_point", "_scale_2", "_global_scale", "_g_idx", "_offset")
"""What would change the numbers, if a scheme had it."""

_SCALE_DTYPES = (*FLOATS, "F8_E8M0")


class Fp8(Codec):
    """FP8 weights and their scales, whether config.json speaks of them or not.

    Args:
        block: rows and columns that share a scale where scales are a matrix; None: config.json
            does not say.
    """

    scheme = "fp8"

    def __init__(self, store: Store, block: tuple[int, int] | None) -> None:
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
        return self._store.shape(name)

    def read(self, name: str) -> F32:
        """The weight times its scales.

        Raises TensorNotFoundError, CheckpointError, or UnsupportedModelError when it is not clear
        what they mean.
        """
        scale = self._scale_of(name)
        block = self._block or (DEFAULT_BLOCK if scale.endswith(SCALE_SUFFIX) else None)
        return dequantize(name, self._store.read(name), scale, self._store.read(scale), block)

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
        if len(scales) > 1 or not set(dtypes.values()) <= set(_SCALE_DTYPES):
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
        if store.dtype(name) in FP8:
            others = [name + suffix for suffix in _SUFFIXES + _UNREAD]
            if name.endswith(".weight"):
                others += [name.removesuffix(".weight") + suffix for suffix in _BESIDE]
            found[name] = (name, *(other for other in others if other in store))
    return found


def block_size(quantization: Mapping[str, Any]) -> tuple[int, int] | None:
    """Rows and columns that share a scale; None where there are no blocks, or of unknown size.

    DeepSeek's own configs (quant_method "fp8") that do not say have 128 × 128, as in transformers.
    Raises UnsupportedModelError.
    """
    own = quantization.get("quant_method", Fp8.scheme) == Fp8.scheme
    default = list(DEFAULT_BLOCK) if own else None
    field, block = "weight_block_size", quantization.get("weight_block_size", default)
    if block is None and isinstance(groups := quantization.get("config_groups"), dict):
        found = [_group_block(group) for group in groups.values()]
        blocks = [one for one in found if one is not None]
        if blocks:
            field, block = "config_groups", blocks[0]
        if any(other != block for other in blocks):
            raise UnsupportedModelError(
                f"quantization_config.config_groups has blocks {blocks!r:.80}", "one size"
            )
    if block is None:
        return None
    if (
        not isinstance(block, list)
        or len(block) != 2
        or not all(type(size) is int and 0 < size < 1 << 31 for size in block)
    ):
        raise UnsupportedModelError(
            f"quantization_config.{field} is {block!r:.80}", "two positive sizes"
        )
    return block[0], block[1]


def _group_block(group: object) -> object:
    """The block of one of compressed-tensors' groups, None where it has none."""
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(weights, dict):
        return None
    if weights.get("strategy") == "group":
        return [1, weights.get("group_size")]
    return weights.get("block_structure")


def dequantize(
    name: str, weight: F32, scale_name: str, scale: F32, block: tuple[int, int] | None
) -> F32:
    """Multiplies a weight by its scales, in place; returns weight.

    Raises CheckpointError when the scales do not fit the weight.
    """
    if scale.size == 1:
        weight *= np.float32(scale.item())
        return weight
    rows = weight.shape[0] if weight.ndim == 2 else -1
    if scale.shape in ((rows,), (rows, 1)):
        weight *= scale.reshape(rows, 1)
        return weight
    fits = weight.ndim == 2 and block is not None and scale.shape == _blocks(weight.shape, block)
    if block is None or not fits:
        blocks = f"blocks of {list(block)}" if block else "blocks, of which it says nothing"
        raise CheckpointError(
            f"{scale_name!r:.200} has shape {list(scale.shape)}",
            f"scales for a weight {list(weight.shape)}: one, one for each row, or {blocks}",
            "Check quantization_config.weight_block_size in config.json.",
        )
    high, wide = block
    for i, scales in enumerate(scale):
        columns = scales.repeat(min(wide, weight.shape[1]))[: weight.shape[1]]
        weight[i * high : (i + 1) * high] *= columns
    return weight


def _blocks(shape: tuple[int, ...], block: tuple[int, int]) -> tuple[int, ...]:
    return tuple(math.ceil(n / size) for n, size in zip(shape, block, strict=True))
