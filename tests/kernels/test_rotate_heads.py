"""Heads of int8 cache rows, rotated as docs/layouts.md says, on each instruction set."""

from __future__ import annotations

import numpy as np
import pytest

from deepmnn._core import kernels
from deepmnn.backends.reference.cache import rotate_heads, unrotate_heads
from dense_rotation import dense_head_rotation

SIZES = [1, 16, 31, 32, 33, 40, 48, 63, 64, 65, 80, 96, 112, 127, 128, 192, 256, 320, 512]


@pytest.mark.parametrize("d", SIZES)
def test_matches_the_dense_matrix(isa, rng, unaligned, d):
    dense = dense_head_rotation(d)
    np.testing.assert_allclose(dense @ dense.T, np.eye(d), rtol=0, atol=1e-12)
    for heads in (0, 1, 3, 8):
        x = unaligned(rng.standard_normal((heads, d)).astype(np.float32))
        got = kernels.rotate_heads(x, isa)
        np.testing.assert_allclose(got, x @ dense.T, rtol=0, atol=4e-6)
        np.testing.assert_allclose(kernels.unrotate_heads(got, isa), x, rtol=0, atol=4e-6)


@pytest.mark.parametrize("d", SIZES)
def test_bit_identical_to_numpy(isa, rng, d):
    for size in (1e-42, 1.0, 1e30):
        x = (size * rng.standard_normal((5, d))).astype(np.float32)
        row = x.reshape(1, -1)
        assert kernels.rotate_heads(x, isa).tobytes() == rotate_heads(row, (d,)).tobytes()
        assert kernels.unrotate_heads(x, isa).tobytes() == unrotate_heads(row, (d,)).tobytes()


@pytest.mark.parametrize("d", [40, 64, 80, 192])
@pytest.mark.parametrize("turn", [kernels.rotate_heads, kernels.unrotate_heads])
def test_heads_know_nothing_of_each_other(isa, rng, d, turn):
    x = rng.standard_normal((4, d)).astype(np.float32)
    apart = np.concatenate([turn(x[i : i + 1], isa) for i in range(4)])
    np.testing.assert_array_equal(turn(x, isa), apart)
    x[2] = np.nan
    np.testing.assert_array_equal(turn(x, isa)[[0, 1, 3]], apart[[0, 1, 3]])
    assert np.isnan(turn(x, isa)[2]).all()
