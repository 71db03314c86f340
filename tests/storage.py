"""Every storage format of matrices, for parametrised tests, and numpy's bytes of a weight."""

from __future__ import annotations

from deepmnn.formats import F32, FORMATS, U8, named
from deepmnn.quant.layout import pack, pack_floats
from deepmnn.quant.rounding import round_to_nearest

MATRICES = [
    (format.name, group_size)
    for format in FORMATS.values()
    if format.is_matrix
    for group_size in format.group_sizes
]
"""(format, group size), each of them."""

QUANTIZED = [(name, group_size) for name, group_size in MATRICES if named(name).is_quantized]


def numpy_bytes(w: F32, format: str, group_size: int = 0) -> U8:
    """Stored bytes of w [rows, cols] (a vector: any shape), by the definitions in numpy."""
    if named(format).is_quantized:
        return pack(round_to_nearest(w, format, group_size))
    return pack_floats(w, format)
