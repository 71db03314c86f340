"""What codecs ask of raw tensors before they read them, and of what they read."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepmnn.errors import CheckpointError, UnsupportedModelError
from deepmnn.graph.weights import F32
from deepmnn.source.store import Store

RE_DOWNLOAD = (
    "The checkpoint is damaged, or config.json is that of another; download it again, or convert "
    "from the original checkpoint."
)
ORIGINAL = "Convert from the original checkpoint, before it was quantised."

_MOST = 1 << 31

PACKED = ("I32", "U32")
"""Types of the words that codes are packed in."""


def check_dtype(store: Store, name: str, dtypes: Collection[str]) -> None:
    """Raises UnsupportedModelError for a tensor of another type, TensorNotFoundError for none."""
    if (dtype := store.dtype(name)) not in dtypes:
        raise UnsupportedModelError(
            f"tensor {name!r:.200} is stored as {dtype}", " or ".join(dtypes), ORIGINAL
        )


def check_part(
    store: Store, name: str, dtypes: Collection[str], *shapes: tuple[int, ...]
) -> tuple[int, ...]:
    """The shape of a tensor, one of `shapes`.

    Raises CheckpointError for another one; and as `check_dtype`.
    """
    check_dtype(store, name, dtypes)
    shape = store.shape(name)
    if shape not in shapes:
        raise CheckpointError(
            f"tensor {name!r:.200} has shape {list(shape)}",
            " or ".join(str(list(each)) for each in dict.fromkeys(shapes)),
            RE_DOWNLOAD,
        )
    return shape


def matrix(store: Store, name: str, dtypes: Collection[str]) -> tuple[int, int]:
    """The shape of a matrix that is not empty. Raises CheckpointError; and as `check_dtype`."""
    check_dtype(store, name, dtypes)
    shape = store.shape(name)
    if len(shape) != 2 or 0 in shape:
        raise CheckpointError(
            f"tensor {name!r:.200} has shape {list(shape)}", "a matrix", RE_DOWNLOAD
        )
    return shape[0], shape[1]


def groups_of(cols: int, size: int | None) -> int:
    """Groups of a row; None: the row is one."""
    return -(-cols // (size or cols))


def group_size(name: str, cols: int, groups: int, sizes: Collection[int | None]) -> int:
    """The columns that share a scale: the one size of those named that makes so many groups.

    Raises UnsupportedModelError when two do.
    """
    fitting = {min(size or cols, cols) for size in sizes if groups_of(cols, size) == groups}
    if len(fitting) != 1:
        raise UnsupportedModelError(
            f"tensor {name!r:.200} has {groups} groups in {cols} columns, of "
            + (" or ".join(map(str, sorted(fitting))) or "no known number")
            + " columns each",
            "one group size that fits",
            ORIGINAL,
        )
    return fitting.pop()


def vector(store: Store, name: str, dtypes: Collection[str]) -> int:
    """The length of a tensor of one dimension, not 0. Raises as `matrix`."""
    check_dtype(store, name, dtypes)
    shape = store.shape(name)
    if len(shape) != 1 or 0 in shape:
        raise CheckpointError(
            f"tensor {name!r:.200} has shape {list(shape)}", "one dimension", RE_DOWNLOAD
        )
    return shape[0]


def stored_shape(store: Store, name: str) -> tuple[int, int]:
    """[rows, cols], as a tensor of two integers says. Raises CheckpointError; as `check_dtype`."""
    check_part(store, name, ("I64", "I32"), (2,), (2, 1))
    rows, cols = (int(n) for n in store.stored(name).reshape(-1))
    if not (0 < rows < _MOST and 0 < cols < _MOST):
        raise CheckpointError(f"tensor {name!r:.200} says {[rows, cols]}", "a shape", RE_DOWNLOAD)
    return rows, cols


def finite(name: str, scales: F32) -> F32:
    """The scales. Raises CheckpointError when some are no finite numbers."""
    if not np.isfinite(scales).all():
        raise CheckpointError(
            f"tensor {name!r:.200} holds scales that are NaN or infinite",
            "finite numbers",
            RE_DOWNLOAD,
        )
    return scales


def group_order(
    name: str, g_idx: NDArray[Any], groups: int
) -> tuple[NDArray[np.int64] | None, int]:
    """The group of each column, None where groups are made of neighbours; and the columns of one.

    Raises CheckpointError when there is no such group.
    """
    low, high = int(g_idx.min()), int(g_idx.max())
    if low < 0 or high >= groups:
        raise CheckpointError(
            f"tensor {name!r:.200} holds groups {low} to {high}", f"0 to {groups - 1}", RE_DOWNLOAD
        )
    size = max(1, int((g_idx == 0).sum()))
    in_order = np.arange(len(g_idx)) // size
    return (None if (g_idx == in_order).all() else g_idx.astype(np.int64)), size
