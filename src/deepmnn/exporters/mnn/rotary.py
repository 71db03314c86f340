"""Rotary positions on MNN: cos and sin of any position, and the rotation in plain ops.

A float32 product position · frequency is wrong by 1e-3 rad at position 20,000. So angles are added
instead: position = step · h + l, and cos(a + b) = cos a cos b − sin a sin b from two small tables
computed in float64, each of about √context rows.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from deepmnn.graph.ir import Node

if TYPE_CHECKING:
    from deepmnn.exporters.mnn.lower import Lowering


def tables(low: Lowering, node: Node) -> tuple[int, int]:
    """cos and sin [tokens, 2 · frequencies] of this step's positions, both halves alike.

    Made once for all the layers that rotate alike.
    """
    inv_freq, scale = node.attrs["inv_freq"], node.float_attr("rope_scale")
    key = (inv_freq, scale)
    if key not in low.rotary:
        low.rotary[key] = _build(low, np.asarray(inv_freq, np.float64), scale)
    return low.rotary[key]


def _build(low: Lowering, inv_freq: np.ndarray, scale: float) -> tuple[int, int]:
    model = low.model
    step = math.isqrt(low.context_length - 1) + 1
    rows = -(-low.context_length // step)
    positions, divisor = model.reshape(low.positions, (-1,)), model.ints(step)
    coarse = model.binary("FLOORDIV", positions, divisor, "DT_INT32")
    start = model.binary("MUL", coarse, divisor, "DT_INT32")
    fine = model.binary("SUB", positions, start, "DT_INT32")
    parts = []
    for index, count, stride, factor in ((coarse, rows, step, scale), (fine, step, 1, 1.0)):
        angles = np.arange(count)[:, None] * stride * inv_freq
        for function in (np.cos, np.sin):
            table = low.constant((function(angles) * factor).astype(np.float32))
            parts.append(model.gather_rows(table, index))
    cos_a, sin_a, cos_b, sin_b = parts

    def product(a: int, b: int) -> int:
        return model.binary("MUL", a, b)

    cos = model.binary("SUB", product(cos_a, cos_b), product(sin_a, sin_b))
    sin = model.binary("ADD", product(sin_a, cos_b), product(cos_a, sin_b))
    return model.concat([cos, cos], 1), model.concat([sin, sin], 1)


def rotate(low: Lowering, x: int, size: int, angles: tuple[int, int]) -> int:
    """Plain x [tokens, heads, size] turned: (a, b) → (a cos − b sin, b cos + a sin)."""
    model = low.model
    cos, sin = (model.reshape(table, (-1, 1, size)) for table in angles)
    first, second = model.split(x, (size // 2, size // 2), 2)
    swapped = model.concat([model.unary("NEG", second), first], 2)
    return model.binary("ADD", model.binary("MUL", x, cos), model.binary("MUL", swapped, sin))
