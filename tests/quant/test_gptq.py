"""GPTQ against the loop of its paper, rounding to nearest, and inputs that nobody should have."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from deepmnn.errors import CheckpointError, RequestError
from deepmnn.quant.gptq import (
    DIVISORS,
    Rounded,
    damping_for,
    feedback,
    gptq,
    rotate,
    rotate_moments,
)

BITS = sorted(DIVISORS)
DAMPING = 0.03


def problem(rows: int, cols: int, seed: int, tokens: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Weights and second moments of inputs that are correlated and differ in size."""
    rng = np.random.default_rng([rows, cols, seed])
    mix = rng.standard_normal((cols, cols)) * 10 ** rng.uniform(-1, 1, cols)
    x = rng.standard_normal((tokens, cols)) @ mix
    return rng.standard_normal((rows, cols), np.float32), x.T @ x / tokens


def values(rounded: Rounded) -> np.ndarray:
    """What the codes stand for, [rows, cols], float64."""
    scales = np.repeat(rounded.scales.astype(np.float64), 256, axis=1)
    return rounded.codes * scales[:, : rounded.codes.shape[1]]


def output_error(w: np.ndarray, v: np.ndarray, moments: np.ndarray) -> float:
    return float(np.einsum("rj,jk,rk->", w - v, moments, w - v))


