"""DeepSeek's block-scaled FP8 weights.

A weight e4m3 [rows, cols] comes with `<name>_scale_inv` [ceil(rows / 128), ceil(cols / 128)], and
its value is weight * scale_inv of its 128 × 128 block (weight_dequant in DeepSeek-V3's
inference/kernel.py); blocks at the lower and right edges may be ragged. The block size stands in
config.json: quantization_config.weight_block_size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self

from deepmnn.errors import CheckpointError, TensorNotFoundError, UnsupportedModelError
from deepmnn.graph.weights import F32
from deepmnn.source.codecs.codec import Codec
from deepmnn.source.safetensors import FP8
from deepmnn.source.store import Store

SCALE_SUFFIX = "_scale_inv"
DEFAULT_BLOCK = (128, 128)


class Fp8(Codec):
    """FP8 weights and their scales. Without a quantization_config, those that have scales."""

    scheme = "fp8"

    def __init__(self, store: Store, block: tuple[int, int], needs_scales: bool) -> None:
        self._store = store
        self._block = block
        self._names = store.names()
        self._needs_scales = needs_scales

    @classmethod
    def recognise(cls, quantization: Mapping[str, Any] | None, store: Store) -> Self | None:
        """By quant_method, or by tensors that are called like scales."""
        if quantization is None:
            codec = cls(store, DEFAULT_BLOCK, needs_scales=False)
            return codec if codec.parts() else None
        if quantization.get("quant_method") != cls.scheme:
            return None
        return cls(store, block_size(quantization), needs_scales=True)

    def parts(self) -> dict[str, tuple[str, ...]]:
        """FP8 weights with their scales; one whose scale is missing is known by its type."""
        known = set(self._names)
        found: dict[str, tuple[str, ...]] = {}
        for name in self._names:
            if name + SCALE_SUFFIX in known:
                found[name] = (name, name + SCALE_SUFFIX)
            elif self._needs_scales and self._store.dtype(name) in FP8:
                found[name] = (name,)
        return found

    def shape(self, name: str) -> tuple[int, ...]:
        """That of the weight."""
        return self._store.shape(name)

    def read(self, name: str) -> F32:
        """The weight times its scales. Raises TensorNotFoundError or CheckpointError."""
        weight = self._store.read(name)
        if self._store.dtype(name) not in FP8:
            return weight
        try:
            scales = self._store.read(name + SCALE_SUFFIX)
        except TensorNotFoundError as error:
            raise TensorNotFoundError(
                f"{error.found}",
                f"the block scales of the FP8 weight {name!r}",
                "The checkpoint is incomplete; download it again.",
            ) from None
        return dequantize(name, weight, scales, self._block)


def block_size(quantization: Mapping[str, Any]) -> tuple[int, int]:
    """Rows and columns that share a scale. Raises UnsupportedModelError."""
    block = quantization.get("weight_block_size", list(DEFAULT_BLOCK))
    if (
        not isinstance(block, list)
        or len(block) != 2
        or not all(type(size) is int and 0 < size < 1 << 31 for size in block)
    ):
        raise UnsupportedModelError(
            f"quantization_config.weight_block_size is {block!r:.80}", "two positive sizes"
        )
    return block[0], block[1]


def dequantize(name: str, weight: F32, scale_inv: F32, block: tuple[int, int]) -> F32:
    """Multiplies every block of weight [rows, cols] by its scale, in place; returns weight.

    Raises CheckpointError when the scales do not fit the weight.
    """
    scales_shape = tuple(math.ceil(n / size) for n, size in zip(weight.shape, block, strict=False))
    if weight.ndim != 2 or scale_inv.shape != scales_shape:
        raise CheckpointError(
            f"{name + SCALE_SUFFIX!r} has shape {list(scale_inv.shape)}",
            f"{list(scales_shape)} for a weight {list(weight.shape)} in blocks of {list(block)}",
            "Check quantization_config.weight_block_size in config.json.",
        )
    rows, cols = block
    for i, scales in enumerate(scale_inv):
        weight[i * rows : (i + 1) * rows] *= scales.repeat(cols)[: weight.shape[1]]
    return weight
