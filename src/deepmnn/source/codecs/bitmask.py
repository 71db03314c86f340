"""Sparse weights as compressed-tensors stores them: what is not 0, and a bit for each place.

NAME.bitmask     uint8 [rows, cols / 8], from the lowest bit of each byte on
NAME.compressed  what stands at the ones, row by row
NAME.shape       [rows, cols]
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepmnn.errors import CheckpointError
from deepmnn.source.codecs.checks import RE_DOWNLOAD, check_part, stored_shape
from deepmnn.source.store import Store


def dense_shape(store: Store, stem: str) -> tuple[int, int]:
    """[rows, cols] of the weight. Raises CheckpointError when the mask does not fit it."""
    rows, cols = stored_shape(store, stem + "shape")
    check_part(store, stem + "bitmask", ("U8",), (rows, -(-cols // 8)))
    return rows, cols


def dense_codes(store: Store, stem: str) -> NDArray[Any]:
    """The weight with its zeros, in its stored type.

    Raises CheckpointError when there are not as many values as ones in the mask.
    """
    rows, cols = dense_shape(store, stem)
    bits = np.unpackbits(store.stored(stem + "bitmask"), axis=1, count=cols, bitorder="little")
    mask, count = bits.view(np.bool_), int(np.count_nonzero(bits))
    if (found := math.prod(store.shape(stem + "compressed"))) != count:
        raise CheckpointError(
            f"tensor {stem + 'compressed'!r:.200} holds {found} values",
            f"{count}, the ones in {stem + 'bitmask'!r:.200}",
            RE_DOWNLOAD,
        )
    values = store.stored(stem + "compressed").reshape(-1)
    codes = np.zeros((rows, cols), values.dtype)
    codes[mask] = values
    return codes
