"""CRC-32 of bytes whose beginning is known last."""

from __future__ import annotations

_POLYNOMIAL = 0xEDB88320
"""That of zlib, its bits reversed: the highest bit of a number is x^0."""

_ONE, _BYTE = 1 << 31, 1 << 23
"""x^0, and x^8: what a byte more multiplies by."""


def joined(first: int, second: int, nbytes: int) -> int:
    """The checksum of two runs of bytes, one after the other, from theirs.

    nbytes: of the second one.
    """
    power, square = _ONE, _BYTE
    while nbytes:
        if nbytes & 1:
            power = _product(power, square)
        square = _product(square, square)
        nbytes >>= 1
    return _product(power, first) ^ second


def _product(a: int, b: int) -> int:
    """Of two polynomials over GF(2), modulo the checksum's."""
    found = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            found ^= b
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return found
