from __future__ import annotations

import numpy as np
import pytest
import torch

from deepmnn._core import kernels

SIZES = [1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 100, 1000]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("d", SIZES)
def test_rms_norm(isa, rng, unaligned, d, weighted):
    x = unaligned((rng.standard_normal(d) * 5).astype(np.float32))
    w = rng.standard_normal(d).astype(np.float32) if weighted else None
    expected = torch.nn.functional.rms_norm(
        torch.from_numpy(x).double(), (d,), None if w is None else torch.from_numpy(w).double(), 0.1
    ).numpy()
    np.testing.assert_allclose(kernels.rms_norm(x, w, 0.1, isa), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("d", SIZES)
def test_add_rms_norm(isa, rng, unaligned, d):
    a, b, w = (unaligned(rng.standard_normal(d).astype(np.float32)) for _ in range(3))
    total, y = kernels.add_rms_norm(a, b, w, 1e-6, isa)
    assert np.array_equal(total, a + b)
    np.testing.assert_allclose(y, kernels.rms_norm(a + b, w, 1e-6, isa), rtol=1e-6)


def test_rms_norm_of_zeros_is_zero(isa):
    assert not kernels.rms_norm(np.zeros(20, np.float32), None, 1e-6, isa).any()


@pytest.mark.parametrize("n", SIZES)
def test_softmax(isa, rng, unaligned, n):
    x = unaligned((rng.standard_normal(n) * 10).astype(np.float32))
    expected = torch.softmax(torch.from_numpy(x - x.max()).double(), 0).numpy()
    np.testing.assert_allclose(kernels.softmax(x, isa), expected, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("n", [3, 16, 35])
def test_softmax_of_extreme_rows(isa, n):
    equal = kernels.softmax(np.full(n, -3e38, np.float32), isa)
    np.testing.assert_allclose(equal, np.full(n, 1 / n), rtol=1e-6)
    masked = np.full(n, -np.inf, np.float32)
    masked[n // 2] = 5
    one = kernels.softmax(masked, isa)
    assert one[n // 2] == 1
    assert one.sum() == 1
    huge = np.zeros(n, np.float32)
    huge[-1] = 3e38
    assert kernels.softmax(huge, isa)[-1] == 1
