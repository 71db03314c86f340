from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from deepmnn._core import kernels

SIZES = [0, 1, 2, 7, 15, 16, 17, 31, 32, 33, 48, 100, 257]


@pytest.mark.parametrize("n", SIZES)
def test_arithmetic_is_exact(isa, rng, unaligned, n):
    a, b = (unaligned(rng.standard_normal(n).astype(np.float32)) for _ in range(2))
    assert np.array_equal(kernels.add(a, b, isa), a + b)
    assert np.array_equal(kernels.mul(a, b, isa), a * b)
    assert np.array_equal(kernels.scale(a, 1.7, isa), a * np.float32(1.7))
    exact = np.float64(np.float32(-0.3)) * a + b
    np.testing.assert_allclose(kernels.axpy(-0.3, a, b, isa), exact, rtol=0, atol=3e-7)


def sigmoid64(x):
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x.astype(np.float64)))


@pytest.mark.parametrize("n", SIZES)
def test_sigmoid_and_silu(isa, rng, unaligned, n):
    x = unaligned((rng.standard_normal(n) * 8).astype(np.float32))
    np.testing.assert_allclose(kernels.sigmoid(x, isa), sigmoid64(x), rtol=4e-7)
    np.testing.assert_allclose(kernels.silu(x, isa), x * sigmoid64(x), rtol=4e-7)


def test_sigmoid_over_the_whole_range(isa):
    x = np.linspace(-87, 87, 200_001, dtype=np.float32)
    # 1 / (1 + exp(-x)) is as exact as exp where exp is large, so this checks exp as well.
    np.testing.assert_allclose(kernels.sigmoid(x, isa), sigmoid64(x), rtol=4e-7)


def test_sigmoid_and_silu_at_the_ends(isa):
    x = np.array([-np.inf, -1e30, -200, -104, 0, 104, 200, 1e30, np.inf, np.nan], np.float32)
    y = kernels.sigmoid(x, isa)
    np.testing.assert_allclose(y[:-1], [0, 0, 0, 0, 0.5, 1, 1, 1, 1], atol=1e-38)
    assert np.isnan(y[-1])
    z = kernels.silu(x[1:-2], isa)
    np.testing.assert_allclose(z, [0, 0, 0, 0, 104, 200, 1e30], atol=1e-35)


def test_exp_reaches_the_smallest_numbers(isa):
    x = np.array([0, -80, -87.5, -90, -100, -103, -104.5, -1000, -np.inf], np.float32)
    expected = np.exp(x.astype(np.float64))  # the largest is 1, and the sum too in float32
    np.testing.assert_allclose(kernels.softmax(x, isa), expected, rtol=3e-7, atol=2e-45)


@pytest.mark.parametrize("n", SIZES)
def test_to_bf16_rounds_to_nearest_even(isa, rng, n):
    x = rng.integers(0, 2**32, n, dtype=np.uint64).astype(np.uint32).view(np.float32)
    x = np.where(np.isnan(x), np.float32(1.5), x)
    expected = x.astype(ml_dtypes.bfloat16).view(np.uint16)
    assert np.array_equal(kernels.to_bf16(x, isa), expected)


def test_to_bf16_of_special_values(isa):
    words = [0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x80000000, 1]
    x = np.array(words, np.uint32).view(np.float32)
    assert np.array_equal(kernels.to_bf16(x, isa), x.astype(ml_dtypes.bfloat16).view(np.uint16))
    nan = np.array([0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF800001], np.uint32).view(np.float32)
    assert np.isnan(kernels.to_bf16(nan, isa).view(ml_dtypes.bfloat16).astype(np.float32)).all()


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("half", [1, 3, 8, 15, 16, 17, 32, 33, 50])
def test_rope(isa, rng, unaligned, half, interleaved):
    x = unaligned(rng.standard_normal(2 * half).astype(np.float32))
    angle = rng.standard_normal(half) * 100
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    # A rotation is a product of complex numbers.
    pairs = x.reshape(half, 2) if interleaved else x.reshape(2, half).T
    turned = (pairs[:, 0] + 1j * pairs[:, 1]) * (cos + 1j * sin)
    both = np.stack([turned.real, turned.imag], axis=1)
    expected = (both if interleaved else both.T).reshape(-1)
    np.testing.assert_allclose(
        kernels.rope(x, cos, sin, interleaved, isa), expected, rtol=0, atol=2e-6
    )
