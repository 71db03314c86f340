"""Every storage format of matrices, for parametrised tests, and weights by numpy alone."""

from __future__ import annotations

import numpy as np

from deepmnn.formats import F32, FORMATS, U8, Codes, named
from deepmnn.quant.layout import pack, pack_floats
from deepmnn.quant.rounding import round_to_nearest

NAMES = [format.name for format in FORMATS.values() if format.is_matrix]
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
