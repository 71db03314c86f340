"""Stored blocks → integers and what they are multiplied by, for every type that ggml computes so.

A block is a run of one row's columns that share a scale; a super-block has one for each group in
it, which are small integers times a float16. The layouts are ggml's (ggml-common.h and
dequantize_row_* of ggml-quants.c). A type that is a kept format of ours (formats.py) is split into
what its bytes say, as a matrix whose rows are the blocks; of any other come its groups' numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deepmnn.formats import F16, I8, U8, KeptCodes, named
from deepmnn.graph.weights import F32


@dataclass(frozen=True)
class Groups:
    """Number = level · scale + minimum, in float32.

    Attributes:
        levels: [blocks, numbers of a block].
        scales: [blocks, groups of a block].
        minima: the same; None: there are none.
    """

    levels: I8
    scales: F32
    minima: F32 | None = None

    def values(self) -> F32:
        """The numbers, [blocks, numbers of a block], rounded as ggml rounds them."""
        blocks, groups = self.scales.shape
        values: F32 = self.levels.astype(np.float32).reshape(blocks, groups, -1)
        with np.errstate(invalid="ignore", over="ignore"):  # damaged scales may be NaN or infinite
            values *= self.scales[:, :, None]
            if self.minima is not None:
                values += self.minima[:, :, None]
        return values.reshape(self.levels.shape)


NORMAL_LEVELS = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8
)
"""What the codes of IQ4_NL and IQ4_XS stand for."""

E2M1_LEVELS = np.array(named("mxfp4").levels, np.int8)
"""Twice what the codes of NVFP4 stand for, and of MXFP4."""

_POWERS_OF_3 = np.array([1, 3, 9, 27, 81], np.uint8)


def q4_0(blocks: U8) -> KeptCodes:
    """A float16 scale, 32 codes of 4 bits from -8."""
    return KeptCodes.of("q4_0", _nibbles(blocks[:, 2:], 16), _stored_f16(blocks[:, :2]))


def q4_1(blocks: U8) -> KeptCodes:
    """A float16 scale and minimum, 32 codes of 4 bits."""
    both = _stored_f16(blocks[:, :4])
    return KeptCodes.of("q4_1", _nibbles(blocks[:, 4:], 16), both[:, :1], both[:, 1:])


def q5_0(blocks: U8) -> KeptCodes:
    """A float16 scale, 32 codes of 5 bits from -16."""
    return KeptCodes.of("q5_0", _five(blocks[:, 2:]), _stored_f16(blocks[:, :2]))


def q5_1(blocks: U8) -> KeptCodes:
    """A float16 scale and minimum, 32 codes of 5 bits."""
    both = _stored_f16(blocks[:, :4])
    return KeptCodes.of("q5_1", _five(blocks[:, 4:]), both[:, :1], both[:, 1:])


def q8_0(blocks: U8) -> KeptCodes:
    """A float16 scale, 32 codes of 8 bits: ggml's are signed, ours begin at -128."""
    return KeptCodes.of("q8_0", blocks[:, 2:] ^ np.uint8(128), _stored_f16(blocks[:, :2]))


def q8_1(blocks: U8) -> Groups:
    """A float16 scale, one of the sum, 32 codes of 8 bits."""
    return Groups(_signed(blocks[:, 4:]), _f16(blocks[:, :2]))


def q8_k(blocks: U8) -> Groups:
    """A float32 scale, 256 codes of 8 bits, sums of 16."""
    scales = np.ascontiguousarray(blocks[:, :4]).view("<f4").astype(np.float32)
    return Groups(_signed(blocks[:, 4:260]), scales)


def q2_k(blocks: U8) -> Groups:
    """16 groups of 16: 4-bit scales and minima, codes of 2 bits, float16 scales of both."""
    small, scale, minimum = blocks[:, :16], _f16(blocks[:, 80:82]), _f16(blocks[:, 82:84])
    levels = _signed(_planes(blocks[:, 16:80], 32, (0, 2, 4, 6), 3))
    return Groups(levels, _times(scale, small & 15), -_times(minimum, small >> 4))


