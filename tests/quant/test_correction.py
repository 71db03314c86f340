"""Corrections: least squares, by numpy's own."""

from __future__ import annotations

import numpy as np
import pytest

from deepmnn.errors import RequestError
from deepmnn.quant import correction as correcting
from deepmnn.quant.correction import correction
from deepmnn.quant.gptq import damping_for
from deepmnn.quant.moments import Moments

ROWS, COLS, TOKENS = 5, 24, 400


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((TOKENS, COLS)) @ rng.standard_normal((COLS, COLS))
    return x.astype(np.float32), rng.standard_normal((TOKENS, ROWS)).astype(np.float32)


def seen(x: np.ndarray, d: np.ndarray) -> Moments:
    moments = Moments(x.shape[1], d.shape[1])
    moments.add(x, d)
    return moments


def test_a_correction_is_the_least_squares_solution_with_damping() -> None:
    x, d = drawn(0)
    damping = correcting._MORE_DAMPING * damping_for(TOKENS) * np.square(x).sum(axis=0).mean()
    more = np.sqrt(damping) * np.eye(COLS)  # rows that ask for C = 0
    want = np.linalg.lstsq(
        np.concatenate([x, more]), np.concatenate([d, np.zeros((COLS, ROWS))]), rcond=None
    )[0].T
    np.testing.assert_allclose(correction(seen(x, d)), want, atol=2e-4 * np.abs(want).max())


def test_what_a_matrix_could_do_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correcting, "_MORE_DAMPING", 1e-6)
    x, _ = drawn(1)
    change = np.linspace(-1, 1, ROWS * COLS, dtype=np.float32).reshape(ROWS, COLS)
    got = correction(seen(x, x @ change.T))
    np.testing.assert_allclose(got, change, atol=0.02)


def test_inputs_of_zeros_correct_nothing() -> None:
    assert not correction(seen(np.zeros((3, 8), np.float32), np.ones((3, 2), np.float32))).any()


def test_activations_that_are_no_numbers_are_refused() -> None:
    x, d = drawn(2)
    d[3, 1] = np.inf
    with pytest.raises(RequestError, match="NaN or infinity"):
        correction(seen(x, d))
