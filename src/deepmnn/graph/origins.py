"""Where a weight's rows come from: an expression read backwards."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deepmnn.graph.tensors import tensors
from deepmnn.graph.weights import Expr, RowMover, Tensor

Rows = NDArray[np.int64]

_NOWHERE = -1
"""The origin of a row that was added."""


def row_origins(expr: Expr) -> dict[str, tuple[Rows, Rows]]:
    """Checkpoint tensor → rows of the weight, and which rows of the tensor they are.

    Rows of one tensor may be spread over several weights: a head's keys and values are.
    """
    shapes = {tensor.name: tensor.shape for tensor in tensors(expr)}
    ends = np.cumsum([shape[0] for shape in shapes.values()])
    begins = dict(zip(shapes, [0, *ends[:-1]], strict=True))
    numbers = _numbered(expr, begins)[:, 0]
    found = {}
    for (name, begin), end in zip(begins.items(), ends, strict=True):
        rows = np.flatnonzero((numbers >= begin) & (numbers < end))
        found[name] = rows, numbers[rows] - begin
    return found


def _numbered(expr: Expr, begins: dict[str, int]) -> Rows:
    """The rows' numbers [rows, 1], moved as the expression moves rows."""
    if isinstance(expr, Tensor):
        return np.arange(expr.shape[0], dtype=np.int64)[:, None] + begins[expr.name]
    out = np.full((expr.shape[0], 1), _NOWHERE, np.int64)
    if isinstance(expr, RowMover):
        expr.place((_numbered(child, begins) for child in expr.children()), out, _NOWHERE)
    return out