def q3_k(blocks: U8) -> Groups:
    """16 groups of 16: 6-bit scales from -32, codes of 2 bits and, where no bit is set, less 4."""
    low = _planes(blocks[:, 32:96], 32, (0, 2, 4, 6), 3)
    high = _planes(blocks[:, :32], 32, tuple(range(8)), 1)
    levels = _signed(low) - _signed((high ^ np.uint8(1)) << np.uint8(2))
    packed = blocks[:, 96:108]
    scales = _planes(packed[:, :8], 8, (0, 4), 15)
    scales |= _planes(packed[:, 8:], 4, (0, 2, 4, 6), 3) << np.uint8(4)
    return Groups(levels, _times(_f16(blocks[:, 108:]), _signed(scales) - np.int8(32)))


def q4_k(blocks: U8) -> KeptCodes:
    """8 groups of 32: 6-bit scales and minima, codes of 4 bits."""
    codes = _planes(blocks[:, 16:], 32, (0, 4), 15)
    return KeptCodes.of("q4_k", codes, *_scales_and_minima(blocks))


def q5_k(blocks: U8) -> KeptCodes:
    """8 groups of 32: 6-bit scales and minima, codes of 4 bits and one more."""
    codes = _planes(blocks[:, 48:], 32, (0, 4), 15)
    codes |= _planes(blocks[:, 16:48], 32, tuple(range(8)), 1) << np.uint8(4)
    return KeptCodes.of("q5_k", codes, *_scales_and_minima(blocks))


def q6_k(blocks: U8) -> KeptCodes:
    """16 groups of 16: 8-bit scales, codes of 6 bits from -32."""
    codes = _planes(blocks[:, :128], 64, (0, 4), 15)
    codes |= _planes(blocks[:, 128:192], 32, (0, 2, 4, 6), 3) << np.uint8(4)
    scales, factors = _signed(blocks[:, 192:208]), _stored_f16(blocks[:, 208:])
    return KeptCodes.of("q6_k", codes, scales, None, factors)


def iq4_nl(blocks: U8) -> Groups:
    """A float16 scale, 32 codes of NORMAL_LEVELS."""
    return Groups(NORMAL_LEVELS[_nibbles(blocks[:, 2:], 16)], _f16(blocks[:, :2]))


def iq4_xs(blocks: U8) -> Groups:
    """8 groups of 32: 6-bit scales from -32, codes of NORMAL_LEVELS."""
    high = np.ascontiguousarray(blocks[:, 2:4]).view("<u2")
    high = high >> np.arange(0, 16, 2, dtype=np.uint16) & np.uint16(3)
    low = _planes(blocks[:, 4:8], 1, (0, 4), 15)
    scales = _signed(low | high.astype(np.uint8) << np.uint8(4)) - np.int8(32)
    levels = NORMAL_LEVELS[_nibbles(blocks[:, 8:], 16)]
    return Groups(levels, _times(_f16(blocks[:, :2]), scales))


def tq1_0(blocks: U8) -> Groups:
    """-1, 0 and 1: five in a byte, as digits of base 3; a float16 scale at the end."""
    parts = (
        _digits(blocks[:, :32], _POWERS_OF_3),
        _digits(blocks[:, 32:48], _POWERS_OF_3),
        _digits(blocks[:, 48:52], _POWERS_OF_3[:4]),
    )
    digits = (np.concatenate(parts, axis=1).astype(np.uint16) * np.uint16(3)) >> np.uint16(8)
    return Groups(_signed(digits.astype(np.uint8)) - np.int8(1), _f16(blocks[:, 52:]))


def tq2_0(blocks: U8) -> Groups:
    """-1, 0 and 1 in 2 bits each; a float16 scale at the end."""
    levels = _signed(_planes(blocks[:, :64], 32, (0, 2, 4, 6), 3)) - np.int8(1)
    return Groups(levels, _f16(blocks[:, 64:]))


