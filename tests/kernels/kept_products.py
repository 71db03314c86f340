"""What a product with a kept format is, in numpy: plain rows, and the codes as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepmnn.formats import F32, KeptCodes, named

PANEL = 256
OUTLIERS = 4
"""Quads of a panel whose codes may have 16 bits."""


def random_codes(format: str, rows: int, cols: int, seed: int = 0) -> KeptCodes:
    """Of a matrix [rows, cols]: random codes, and scales of about 0.01."""
    rng, storage = np.random.default_rng([seed, rows, cols]), named(format)
    groups = storage.groups
    assert groups is not None
    stored = storage.stored_cols(cols)
    count, panels = -(-stored // groups.columns), -(-stored // PANEL)

    def drawn(kind: str, n: int) -> NDArray[Any]:
        if kind == "f16":
            return (rng.standard_normal((rows, n)) / 100).astype(np.float16)
        if kind == "e8m0":
            return rng.integers(110, 124, (rows, n)).astype(np.uint8)
        if kind == "i8":
            return rng.integers(-128, 128, (rows, n)).astype(np.int8)
        top = 1 << storage.bits if kind == "zero" else 64
        return rng.integers(0, top, (rows, n)).astype(np.uint8)

    return KeptCodes.of(
        format,
        rng.integers(0, 1 << storage.bits, (rows, cols)),
        drawn(groups.scale, count),
        drawn(groups.shift, count) if groups.shift else None,
        drawn("f16", panels * groups.factors) if groups.factors else None,
    )


def plain_rows(x: F32) -> F32:
    """What plain rows of x [n, cols] stand for (docs/layouts.md), in float64."""
    n, cols = x.shape
    panels = np.pad(x, ((0, 0), (0, -cols % PANEL))).reshape(n, -1, PANEL)
    sizes = np.sort(np.abs(panels).reshape(n, -1, PANEL // 4, 4).max(axis=3), axis=2)
    rest, top = sizes[..., -1 - OUTLIERS], sizes[..., -1]
    scale = np.maximum(rest / np.float32(127), top / np.float32(16000))
    bits = scale.view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    scale = rounded.astype(np.uint32).view(np.float32)[..., None]
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale >= np.finfo("f4").tiny)
    codes = np.rint(panels * inverse)
    return (codes.astype(np.float64) * scale).reshape(n, -1)[:, :cols]
