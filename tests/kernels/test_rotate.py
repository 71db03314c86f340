"""Rotated rows, bit for bit as quant/rotation.py rotates them, on each instruction set."""

from __future__ import annotations

import numpy as np
import pytest

from deepmnn import _core
from deepmnn.quant.rotation import rotate
from dense_rotation import dense_rotation, padded

COLS = [1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 96, 129, 160, 224, 255, 256, 257, 300, 480, 512, 785]


def same_bits(got, want):
    """NaN is NaN, whatever its bits."""
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    nan = np.isnan(want)
    assert np.array_equal(np.isnan(got), nan)
    assert np.array_equal(np.where(nan, 0, got).view(np.uint32), np.where(nan, 0, want).view("u4"))


@pytest.mark.parametrize("cols", COLS)
def test_bit_identical_to_numpy(isa, rng, unaligned, cols):
    for n in (0, 1, 5, 16, 33):
        x = unaligned(rng.standard_normal((n, cols)).astype(np.float32))
        same_bits(_core.rotate(x, 1, isa), rotate(x))
        assert np.array_equal(_core.rotate(x, 3, isa), _core.rotate(x, 1, isa))
        np.testing.assert_allclose(
            _core.rotate(x, 1, isa), padded(x) @ dense_rotation(cols).T, rtol=0, atol=4e-6
        )


@pytest.mark.parametrize("cols", [20, 64, 160, 300])
def test_bit_identical_at_the_ends_of_float32(isa, rng, cols):
    """Sums that overflow are infinite, or NaN where two such meet; subnormal ones are not lost."""
    normal = rng.standard_normal((6, cols))
    for size in (1e-45, 1e-42, 1e-38, 1e-30, 1e30, 1e37, 3e38):
        with np.errstate(over="ignore"):
            x = np.nan_to_num((normal * size).astype(np.float32))
        x[1] = np.float32(size)
        x[2, ::3] = -0.0
        x[3] = 0
        same_bits(_core.rotate(x, 1, isa), rotate(x))
    assert not _core.rotate(np.full((1, cols), -0.0, np.float32), 1, isa).any()


@pytest.mark.parametrize("fault", [np.nan, np.inf, -np.inf])
def test_faults_spread_over_their_block_and_no_further(isa, rng, fault):
    x = rng.standard_normal((3, 480)).astype(np.float32)  # blocks of 256, 128, 64 and 32
    sound = rotate(x)
    x[1, 300] = fault
    got = _core.rotate(x, 1, isa)
    same_bits(got, rotate(x))
    assert not np.isfinite(got[1, 256:384]).any()
    got[1, 256:384] = sound[1, 256:384]
    same_bits(got, sound)
