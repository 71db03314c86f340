"""The embedding table, which MNN's runtime looks up itself, from a file or from tied weights."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from deepmnn.exporters.mnn.weights import (
    Storing,
    WeightFile,
    fits_half,
    piece_values,
    pieces,
)
from deepmnn.formats import U8
from deepmnn.graph.ir import Weight


def file_name(weight: Weight, storing: Storing) -> str:
    """What the table's file is called."""
    return name_of(storing.bits_of(weight) or 16)


def name_of(bits: int) -> str:
    """What a file of numbers of so many bits is called by custom."""
    return "embeddings_bf16.bin" if bits == 16 else f"embeddings_int{bits}.bin"


def write_table(weight: Weight, packed: U8, file: WeightFile) -> dict[str, Any]:
    """Writes the table to a file of its own; → the "tie_embeddings" of llm_config.json, or {}.

    Quantised tables are rounded as other matrices are; floats are stored as bf16 when that
    holds them exactly, as DeepSeek's own, or else as fp16 when none is too large for it, which is
    nearer than bf16.
    """
    rows = np.arange(weight.shape[0])
    if file.storing.bits_of(weight):
        codes, scales = file.codes(weight, packed, rows)
        return tie(weight, file.storing, 0, codes, scales)
    half = not _is_bf16(weight, packed) and fits_half(weight, packed, rows)
    dtype = np.float16 if half else ml_dtypes.bfloat16
    for piece in pieces(rows):
        file.write(piece_values(weight, packed, piece).astype(dtype).view(np.uint16))
    return {"weight_offset": 0, "quant_bit": 16} if half else {}


def tie(weight: Weight, storing: Storing, start: int, codes: int, scales: int) -> dict[str, Any]:
    """The "tie_embeddings" of codes that begin at `start`, followed by their scales."""
    return {
        "weight_offset": start,
        "alpha_offset": start + codes,
        "alpha_size": scales,
        "quant_bit": storing.bits_of(weight),
        "quant_block": storing.block_size(weight),
        "alpha_dtype": "fp16",
    }


def _is_bf16(weight: Weight, packed: U8) -> bool:
    for piece in pieces(np.arange(weight.shape[0])):
        if (piece_values(weight, packed, piece).view(np.uint32) & 0xFFFF).any():
            return False
    return True
