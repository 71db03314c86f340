"""MNN's blocks: codes to nearest by looking at each, GPTQ's by the loop of its paper."""

from __future__ import annotations

import numpy as np
import pytest

from deepmnn.errors import CheckpointError, RequestError
from deepmnn.quant.blocks import Blocks, round_blocks
from quant.test_gptq import output_error, problem

TRIES = (-8.0, -8.5, -9.0, -9.5, -10.0, -11.0, 7.0, -7.5)
BLOCKS = Blocks(lambda weight: 32)


def rounded(w: np.ndarray, moments: np.ndarray, size: int, rows: int = 1 << 30) -> np.ndarray:
    """What GPTQ's codes stand for."""
    stored = BLOCKS.round(w, BLOCKS.feedback(moments, rows), f"int4-{size}")
    assert stored.nbytes == w.size + 2 * w.size // size
    return BLOCKS.values(stored, f"int4-{size}", w.shape).astype(np.float64)


def nearest(w: np.ndarray, size: int, bits: int) -> np.ndarray:
    codes, scales = round_blocks(w, size, bits)
    assert codes.min() >= -(1 << bits - 1)
    assert codes.max() < 1 << bits - 1
    return codes * np.repeat(scales.astype(np.float64), size, axis=1)


def textbook(w: np.ndarray, moments: np.ndarray, size: int, damping: float) -> np.ndarray:
    """arXiv:2210.17323, one row at a time, every scale of a block tried from the same state."""
    rows, cols = w.shape
    damped = moments + damping * np.diagonal(moments).mean() * np.eye(cols)
    out = np.zeros((rows, cols))
    for row in range(rows):
        state = (w[row].astype(np.float64), np.linalg.inv(damped), 0.0, out[row])
        for start in range(0, cols, size):
            block = state[0][start : start + size]
            largest = block[np.abs(block).argmax()]
            tries = [
                block_of(*state, start, start + size, float(np.float16(largest / divisor)))
                for divisor in TRIES
            ]
            state = min(tries, key=lambda tried: tried[2])
        out[row] = state[3]
    return out


def block_of(
    weights: np.ndarray,
    inverse: np.ndarray,
    loss: float,
    values: np.ndarray,
    start: int,
    stop: int,
    scale: float,
) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
    weights, inverse, values = weights.copy(), inverse.copy(), values.copy()
    for q in range(start, stop):
        values[q] = np.clip(np.rint(weights[q] / scale), -8, 7) * scale
        wrong = weights[q] - values[q]
        loss += wrong**2 / inverse[q, q]
        weights -= wrong / inverse[q, q] * inverse[:, q]
        inverse -= np.outer(inverse[:, q], inverse[q]) / inverse[q, q]
        inverse[q, q] = 1
    return weights, inverse, loss, values


@pytest.mark.parametrize(("rows", "cols", "size"), [(4, 96, 32), (3, 128, 64), (2, 256, 128)])
def test_the_numbers_of_the_paper(rows: int, cols: int, size: int) -> None:
    w, moments = problem(rows, cols, seed=size)
    want = textbook(w, moments, size, 0.01)  # so many rows want the least damping
    np.testing.assert_allclose(rounded(w, moments, size), want, atol=1e-6)


@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_outputs_are_nearer_than_by_rounding_to_nearest(size: int) -> None:
    w, moments = problem(40, 512, seed=1)
    near, far = rounded(w, moments, size, 50_000), nearest(w, size, 4)
    assert output_error(w, near, moments) < 0.4 * output_error(w, far, moments)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("size", [32, 128])
def test_codes_to_nearest(size: int, bits: int) -> None:
    rng = np.random.default_rng(size + bits)
    w = rng.standard_normal((5, 256), np.float32)
    half = 1 << bits - 1
    found = nearest(w, size, bits)
    for row, start in np.ndindex(5, 256 // size):
        block = w[row, start * size : (start + 1) * size].astype(np.float64)
        largest = block[np.abs(block).argmax()]
        errors = []
        for divisor in TRIES if bits == 4 else (-128.0, 127.0):
            scale = np.float64(np.float16(np.float32(largest / divisor)))
            levels = np.arange(-half, half) * scale
            best = levels[np.abs(block[:, None] - levels).argmin(1)]
            errors.append(np.square(block - best).sum())
        got = np.square(block - found[row, start * size : (start + 1) * size]).sum()
        assert got <= min(errors) * (1 + 1e-5)


@pytest.mark.parametrize("size", [32, 64, 256])
def test_what_codes_stand_for_comes_back(size: int) -> None:
    """A calibration hands its codes to the export as numbers, of which the same codes are made."""
    rng = np.random.default_rng(size)
    for most in range(9):  # the largest magnitude of a code, whatever it is
        codes = rng.integers(-most, min(most, 7) + 1, (300, 2, size))
        scales = rng.standard_normal((300, 2, 1)).astype(np.float16).astype(np.float32)
        w = (codes * scales).astype(np.float32).reshape(300, 2 * size)
        np.testing.assert_array_equal(nearest(w, size, 4), w)
    w, moments = problem(64, 512, seed=3)
    found = rounded(w, moments, size)
    np.testing.assert_array_equal(nearest(found.astype(np.float32), size, 4), found)


def test_inputs_that_never_came() -> None:
    """Columns that are always zero, and no input at all: rounded to nearest, as it were."""
    w, moments = problem(8, 128, seed=4)
    none = rounded(w, np.zeros((128, 128), np.float32), 64, 0)
    assert np.square(w - none).sum() <= np.square(w - nearest(w, 64, 4)).sum() * 1.0001
    moments[:40] = moments[:, :40] = 0
    some = rounded(w, moments, 64, 400)
    assert np.isfinite(some).all()
    assert output_error(w, some, moments) < output_error(w, nearest(w, 64, 4), moments)


def test_rows_of_zeros_and_of_one_number() -> None:
    w, moments = problem(3, 64, seed=5)
    w[0], w[1] = 0, 3.25
    found = rounded(w, np.eye(64, dtype=np.float32), 32)
    np.testing.assert_array_equal(found[0], 0)
    np.testing.assert_allclose(found[1], 3.25, rtol=1e-3)
    assert np.isfinite(rounded(w, moments, 32)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_none(bad: float) -> None:
    w, moments = problem(3, 64, seed=6)
    w[1, 2] = bad
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        rounded(w, moments, 32)
    moments[1, 2] = bad
    with pytest.raises(RequestError, match="NaN or infinity"):
        BLOCKS.feedback(moments.astype(np.float32), 9)


def test_damping_is_that_of_the_tokens() -> None:
    _, moments = problem(3, 64, seed=7)
    assert BLOCKS.feedback(moments, 1000).damping == 0.5
