"""Rotations of panels, in numpy: the definition that the core is tested against, to the bit.

A quantised weight and the activations that it is multiplied by are rotated alike, which leaves
their product as it is and spreads large numbers over a panel, so that they round well. A panel is
256 columns; the last one is padded with zeros to a multiple of 32. It is cut into blocks of 256,
128, 64 or 32 columns, the largest that fits first (224 = 128 + 64 + 32), and a block x of n
columns becomes

    H (s · x · (1 / sqrt(n)))

with the signs s of its columns in the panel, and the n × n Hadamard matrix H in natural order
(entries ±1, H[i, j] negative where i & j has an odd number of bits). All of it is float32: a
product with the sign, one with float32(1 / sqrt(n)), then additions for the strides 1, 2, 4, ...

    a, b → a + b, a - b        (b lies a stride after a)

H is symmetric and H H = n, so that `unrotate` is the same with the signs last.
Source: incoherence by random signs and Hadamard matrices, as in QuIP# (arXiv:2402.04396) and QuaRot
(arXiv:2404.00456), here within a panel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from deepmnn.formats import F32, PANEL_COLS, PART_COLS

_PI = (
    *(0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
    *(0xA4093822, 0x299F31D0, 0x082EFA98, 0xEC4E6C89),
)
"""256 bits of the fraction of pi: column k is negative where bit k % 32 of word k / 32 is set."""

SIGNS: F32 = np.array(
    [-1.0 if _PI[k // 32] >> k % 32 & 1 else 1.0 for k in range(PANEL_COLS)], np.float32
)
"""Of the columns of a panel."""


def rotate(x: F32) -> F32:
    """Rows [n, cols] rotated: [n, cols padded with zeros to a multiple of 32]."""
    out = np.pad(np.asarray(x, np.float32), ((0, 0), (0, -x.shape[1] % PART_COLS)))
    for columns, signs in _blocks(out.shape[1]):
        out[:, columns] = _transformed(out[:, columns] * signs)
    return out


def unrotate(x: F32) -> F32:
    """Rows [n, a multiple of 32 columns], rotated back."""
    out = np.array(x, np.float32)
    for columns, signs in _blocks(out.shape[1]):
        out[:, columns] = _transformed(out[:, columns]) * signs
    return out


def rotate_moments(moments: F32, turn: Callable[[F32], F32] = rotate) -> F32:
    """Second moments E[x xᵀ] [cols, cols] of rows x → those of rotated rows, [stored, stored].

    turn: what rotates rows; the core does it faster.
    """
    return turn(np.ascontiguousarray(turn(moments).T))  # both sides of a symmetric matrix


def _blocks(cols: int) -> Iterator[tuple[slice, F32]]:
    """(columns, their signs) of every block of rows of so many stored columns."""
    for panel in range(0, cols, PANEL_COLS):
        first, left = 0, min(cols - panel, PANEL_COLS)
        while first < left:
            width = 1 << (left - first).bit_length() - 1
            yield slice(panel + first, panel + first + width), SIGNS[first : first + width]
            first += width


def _transformed(block: F32) -> F32:
    """H (x · (1 / sqrt(n))) of every row x of a block."""
    rows, width = block.shape
    block, stride = block * np.float32(1 / np.sqrt(width)), 1
    with np.errstate(over="ignore", invalid="ignore"):
        while stride < width:
            pairs = block.reshape(rows, width // (2 * stride), 2, stride)
            block = np.concatenate(
                [pairs[:, :, :1] + pairs[:, :, 1:], pairs[:, :, :1] - pairs[:, :, 1:]], axis=2
            ).reshape(rows, width)
            stride *= 2
    return block
