"""What a conversion takes of the memory."""

from __future__ import annotations

import math

from deepmnn.conversion.plan import Plan

NUMBER_NBYTES = 14
"""Of the largest weight: its numbers as they are stored and as floats, those rotated, and codes
(measured: 9 to 13)."""

BESIDE_NBYTES = 64 << 20
"""What the rest of a conversion takes: names, the report, buffers of files."""


def working_nbytes(plan: Plan) -> int:
    """Bytes that rounding to nearest takes at once, without the process itself. Calibration takes
    more: stages of the model, and what they multiply.
    """
    largest = max((math.prod(weight.shape) for weight in plan.weights), default=0)
    return NUMBER_NBYTES * largest + BESIDE_NBYTES


def file_nbytes(plan: Plan) -> int:
    """Bytes of files that it reads and writes: the system keeps of them what it has room for."""
    return plan.source.nbytes() + plan.nbytes
