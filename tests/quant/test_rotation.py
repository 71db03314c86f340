"""Rotations of panels against dense Hadamard matrices in float64."""

import numpy as np
import pytest

from deepmnn.quant.rotation import SIGNS, rotate, rotate_moments, unrotate
from dense_rotation import dense_rotation, padded, signs

COLS = [1, 31, 32, 33, 64, 96, 128, 160, 200, 224, 255, 256, 257, 300, 480, 512, 601, 1408, 1536]


def values(rows: int, cols: int) -> np.ndarray:
    return np.random.default_rng([rows, cols]).standard_normal((rows, cols), np.float32)


def test_the_signs_are_bits_of_pi() -> None:
    np.testing.assert_array_equal(SIGNS, signs())


@pytest.mark.parametrize("cols", COLS)
def test_rotated_rows_are_products_with_the_dense_matrix(cols: int) -> None:
    x = values(9, cols)
    matrix = dense_rotation(cols)
    rotated = rotate(x)
    assert rotated.dtype == np.float32
    np.testing.assert_allclose(rotated, padded(x) @ matrix.T, rtol=0, atol=3e-6)
    back = unrotate(rotated)
    np.testing.assert_allclose(back, rotated @ matrix, rtol=0, atol=3e-6)
    np.testing.assert_allclose(back, padded(x), rtol=0, atol=3e-6)


@pytest.mark.parametrize("cols", COLS)
def test_it_is_a_rotation(cols: int) -> None:
    """Its columns are orthogonal and of length one, and products stay as they are."""
    stored = -(-cols // 32) * 32
    columns = rotate(np.eye(stored, dtype=np.float32)).astype(np.float64)
    np.testing.assert_allclose(columns @ columns.T, np.eye(stored), rtol=0, atol=1e-6)
    x, w = values(5, cols), values(7, cols)
    products = rotate(x).astype(np.float64) @ rotate(w).T.astype(np.float64)
    np.testing.assert_allclose(products, x.astype(np.float64) @ w.T, rtol=0, atol=2e-5)


@pytest.mark.parametrize("cols", [64, 256, 320, 576])
def test_integers_are_exact_where_the_factor_is_a_power_of_two(cols: int) -> None:
    x = np.random.default_rng(cols).integers(-1000, 1001, (8, cols)).astype(np.float32)
    np.testing.assert_array_equal(rotate(x), x.astype(np.float64) @ dense_rotation(cols).T)
    np.testing.assert_array_equal(unrotate(rotate(x)), x)


@pytest.mark.parametrize(("col", "first", "width"), [(5, 0, 256), (300, 256, 128), (479, 448, 32)])
def test_one_number_spreads_over_its_block(col: int, first: int, width: int) -> None:
    x = np.zeros((1, 480), np.float32)
    x[0, col] = 8
    spread = np.zeros(480, np.float32)
    spread[first : first + width] = np.float32(8) * np.float32(1 / np.sqrt(width))
    np.testing.assert_array_equal(np.abs(rotate(x)[0]), spread)


@pytest.mark.parametrize("cols", [1, 33, 200, 256, 300, 601])
def test_moments_rotate_like_their_rows(cols: int) -> None:
    x = values(50, cols).astype(np.float64)
    matrix = dense_rotation(cols)
    rotated = np.pad(x, ((0, 0), (0, -cols % 32))) @ matrix.T
    found = rotate_moments((x.T @ x / 50).astype(np.float32))
    np.testing.assert_allclose(found, rotated.T @ rotated / 50, rtol=0, atol=1e-6)


def test_the_argument_stays_as_it_is() -> None:
    x = values(3, 300)
    before = x.copy()
    unrotate(rotate(x))
    unrotate(x[:, :256])
    np.testing.assert_array_equal(x, before)