def nearest(w: np.ndarray, bits: int) -> np.ndarray:
    """The values of rounding to nearest, with the divisor of least squared error."""
    half, out = 2 ** (bits - 1), np.zeros_like(w, np.float64)
    for row, start in np.ndindex(len(w), -(-w.shape[1] // 256)):
        part = w[row, start * 256 : start * 256 + 256].astype(np.float64)
        largest = part[np.abs(part).argmax()]
        tries = [np.float64(np.float16(largest / q)) for q in DIVISORS[bits]]
        rounded = [np.clip(np.rint(part / s), -half, half - 1) * s for s in tries]
        out[row, start * 256 : start * 256 + 256] = min(
            rounded, key=lambda v: ((part - v) ** 2).sum()
        )
    return out


def textbook(w: np.ndarray, moments: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """One row at a time as arXiv:2210.17323 has it: the inverse of H, a column eliminated after
    each rounding. Every scale of a panel is tried from the same state; the loss decides.
    """
    rows, cols = w.shape
    damped = moments + DAMPING * np.diagonal(moments).mean() * np.eye(cols)
    codes, scales = np.zeros((rows, cols), np.int8), np.zeros((rows, -(-cols // 256)))
    for row in range(rows):
        state = (w[row].astype(np.float64), np.linalg.inv(damped))
        for start in range(0, cols, 256):
            stop = min(start + 256, cols)
            panel = state[0][start:stop]
            largest = panel[np.abs(panel).argmax()]
            tries = []
            for divisor in DIVISORS[bits]:
                scale = np.float64(np.float16(largest / divisor))
                tries.append((*textbook_panel(*state, start, stop, scale, bits), scale))
            _, codes[row, start:stop], state, scales[row, start // 256] = min(
                tries, key=lambda tried: tried[0]
            )
    return codes, scales


def textbook_panel(
    weights: np.ndarray, inverse: np.ndarray, start: int, stop: int, scale: float, bits: int
) -> tuple[float, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    weights, inverse, half = weights.copy(), inverse.copy(), 2 ** (bits - 1)
    codes, loss = np.zeros(stop - start), 0.0
    for q in range(start, stop):
        code = np.clip(np.rint(weights[q] / scale), -half, half - 1)
        codes[q - start] = code
        wrong = weights[q] - code * scale
        loss += wrong**2 / inverse[q, q]
        weights -= wrong / inverse[q, q] * inverse[:, q]
        inverse -= np.outer(inverse[:, q], inverse[q]) / inverse[q, q]
        inverse[q, q] = 1  # eliminated: never read again
    return loss, codes, (weights, inverse)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("rows", "cols"), [(5, 32), (4, 96), (1, 288)])
def test_the_codes_of_the_paper(rows: int, cols: int, bits: int) -> None:
    w, moments = problem(rows, cols, seed=bits)
    rounded = gptq(w, feedback(moments, DAMPING), bits)
    codes, scales = textbook(w, moments, bits)
    np.testing.assert_array_equal(rounded.codes, codes)
    np.testing.assert_array_equal(rounded.scales, scales)


def test_never_worse_than_rounding_to_nearest() -> None:
    rng = np.random.default_rng(0)
    for seed in range(100):
        rows, cols = int(rng.integers(1, 20)), 32 * int(rng.integers(1, 11))
        w, moments = problem(rows, cols, seed, tokens=int(rng.integers(1, 500)))
        bits = int(rng.choice(BITS))
        ours = output_error(w, values(gptq(w, feedback(moments, DAMPING), bits)), moments)
        assert ours <= output_error(w, nearest(w, bits), moments)


@pytest.mark.parametrize("bits", BITS)
def test_much_better_than_rounding_to_nearest_where_inputs_are_correlated(bits: int) -> None:
    w, moments = problem(40, 512, seed=1)
    ours = output_error(w, values(gptq(w, feedback(moments, DAMPING), bits)), moments)
    assert ours < 0.6 * output_error(w, nearest(w, bits), moments)


@pytest.mark.parametrize("bits", BITS)
def test_bounds_and_shapes(bits: int) -> None:
    w, moments = problem(530, 288, seed=2)
    rounded = gptq(w, feedback(moments, DAMPING), bits)
    assert rounded.codes.dtype == np.int8
    assert rounded.codes.shape == (530, 288)
    assert rounded.scales.dtype == np.float16
    assert rounded.scales.shape == (530, 2)
    half = 2 ** (bits - 1)
    assert -half <= rounded.codes.min() <= rounded.codes.max() < half


def test_unused_inputs_round_to_nearest() -> None:
    w, moments = problem(30, 288, seed=3)
    unused = feedback(np.zeros_like(moments), DAMPING)
    np.testing.assert_allclose(values(gptq(w, unused, 4)), nearest(w, 4), rtol=1e-6)


def test_independent_inputs_of_one_size_round_to_nearest() -> None:
    w, _ = problem(30, 288, seed=3)
    equal = feedback(7e-20 * np.eye(288), DAMPING)
    np.testing.assert_allclose(values(gptq(w, equal, 4)), nearest(w, 4), rtol=1e-6)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_the_size_of_the_moments_does_not_matter(size: float) -> None:
    w, moments = problem(20, 288, seed=4)
    expected = gptq(w, feedback(moments, DAMPING), 4)
    np.testing.assert_array_equal(
        gptq(w, feedback(size * moments, DAMPING), 4).codes, expected.codes
    )


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e-6, 1e6, 1e38])
def test_weights_too_small_or_too_large_for_a_scale(size: float) -> None:
    """As near as codes can come: 0, or the largest that they stand for."""
    w, moments = problem(8, 64, seed=5)
    v = values(gptq((w * size).astype(np.float32), feedback(moments, DAMPING), 4))
    if size < 1e-9:
        assert not v.any()
    elif size > 1e7:
        assert np.abs(v).max() > 65504 * 6
        assert np.isfinite(v).all()
    else:
        assert np.abs(v - w * size).max() < 2 * np.abs(w * size).max()


def test_one_sample() -> None:
    """Moments of rank 1: the output for that sample is nearly right, and no weight goes far."""
    w, _ = problem(20, 512, seed=6)
    x = np.random.default_rng(7).standard_normal(512)
    v = values(gptq(w, feedback(np.outer(x, x), DAMPING), 4))
    assert np.abs((w - v) @ x).max() < 0.2 * np.abs((w - nearest(w, 4)) @ x).max()
    assert ((w - v) ** 2).mean() < 2 * ((w - nearest(w, 4)) ** 2).mean()


def test_dead_columns_and_constant_channels() -> None:
    w, moments = problem(20, 288, seed=8)
    moments[:, 40:90] = moments[40:90] = 0
    moments[:, 256:] = moments[256:] = 0
    moments[5] = moments[9]  # two channels that are always the same
    moments[:, 5] = moments[:, 9]
    moments[5, 5] = moments[9, 9]
    v = values(gptq(w, feedback(moments, DAMPING), 4))
    assert output_error(w, v, moments) < output_error(w, nearest(w, 4), moments)
    np.testing.assert_allclose(v[:, 256:], nearest(w[:, 256:], 4), rtol=1e-6)


def test_rows_of_zeros_stay_zero() -> None:
    w, moments = problem(20, 288, seed=9)
    w[3] = 0
    w[4, 256:] = 0
    rounded = gptq(w, feedback(moments, DAMPING), 4)
    assert not rounded.codes[3].any()
    assert not rounded.scales[3].any()
    assert np.isfinite(rounded.scales).all()


def test_each_row_is_rounded_by_itself() -> None:
    w, moments = problem(700, 96, seed=10)
    errors = feedback(moments, DAMPING)
    whole, one = gptq(w, errors, 4), gptq(w[600:601], errors, 4)
    np.testing.assert_array_equal(whole.codes[600:601], one.codes)
    np.testing.assert_array_equal(gptq(w[:0], errors, 4).codes.shape, (0, 96))


def test_moments_that_are_nearly_positive_get_more_damping() -> None:
    x = np.random.default_rng(11).standard_normal((400, 96))
    moments = x.T @ x / 400
    least, vectors = np.linalg.eigh(moments)
    negative = moments - (least[0] + 0.1) * np.outer(vectors[:, 0], vectors[:, 0])
    assert feedback(negative, DAMPING).damping == pytest.approx(10 * DAMPING)
    assert feedback(moments, DAMPING).damping == DAMPING


def test_fewer_tokens_want_more_damping() -> None:
    assert damping_for(16384) == pytest.approx(0.03, rel=0.1)
    shares = [damping_for(tokens) for tokens in (0, 1, 100, 1024, 4096, 16384, 10**9)]
    assert shares == sorted(shares, reverse=True)
    assert 0 < shares[-1] < shares[0] <= 1


def test_what_no_inputs_have_is_refused() -> None:
    _, moments = problem(1, 96, seed=12)
    for value in (np.nan, np.inf):
        broken = moments.copy()
        broken[3, 4] = value
        with pytest.raises(RequestError, match="NaN or infinity"):
            feedback(broken, DAMPING)
    for shape in ((96, 64), (33, 33), (0, 0), (96,)):
        with pytest.raises(RequestError, match="shape"):
            feedback(np.ones(shape), DAMPING)
    with pytest.raises(RequestError, match="squares"):
        feedback(-moments, DAMPING)
    indefinite = moments * 0 + np.diag(np.diagonal(moments)) - 5 * moments.max() * np.eye(96)[::-1]
    with pytest.raises(RequestError, match="positive definite"):
        feedback(indefinite, DAMPING)


def test_weights_that_are_refused() -> None:
    w, moments = problem(4, 96, seed=13)
    errors = feedback(moments, DAMPING)
    with pytest.raises(RequestError, match="7 bits"):
        gptq(w, errors, 7)
    with pytest.raises(RequestError, match="96 columns"):
        gptq(w[:, :64], errors, 4)
    for value in (np.nan, np.inf):
        broken = w.copy()
        broken[2, 3] = value
        with pytest.raises(CheckpointError, match="NaN or infinity"):
            gptq(broken, errors, 4)


_DIGEST = """
import hashlib, numpy as np
from deepmnn.quant.gptq import feedback, gptq
rng = np.random.default_rng(5)
x = rng.standard_normal((900, 800), np.float32)
rounded = gptq(rng.standard_normal((600, 800), np.float32), feedback(x.T @ x, 0.03), 4)
print(hashlib.sha256(rounded.codes.tobytes() + rounded.scales.tobytes()).hexdigest())
"""


def test_the_same_bytes_again() -> None:
    """In another process."""
    digests = {
        subprocess.run(
            [sys.executable, "-c", _DIGEST], env=os.environ, capture_output=True, check=True
        ).stdout
        for _ in range(2)
    }
    assert len(digests) == 1


@pytest.mark.parametrize("cols", [32, 224, 256, 576, 512])
def test_rotated_moments_are_those_of_rotated_inputs(cols: int) -> None:
    x = np.random.default_rng(cols).standard_normal((50, cols))
    turned = rotate(x).astype(np.float64)
    np.testing.assert_allclose(rotate_moments(x.T @ x), turned.T @ turned, atol=1e-3)
    np.testing.assert_allclose((turned**2).sum(axis=1), (x**2).sum(axis=1), rtol=1e-5)


def test_moments_are_padded_to_whole_parts() -> None:
    x = np.random.default_rng(1).standard_normal((50, 200))
    padded = np.pad(x, ((0, 0), (0, 24)))
    np.testing.assert_allclose(
        rotate_moments(x.T @ x), rotate_moments(padded.T @ padded), atol=1e-4
    )


def test_rotation_is_a_hadamard_matrix_and_signs() -> None:
    turned = rotate(np.eye(256)) * 16
    natural = np.array([[(-1) ** (j & k).bit_count() for k in range(256)] for j in range(256)])
    np.testing.assert_allclose(np.abs(turned), 1, rtol=1e-6)
    np.testing.assert_allclose(turned * turned[:, :1], natural, rtol=1e-6)
