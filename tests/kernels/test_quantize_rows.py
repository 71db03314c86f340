from __future__ import annotations

import numpy as np
import pytest

from deepmnn._core import kernels
from deepmnn.quant.rotation import rotate, unrotate
from dense_rotation import dense_rotation, padded

PANEL = 256


def bfloat16(x):
    """Rounded to 8 bits, or to a multiple of the least subnormal number; halves to even."""
    wide = x.astype(np.float64)
    step = np.maximum(np.frexp(wide)[1], -125) - 8
    return np.ldexp(np.rint(np.ldexp(wide, -step)), step).astype(np.float32)


def quantize(x):
    """docs/layouts.md, "Activations", in numpy."""
    n, cols = x.shape
    panels = -(-cols // PANEL)
    rows = np.zeros((n, panels * PANEL), np.float32)
    rotated = rotate(x)
    rows[:, : rotated.shape[1]] = rotated
    panelled = rows.reshape(n, panels, PANEL)
    scales = bfloat16(np.abs(panelled).max(axis=2, initial=0) / np.float32(127))
    usable = (scales >= np.finfo(np.float32).tiny) & np.isfinite(scales)
    inverse = np.where(usable, 1 / np.where(usable, scales, np.float32(1)), np.float32(0))
    with np.errstate(invalid="ignore"):
        codes = np.where(usable[:, :, None], np.rint(panelled * inverse[:, :, None]), 0)
    codes = np.clip(codes, -127, 127).astype(np.int8)
    return codes.reshape(rows.shape), scales, codes.sum(axis=2, dtype=np.int32)


def check(x, isa):
    for got, expected in zip(kernels.quantize_rows(x, isa), quantize(x), strict=True):
        assert got.dtype == expected.dtype
        assert np.array_equal(got, expected)


@pytest.mark.parametrize(
    "cols", [1, 15, 16, 17, 31, 32, 33, 64, 65, 100, 128, 129, 255, 256, 257, 300, 512, 785]
)
def test_bit_identical_to_numpy(isa, rng, unaligned, cols):
    for n in (0, 1, 5):
        scale = 10.0 ** rng.integers(-20, 20, (n, 1))
        check(unaligned((rng.standard_normal((n, cols)) * scale).astype(np.float32)), isa)


@pytest.mark.parametrize("cols", [32, 224, 300, 601])
def test_codes_stand_for_the_rotated_row(isa, rng, cols):
    """To half a scale, by the dense matrix."""
    x = rng.standard_normal((4, cols)).astype(np.float32)
    codes, scales, _ = kernels.quantize_rows(x, isa)
    stored = -(-cols // 32) * 32
    values = codes[:, :stored] * np.repeat(scales, PANEL, axis=1)[:, :stored]
    error = np.abs(values - padded(x) @ dense_rotation(cols).T)
    assert (error <= 0.501 * np.repeat(scales, PANEL, axis=1)[:, :stored]).all()
    assert not codes[:, stored:].any()
    assert (np.abs(codes).reshape(4, -1, PANEL).max(axis=2) == 127).all()


def test_panels_have_scales_of_their_own(isa, rng):
    x = rng.standard_normal((3, 600)).astype(np.float32)
    x[:, 256:512] *= 1e6
    x[1, 512:] = 0
    check(x, isa)


def test_halves_round_to_even(isa):
    """Of rotated numbers, which are exact in blocks of 256 columns."""
    rotated = np.arange(-127, 127.5, 0.5, dtype=np.float32)[None]
    rotated = np.concatenate([np.full((1, 1), 127, np.float32), rotated], axis=1)[:, :256]
    x = unrotate(rotated)
    assert np.array_equal(rotate(x), rotated)
    check(x, isa)
    codes = kernels.quantize_rows(x, isa)[0][0]
    assert list(codes[1:8]) == [-127, -126, -126, -126, -125, -124, -124]


@pytest.mark.parametrize("cols", [1, 31, 64, 100, 256, 700])
def test_a_rounded_row(isa, rng, unaligned, cols):
    """It is what its codes stand for, and rounding it once more, or a row as near to it as bfloat16
    is, finds the same codes and scales.
    """
    x = rng.standard_normal(cols).astype(np.float32) * np.float32(10.0 ** rng.integers(-5, 5))
    codes, scales, _ = quantize(x[None])
    stored = -(-cols // 32) * 32
    values = codes.astype(np.float32) * np.repeat(scales, PANEL, axis=1)
    rounded = kernels.round_row(unaligned(x), isa)
    wanted = unrotate(np.ascontiguousarray(values[:, :stored]))[0, :cols]
    if cols == stored:
        np.testing.assert_array_equal(rounded, wanted)
    np.testing.assert_allclose(rounded, wanted, rtol=0, atol=1e-5 * np.abs(x).max())
    if cols % 32 == 0 or cols % 256 == 0:
        for again in (rounded, bfloat16(rounded)):
            got = kernels.quantize_rows(again[None], isa)
            assert np.array_equal(got[0], codes)
            assert np.array_equal(got[1], scales)


def test_zeros_and_the_ends_of_float32(isa):
    x = np.zeros((4, 64), np.float32)
    x[1, 3] = 3.4e38
    x[2, 60] = -1e-45  # the scale underflows to 0
    x[3] = 1e-43 * np.linspace(-1, 1, 64)  # the scale is subnormal: as good as 0
    check(x, isa)


@pytest.mark.parametrize("fault", [np.nan, np.inf, -np.inf, 3.4e38])
def test_faults_make_scales_that_are_no_numbers(isa, rng, fault):
    """Also of sums that overflow; of their panel alone."""
    x = rng.standard_normal((3, 700)).astype(np.float32)
    x[1, 256:512] = fault
    codes, scales, sums = kernels.quantize_rows(x, isa)
    sound = np.isfinite(scales)
    assert not sound[1, 1]
    assert sound.sum() == scales.size - 1
    assert not codes[1, 256:512].any()
    assert sums[1, 1] == 0
    check(np.delete(x, 1, axis=0), isa)
