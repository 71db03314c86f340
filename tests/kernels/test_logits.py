"""The kernels of sampling against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from deepmnn._core import kernels
from deepmnn.errors import RequestError

SIZES = [1, 2, 15, 16, 63, 64, 65, 127, 1000, 1023, 1024, 1025, 1088, 5001]


@pytest.mark.parametrize("n", SIZES)
def test_argmax_takes_the_first_of_the_largest(isa, rng, unaligned, n):
    x = unaligned(rng.standard_normal(n).astype(np.float32))
    assert kernels.argmax(x, isa) == x.argmax()
    x[...] = np.round(x)  # many ties
    assert kernels.argmax(x, isa) == x.argmax()
    x[...] = -np.inf
    assert kernels.argmax(x, isa) == 0
    for at in {0, n // 2, n - 1}:
        x[...] = -np.inf
        x[at] = -3e38
        assert kernels.argmax(x, isa) == at
        x[at] = np.inf
        assert kernels.argmax(x, isa) == at


@pytest.mark.parametrize("n", SIZES)
def test_argmax_of_nan_is_none(isa, rng, n):
    x = rng.standard_normal(n).astype(np.float32)
    for word in (0x7F800001, 0x7FC00000, 0xFFC00000, 0xFFFFFFFF):
        for at in {0, n // 2, n - 1}:
            wrong = x.copy()
            wrong.view(np.uint32)[at] = word
            assert kernels.argmax(wrong, isa) == -1
    assert kernels.argmax(np.zeros(0, np.float32), isa) == -1


@pytest.mark.parametrize("n", [0, *SIZES])
def test_find_above(isa, rng, unaligned, n):
    x = unaligned(np.round(rng.standard_normal(n) * 3).astype(np.float32))
    for low in (-np.inf, -1.0, 0.0, 3.0, 7.0, np.inf):
        for begin in {0, 1, n // 2, n - 1, n, n + 5} - {-1}:
            above = [i for i in range(begin, n) if x[i] > low]
            assert kernels.find_above(x, begin, low, isa) == (above[0] if above else max(begin, n))
    with pytest.raises(RequestError, match="begin -1"):
        kernels.find_above(x, -1, 0.0, isa)


@pytest.mark.parametrize("n", [0, *SIZES])
def test_exp_sum(isa, rng, unaligned, n):
    x = unaligned((rng.standard_normal(n) * 4).astype(np.float32))
    x[::7] = -np.inf
    for shift, factor in ((0.0, 1.0), (3.5, 0.3), (16.0, 2.5), (20.0, 50.0)):
        expected = np.exp((x.astype(np.float64) - shift) * factor).sum()
        got = kernels.exp_sum(x, shift, factor, isa)
        assert got == pytest.approx(expected, rel=2e-5, abs=1e-44)
    assert kernels.exp_sum(np.zeros(n, np.float32), 0.0, 1.0, isa) == n
