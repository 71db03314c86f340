"""DeepSeek's block-scaled FP8 weights.

A weight e4m3 [rows, cols] comes with `<name>_scale_inv` [ceil(rows / 128), ceil(cols / 128)], and
its value is weight * scale_inv of its 128 × 128 block (weight_dequant in DeepSeek-V3's
inference/kernel.py); blocks at the lower and right edges may be ragged. The block size stands in
config.json: quantization_config.weight_block_size.
"""

from __future__ import annotations

import math
from typing import Any

from deepmnn.errors import CheckpointError, UnsupportedModelError
from deepmnn.graph.weights import F32

SCALE_SUFFIX = "_scale_inv"
DEFAULT_BLOCK = (128, 128)


def block_size(config: dict[str, Any]) -> tuple[int, int]:
    """Rows and columns that share a scale, from a config.json.

    Raises UnsupportedModelError when the weights are quantised by another method than fp8, or
    without blocks.
    """
    quantization = config.get("quantization_config")
    if quantization is None:
        return DEFAULT_BLOCK
    if not isinstance(quantization, dict):
        raise UnsupportedModelError(
            f"quantization_config is {quantization!r:.80}", "an object", "Check config.json."
        )
    method = quantization.get("quant_method")
    if method != "fp8":
        raise UnsupportedModelError(
            f"these weights are already quantised (quant_method {method!r:.80})",
            "fp8 or unquantised weights",
            "Convert from the original checkpoint.",
        )
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