def q1_0(blocks: U8) -> Groups:
    """A float16 scale, 128 signs."""
    bits = np.unpackbits(blocks[:, 2:], axis=1, bitorder="little")
    return Groups(_signed(bits << np.uint8(1)) - np.int8(1), _f16(blocks[:, :2]))


def q2_0(blocks: U8) -> Groups:
    """A float16 scale, 64 codes of 2 bits from -1."""
    codes = _planes(blocks[:, 2:], 1, (0, 2, 4, 6), 3)
    return Groups(_signed(codes) - np.int8(1), _f16(blocks[:, :2]))


def mxfp4(blocks: U8) -> KeptCodes:
    """A power of two (E8M0), 32 codes of FP4."""
    return KeptCodes.of("mxfp4", _nibbles(blocks[:, 1:], 16), blocks[:, :1])


def nvfp4(blocks: U8) -> Groups:
    """4 groups of 16: scales of 8 bits (E4M3 without a sign), codes of E2M1_LEVELS."""
    return Groups(E2M1_LEVELS[_nibbles(blocks[:, 4:], 8)], _HALF_E4M3[blocks[:, :4]])


def _half_e4m3() -> F32:
    """Half of what a scale of NVFP4 stands for, since the levels are doubled; ggml reads NaN as 0,
    and gives the sign's bit no meaning.
    """
    bits = np.arange(256)
    exponent, mantissa = bits >> 3 & 15, (bits & 7).astype(np.float64)
    normal = (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    values = np.where(exponent == 0, mantissa * 2.0**-9, normal) / 2
    values[0x7F] = 0
    return values.astype(np.float32)


_HALF_E4M3 = _half_e4m3()


def _scales_and_minima(blocks: U8) -> tuple[U8, U8, F16]:
    """Of Q4_K and Q5_K: 8 of each, 6 bits, in 12 bytes; and their factors, which lie before them.

    Minima are taken off, and those of kept formats added: their factor is negative.
    """
    first, second, rest = (blocks[:, at : at + 4] for at in (4, 8, 12))
    scales = np.concatenate([first & 63, (rest & 15) | (first >> 2 & 48)], axis=1)
    minima = np.concatenate([second & 63, (rest >> 4) | (second >> 2 & 48)], axis=1)
    factors = _stored_f16(blocks[:, :4])
    return scales, minima, np.concatenate([factors[:, :1], -factors[:, 1:]], axis=1)


def _five(packed: U8) -> U8:
    """32 codes of 5 bits: 4 bytes of their highest bits, then the low nibbles."""
    high = np.unpackbits(packed[:, :4], axis=1, bitorder="little")
    return _nibbles(packed[:, 4:], 16) | high << np.uint8(4)


def _nibbles(packed: U8, width: int) -> U8:
    """The low nibbles of every `width` bytes, then their high ones."""
    return _planes(packed, width, (0, 4), 15)


def _planes(packed: U8, width: int, shifts: tuple[int, ...], mask: int) -> U8:
    """Of every `width` bytes: the bits at the first shift of each, then those at the next."""
    runs = packed.reshape(len(packed), -1, 1, width)
    bits: U8 = runs >> np.array(shifts, np.uint8)[:, None] & np.uint8(mask)
    return bits.reshape(len(packed), -1)


def _digits(packed: U8, powers: U8) -> U8:
    """The bytes times each power, mod 256: the digit that is wanted is then the highest."""
    return (packed[:, None, :] * powers[:, None]).reshape(len(packed), -1)


def _signed(codes: U8) -> I8:
    return np.ascontiguousarray(codes).view(np.int8)


def _stored_f16(packed: U8) -> F16:
    """The float16 numbers in a run of bytes of each block."""
    return np.ascontiguousarray(packed).view("<f2").astype(np.float16, copy=False)


def _f16(packed: U8) -> F32:
    """The same in float32."""
    return _stored_f16(packed).astype(np.float32)


def _times(scale: F32, factors: U8 | I8) -> F32:
    with np.errstate(invalid="ignore"):
        product: F32 = scale * factors.astype(np.float32)
    return product
