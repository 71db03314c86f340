"""What a conversion takes of the memory."""

from __future__ import annotations

import math

from deepmnn.conversion.calibrate import MOMENTS_NBYTES
from deepmnn.conversion.carry_out import is_calibrated
from deepmnn.conversion.plan import Plan

NUMBER_NBYTES = 9
"""Of a weight, while it is converted, its stored bytes apart: parts that are read as floats, and
the matrix that they are put together to.

Measured, with the stored bytes, for one large matrix of a checkpoint in bf16: an embedding takes 6
bytes for each number to w3, w4, w8 and bf16, and 8 to fp32; gate and up, which become one matrix,
7.8 to w4, 8.3 to w8 and 12.0 to fp32.
"""

BESIDE_NBYTES = 64 << 20
"""What the rest of a conversion takes: names, the report, buffers of files."""

FLOAT_COPIES = 2
"""A calibration holds stages of the model in float32: at most all of it, so often."""

MOMENTS_COPIES = 3
"""Second moments, what they are factored to, and rows that wait to be summed up."""


def working_nbytes(plan: Plan) -> int:
    """Bytes that a conversion takes at once, without the process itself."""
    largest = max(
        (NUMBER_NBYTES * math.prod(weight.shape) + weight.nbytes for weight in plan.weights),
        default=0,
    )
    return largest + BESIDE_NBYTES + (_calibration_nbytes(plan) if is_calibrated(plan) else 0)


def _calibration_nbytes(plan: Plan) -> int:
    """Of a calibration (calibrate.py, held_out.py): far more than it takes of a large model, of
    which it has one layer in memory, but never too little.
    """
    widest = max((weight.matrix_shape[1] for weight in plan.weights), default=0)
    moments = MOMENTS_COPIES * (MOMENTS_NBYTES + 4 * widest**2)
    return moments + FLOAT_COPIES * 4 * plan.parameters


def file_nbytes(plan: Plan) -> int:
    """Bytes of files that it reads and writes: the system keeps of them what it has room for."""
    return plan.source.nbytes() + plan.nbytes
