"""Every storage format of matrices, for parametrised tests, and weights by numpy alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepmnn.formats import F32, FORMATS, PANEL_COLS, U8, Codes, KeptCodes, named
from deepmnn.quant.layout import pack, pack_floats
from deepmnn.quant.rounding import round_to_nearest

NAMES = [format.name for format in FORMATS.values() if format.is_matrix and not format.is_kept]
"""Those that numbers are rounded to."""

KEPT_NAMES = [format.name for format in FORMATS.values() if format.is_kept]
QUANTIZED_NAMES = [name for name in NAMES if named(name).is_quantized]


def numpy_bytes(w: F32, format: str) -> U8:
    """Stored bytes of w [rows, cols] (a vector: any shape), by the definitions in numpy."""
    if named(format).is_quantized:
        return pack(round_to_nearest(w, format))
    return pack_floats(w, format)


def any_codes(rows: int, cols: int, format: str) -> Codes:
    """Of a matrix [rows, cols]: random, as no rounding chooses them."""
    storage, rng = named(format), np.random.default_rng([rows, cols])
    stored = storage.stored_cols(cols)
    levels = rng.choice(np.array(storage.levels, np.int8), (rows, stored))
    scales = rng.standard_normal((rows, -(-stored // 256))).astype(np.float16)
    return Codes(format, levels, scales)


def any_kept_codes(format: str, rows: int, cols: int, seed: int = 0) -> KeptCodes:
    """Of a matrix [rows, cols]: random codes, and scales of about 0.01."""
    rng, storage = np.random.default_rng([seed, rows, cols]), named(format)
    groups = storage.groups
    assert groups is not None
    stored = storage.stored_cols(cols)
    count, panels = -(-stored // groups.columns), -(-stored // PANEL_COLS)

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
