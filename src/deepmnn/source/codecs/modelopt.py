"""Weights as NVIDIA's ModelOpt exports them in its unified Hugging Face format.

What a module NAME is stored in depends on quant_algo; `rows` are outputs, `cols` inputs:

    FP8                   weight e4m3 [rows, cols], weight_scale: one, or one for each row
    FP8_PB_WO             weight e4m3, weight_scale: one for each block of 128 × 128
    MXFP8                 weight e4m3, weight_scale uint8: exponents [rows, cols / 32]
    W8A16, W8A8_SQ        weight int8 [rows, cols], weight_scale [rows]
    NVFP4                 weight uint8 [rows, cols / 2], weight_scale e4m3 [rows, cols / 16], and
                          weight_scale_2, which multiplies the other scales
    W4A8_MXFP4_FP8        weight uint8 [rows, cols / 2], weight_scale uint8: exponents

The settings stand in hf_quant_config.json, in newer versions in config.json, too. What each module
has is read off its tensors, so that MIXED_PRECISION and exclude_modules need no matching of names.
Scales of activations and of the KV cache are not used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from deepmnn.errors import CheckpointError
from deepmnn.source.codecs.checks import RE_DOWNLOAD, check_dtype, check_part, finite
from deepmnn.source.codecs.checks import matrix as checked_matrix
from deepmnn.source.codecs.coded import Coded, MatrixCodec
from deepmnn.source.codecs.fp8 import DEFAULT_BLOCK, FP8, SCALES, spread_scales
from deepmnn.source.codecs.packing import (
    E2M1,
    FP8_LEVELS,
    exponents,
    unpack_nibbles,
    unsigned,
)
from deepmnn.source.codecs.settings import refuse, text
from deepmnn.source.entry import FLOATS
from deepmnn.source.store import Store

_SCALE, _SCALE_2 = "weight_scale", "weight_scale_2"
_PARTS = (_SCALE, _SCALE_2, "input_scale")

_GROUPS = (16, 32)
"""Columns that share a scale: in NVFP4, and in the formats with exponents."""

_EXPONENTS = ("U8", "F8_E8M0")

_BLOCKS = (DEFAULT_BLOCK, *((1, group) for group in _GROUPS))

_ALGORITHMS = "FP8, MXFP8, W8A16, NVFP4 or MXFP4"


class Modelopt(MatrixCodec):
    """ModelOpt's FP8, int8, NVFP4 and MXFP4, each by itself or mixed."""

    scheme = "modelopt"

    def __init__(self, store: Store) -> None:
        self._store = store
        self._parts: dict[str, tuple[str, ...]] = {}
        for name in store.names():
            stem = name.removesuffix("weight")
            if stem != name and store.dtype(name) in (*FP8, "U8", "I8"):
                beside = (stem + part for part in _PARTS)
                self._parts[name] = (name, *(part for part in beside if part in store))

    @classmethod
    def recognise(cls, quantization: Mapping[str, Any] | None, store: Store) -> Self | None:
        """By quant_method, or by hf_quant_config.json."""
        if quantization is None or text(quantization, "quant_method") != cls.scheme:
            return None
        inner = quantization.get("quantization", quantization)
        if not isinstance(inner, dict):
            raise refuse(f"quantization is {inner!r:.80}", "an object")
        algorithm = text(inner, "quant_algo") or ""
        if "awq" in algorithm or "svd" in algorithm:
            raise refuse(f"weights of ModelOpt's quant_algo {algorithm.upper():.80}", _ALGORITHMS)
        return cls(store)

    def parts(self) -> dict[str, tuple[str, ...]]:
        """Every quantised weight → itself, its scales and those of its activations."""
        return self._parts

    def shape(self, name: str) -> tuple[int, ...]:
        """[rows, cols]. Raises as `read`."""
        rows, cols = checked_matrix(self._store, name, (*FP8, "U8", "I8"))
        return rows, cols * (2 if self._store.dtype(name) == "U8" else 1)

    def coded(self, name: str) -> Coded:
        """Raises TensorNotFoundError for a missing part, CheckpointError for scales that do not fit
        the weight, UnsupportedModelError for another variant.
        """
        store, stem, dtype = self._store, name.removesuffix("weight"), self._store.dtype(name)
        rows, cols = self.shape(name)
        shape = rows, cols
        of_fp4 = ("F8_E4M3", *_EXPONENTS)
        check_dtype(store, stem + _SCALE, of_fp4 if dtype == "U8" else (*SCALES, "U8"))
        if store.dtype(stem + _SCALE) == "U8":
            scale = exponents(store.stored(stem + _SCALE))
        else:
            scale = store.read(stem + _SCALE)
        scale = finite(stem + _SCALE, scale.squeeze() if scale.ndim > 2 else scale)
        if stem + _SCALE_2 in store:
            check_part(store, stem + _SCALE_2, FLOATS, (), (1,))
            with np.errstate(over="ignore", invalid="ignore"):
                scale = finite(stem + _SCALE_2, scale * store.read(stem + _SCALE_2).reshape(()))
        elif store.dtype(stem + _SCALE) == "F8_E4M3":
            store.shape(stem + _SCALE_2)  # raises: it is missing
        scales, group_size = spread_scales(stem + _SCALE, scale, shape, _BLOCKS)
        if dtype == "I8":
            zeros = np.full((1, 1), 128, np.float32)
            return Coded(shape, 8, lambda: unsigned(store.stored(name)), scales, group_size, zeros)
        if dtype != "U8":
            return Coded(
                shape,
                8,
                lambda: store.stored(name).view(np.uint8),
                scales,
                group_size,
                levels=FP8_LEVELS[dtype],
            )
        if group_size not in _GROUPS:
            raise CheckpointError(
                f"{stem + _SCALE!r:.200} has shape {list(scale.shape)}",
                f"a scale for each {' or '.join(map(str, _GROUPS))} columns of {list(shape)}",
                RE_DOWNLOAD,
            )
        return Coded(
            shape, 4, lambda: unpack_nibbles(store.stored(name)), scales, group_size, levels=E2M1
        )
