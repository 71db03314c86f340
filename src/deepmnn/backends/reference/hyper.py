"""The maths of hyper-connections: residual streams, mixed by small matrices of every token."""

from __future__ import annotations

import numpy as np

from deepmnn.backends.base import F32
from deepmnn.backends.reference import numerics as nx


def mix(a: F32, x: F32, rows: int, transposed: bool) -> F32:
    """A x of every token: a [n, rows · q], or [n, q · rows] transposed, x [n, q · d]."""
    inner = a.shape[1] // rows
    matrices = a.reshape(len(a), inner, rows) if transposed else a.reshape(len(a), rows, inner)
    out = np.einsum(
        "nqp,nqd->npd" if transposed else "npq,nqd->npd",
        matrices.astype(np.float64),
        nx.split_heads(x, inner),
        optimize=True,
    )
    return nx.merge_heads(out)


def sinkhorn(x: F32, size: int, iterations: int, eps: float) -> F32:
    """softmax of rows plus eps, columns made to sum to one, then rows and columns in turn."""
    logits = x.reshape(-1, size, size).astype(np.float64)
    exps = np.exp(logits - logits.max(axis=2, keepdims=True))
    matrix = exps / exps.sum(axis=2, keepdims=True) + eps
    matrix /= matrix.sum(axis=1, keepdims=True) + eps
    for _ in range(iterations - 1):
        matrix /= matrix.sum(axis=2, keepdims=True) + eps
        matrix /= matrix.sum(axis=1, keepdims=True) + eps
    return nx.merge_heads(matrix)
