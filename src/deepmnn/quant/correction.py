"""What to add to a matrix so that it makes up for errors that were made before it.

Layers that are rounded already give a matrix W inputs x that are not quite those of the exact
model, and its products are added to a residual stream that is not quite the exact one. Let d be
what the sum lacks then. The change C of W that makes up for most of it, Σ |d - C x|² over tokens,
kept small by damping, is

    C = (Σ d xᵀ) (Σ x xᵀ + damping · mean · I)⁻¹        mean: of the diagonal of Σ x xᵀ

W + C is then rounded instead of W, by the same second moments.
Source: targets with the error of what comes before, as in GPTAQ (Li et al. 2025, arXiv:2504.02692)
and Qronos (Zhang et al. 2025, arXiv:2505.11695), here with that of the residual stream.
"""

from __future__ import annotations

import numpy as np

from deepmnn.errors import RequestError
from deepmnn.formats import F32
from deepmnn.quant.gptq import damping_for
from deepmnn.quant.moments import Moments

_MORE_DAMPING = 5.0
"""Errors can be fitted more closely than they come again: more damping than rounding wants."""


def correction(seen: Moments) -> F32:
    """C, [rows, cols] of W. Zeros where all inputs were zero.

    Raises RequestError for activations with NaN or infinity.
    """
    moments, missed = seen.total(), seen.missed()
    mean = float(moments.diagonal().mean(dtype=np.float64))
    if mean == 0:
        return np.zeros_like(missed)
    damped = moments / np.float32(mean)
    damped[np.diag_indices(len(damped))] += np.float32(_MORE_DAMPING * damping_for(seen.rows))
    try:
        found: F32 = np.linalg.solve(damped, missed.T / np.float32(mean)).T
    except np.linalg.LinAlgError:
        raise RequestError(
            "second moments that cannot be inverted", "the sum of x xᵀ over inputs x"
        ) from None
    return found
