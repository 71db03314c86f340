"""Tensors as blocks of ggml's types; those that the `gguf` package cannot write are drawn."""

from __future__ import annotations

import math
import zlib

import gguf
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from deepmnn.backends.base import F32

_FACTORS = {
    GGMLQuantizationType.Q2_K: (80, 1e-3, 1.5),
    GGMLQuantizationType.Q3_K: (108, 6e-4, 0.0),
    GGMLQuantizationType.Q4_K: (0, 8e-5, 7.5),
    GGMLQuantizationType.Q5_K: (0, 4e-5, 15.5),
    GGMLQuantizationType.Q6_K: (208, 2e-5, 0.0),
    GGMLQuantizationType.IQ4_NL: (0, 3e-4, 0.0),
    GGMLQuantizationType.IQ4_XS: (0, 2e-5, 0.0),
    GGMLQuantizationType.IQ3_S: (0, 2e-4, 0.0),
}
"""Where the float16 factor of the scales lies, about what it is, and how much larger that of the
minima behind it, if there is one: numbers of about 0.02, with a mean of about 0."""


def encoded(values: F32, kind: GGMLQuantizationType) -> NDArray[np.uint8]:
    """The stored bytes of a tensor, [..., bytes of a row]: values rounded by the package, or, of
    types that it does not write, any numbers.
    """
    if kind in _FACTORS:
        return drawn(values.shape, kind, zlib.crc32(values.tobytes()))
    data: NDArray[np.uint8] = gguf.quantize(np.ascontiguousarray(values), kind)
    return data


def drawn(shape: tuple[int, ...], kind: GGMLQuantizationType, seed: int = 0) -> NDArray[np.uint8]:
    """Random bytes of a tensor whose numbers are all finite."""
    block, nbytes = GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng([seed, *shape])
    blocks = rng.integers(0, 256, (math.prod(shape) // block, nbytes), np.uint8)
    at, factor, minimum = _FACTORS.get(kind, (0, 0.01, 1.0))
    signs = rng.choice([-1, 1], (len(blocks), 2)) if kind not in _FACTORS else 1
    factors = rng.uniform(0.5, 1.5, (len(blocks), 1)) * [factor, factor * minimum] * signs
    if kind == GGMLQuantizationType.MXFP4:
        blocks[:, 0] = rng.integers(0, 250, len(blocks))
    else:
        count = 2 if kind.name in ("Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K") else 1
        packed = factors[:, :count].astype("<f2").view(np.uint8)
        blocks[:, at : at + 2 * count] = packed
    return blocks.reshape(*shape[:-1], -1)
