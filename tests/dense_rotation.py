"""Rotations of quantised panels and of cached heads as dense matrices, from docs/layouts.md."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PANEL, PART = 256, 32


def pi_bits(count: int) -> int:
    """The first `count` bits of the fraction of pi, by Machin's formula in integers."""

    def arccot(x: int, unit: int) -> int:
        total = term = unit // x
        sign, n = 1, 1
        while term:
            term //= x * x
            sign, n = -sign, n + 2
            total += sign * (term // n)
        return total

    guard = 64
    unit = 1 << count + guard
    pi = 4 * (4 * arccot(5, unit) - arccot(239, unit))
    return (pi >> guard) & ((1 << count) - 1)


def signs() -> NDArray[np.float64]:
    """Of the columns of a panel: the words of pi's fraction, each from its lowest bit on."""
    bits = f"{pi_bits(PANEL):0{PANEL}b}"
    words = [bits[at : at + 32][::-1] for at in range(0, PANEL, 32)]
    return np.array([-1.0 if bit == "1" else 1.0 for bit in "".join(words)])


def hadamard(n: int) -> NDArray[np.float64]:
    """By Sylvester's construction."""
    matrix = np.ones((1, 1))
    while len(matrix) < n:
        matrix = np.kron([[1, 1], [1, -1]], matrix)
    return matrix


def dense_rotation(cols: int) -> NDArray[np.float64]:
    """R of x' = R x, [columns that are stored] squared: blocks on its diagonal."""
    stored = -(-cols // PART) * PART
    matrix, of_column = np.zeros((stored, stored)), signs()
    for panel in range(0, stored, PANEL):
        at, end = panel, min(panel + PANEL, stored)
        while at < end:
            width = max(w for w in (256, 128, 64, 32) if w <= end - at)
            block = hadamard(width) * of_column[at - panel : at - panel + width] / np.sqrt(width)
            matrix[at : at + width, at : at + width] = block
            at += width
    return matrix


def dense_head_rotation(d: int) -> NDArray[np.float64]:
    """R of x' = R x for a head of d columns in an int8 cache: its blocks one after another."""
    width = 64 if d % 64 == 0 else 32
    block = hadamard(width) * signs()[:width] / np.sqrt(width)
    starts = [*range(0, d - width + 1, width), *([d - width] if d > width and d % width else [])]
    matrix = np.eye(d)
    for start in starts:
        part = slice(start, start + width)
        matrix[part] = block @ matrix[part]
    return matrix


def padded(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Columns of zeros appended: those that are stored."""
    return np.pad(x, ((0, 0), (0, -x.shape[1] % PART)))
