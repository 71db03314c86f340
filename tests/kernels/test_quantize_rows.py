from __future__ import annotations

import numpy as np
import pytest

from deepmnn._core import kernels

PANEL, PART = 256, 32


def quantize(x):
    """docs/layouts.md, "Activations", in numpy."""
    n, cols = x.shape
    panels = -(-cols // PANEL)
    padded = np.zeros((n, panels * PANEL), np.float32)
    padded[:, :cols] = x
    panelled = padded.reshape(n, panels, PANEL)
    scales = np.abs(panelled).max(axis=2, initial=0) / np.float32(127)
    usable = scales >= np.finfo(np.float32).tiny
    inverse = np.where(usable, 1 / np.where(usable, scales, np.float32(1)), np.float32(0))
    codes = np.rint(panelled * inverse[:, :, None])
    codes = np.clip(codes, -127, 127).astype(np.int8)
    sums = codes.sum(axis=2, dtype=np.int32)
    part_sums = codes.reshape(n, panels * PANEL // PART, PART).sum(axis=2, dtype=np.int32)
    return codes.reshape(padded.shape), scales, sums, part_sums


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


def test_panels_have_scales_of_their_own(isa, rng):
    x = rng.standard_normal((3, 600)).astype(np.float32)
    x[:, 256:512] *= 1e6
    x[1, 512:] = 0
    check(x, isa)


def test_halves_round_to_even(isa):
    x = np.arange(-127, 127.5, 0.5, dtype=np.float32)[None]
    x = np.concatenate([np.full((1, 1), 127, np.float32), x], axis=1)[:, :256]
    check(x, isa)
    codes = kernels.quantize_rows(x, isa)[0][0]
    assert list(codes[1:8]) == [-127, -126, -126, -126, -125, -124, -124]


def test_zeros_and_the_ends_of_float32(isa):
    x = np.zeros((4, 64), np.float32)
    x[1, 3] = 3.4e38
    x[2, 60] = -1e-45  # the scale underflows to 0
    x[3] = 1e-43 * np.linspace(-1, 1, 64)  # the scale is subnormal: as good as 0
    check(x, isa)
