"""GPTQ against the loop of its paper, rounding to nearest, and inputs that nobody should have."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from deepmnn.errors import CheckpointError, RequestError
from deepmnn.formats import Codes, named
from deepmnn.quant.gptq import damping_for, feedback, gptq
from deepmnn.quant.rounding import DIVISORS

FORMATS = sorted(DIVISORS)
DAMPING = 0.03


def problem(rows: int, cols: int, seed: int, tokens: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Weights and second moments of inputs that are correlated and differ in size."""
    rng = np.random.default_rng([rows, cols, seed])
    mix = rng.standard_normal((cols, cols)) * 10 ** rng.uniform(-1, 1, cols)
    x = rng.standard_normal((tokens, cols)) @ mix
    return rng.standard_normal((rows, cols), np.float32), x.T @ x / tokens


def values(rounded: Codes) -> np.ndarray:
    """What the codes stand for, [rows, cols], float64."""
    scales = np.repeat(rounded.scales.astype(np.float64), 256, axis=1)
    return rounded.levels * scales[:, : rounded.levels.shape[1]]


def output_error(w: np.ndarray, v: np.ndarray, moments: np.ndarray) -> float:
    return float(np.einsum("rj,jk,rk->", w - v, moments, w - v))


def by_distance(x: np.ndarray, format: str) -> np.ndarray:
    """The nearest level, by looking at each."""
    levels = np.array(named(format).levels, np.float64)
    return levels[np.abs(np.asarray(x)[..., None] - levels).argmin(-1)]


def nearest(w: np.ndarray, format: str) -> np.ndarray:
    """The values of rounding to nearest, with the divisor of least squared error."""
    out = np.zeros_like(w, np.float64)
    for row, start in np.ndindex(len(w), -(-w.shape[1] // 256)):
        part = w[row, start * 256 : start * 256 + 256].astype(np.float64)
        largest = part[np.abs(part).argmax()]
        tries = [np.float64(np.float16(largest / q)) for q in DIVISORS[format]]
        rounded = [by_distance(part / s, format) * s for s in tries]
        out[row, start * 256 : start * 256 + 256] = min(
            rounded, key=lambda v: ((part - v) ** 2).sum()
        )
    return out


def textbook(w: np.ndarray, moments: np.ndarray, format: str) -> tuple[np.ndarray, np.ndarray]:
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
            for divisor in DIVISORS[format]:
                scale = np.float64(np.float16(largest / divisor))
                tries.append((*textbook_panel(*state, start, stop, scale, format), scale))
            _, codes[row, start:stop], state, scales[row, start // 256] = min(
                tries, key=lambda tried: tried[0]
            )
    return codes, scales


def textbook_panel(
    weights: np.ndarray, inverse: np.ndarray, start: int, stop: int, scale: float, format: str
) -> tuple[float, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    weights, inverse = weights.copy(), inverse.copy()
    codes, loss = np.zeros(stop - start), 0.0
    for q in range(start, stop):
        code = by_distance(weights[q] / scale, format)
        codes[q - start] = code
        wrong = weights[q] - code * scale
        loss += wrong**2 / inverse[q, q]
        weights -= wrong / inverse[q, q] * inverse[:, q]
        inverse -= np.outer(inverse[:, q], inverse[q]) / inverse[q, q]
        inverse[q, q] = 1  # eliminated: never read again
    return loss, codes, (weights, inverse)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("rows", "cols"), [(5, 32), (4, 96), (1, 288)])
def test_the_codes_of_the_paper(rows: int, cols: int, format: str) -> None:
    w, moments = problem(rows, cols, seed=int(format[1]))
    rounded = gptq(w, feedback(moments, DAMPING), format)
    codes, scales = textbook(w, moments, format)
    np.testing.assert_array_equal(rounded.levels, codes)
    np.testing.assert_array_equal(rounded.scales, scales)


def test_never_worse_than_rounding_to_nearest() -> None:
    rng = np.random.default_rng(0)
    for seed in range(100):
        rows, cols = int(rng.integers(1, 20)), 32 * int(rng.integers(1, 11))
        w, moments = problem(rows, cols, seed, tokens=int(rng.integers(1, 500)))
        format = str(rng.choice(FORMATS))
        ours = output_error(w, values(gptq(w, feedback(moments, DAMPING), format)), moments)
        assert ours <= output_error(w, nearest(w, format), moments)


@pytest.mark.parametrize("format", FORMATS)
def test_much_better_than_rounding_to_nearest_where_inputs_are_correlated(format: str) -> None:
    w, moments = problem(40, 512, seed=1)
    ours = output_error(w, values(gptq(w, feedback(moments, DAMPING), format)), moments)
    assert ours < 0.6 * output_error(w, nearest(w, format), moments)


@pytest.mark.parametrize("format", FORMATS)
def test_bounds_and_shapes(format: str) -> None:
    w, moments = problem(530, 288, seed=2)
    rounded = gptq(w, feedback(moments, DAMPING), format)
    assert rounded.levels.dtype == np.int8
    assert rounded.levels.shape == (530, 288)
    assert rounded.scales.dtype == np.float16
    assert rounded.scales.shape == (530, 2)
    assert set(np.unique(rounded.levels)) <= set(named(format).levels)


def test_unused_inputs_round_to_nearest() -> None:
    w, moments = problem(30, 288, seed=3)
    unused = feedback(np.zeros_like(moments), DAMPING)
    np.testing.assert_allclose(values(gptq(w, unused, "w4")), nearest(w, "w4"), rtol=1e-6)


def test_independent_inputs_of_one_size_round_to_nearest() -> None:
    w, _ = problem(30, 288, seed=3)
    equal = feedback(7e-20 * np.eye(288), DAMPING)
    np.testing.assert_allclose(values(gptq(w, equal, "w4")), nearest(w, "w4"), rtol=1e-6)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_the_size_of_the_moments_does_not_matter(size: float) -> None:
    w, moments = problem(20, 288, seed=4)
    expected = gptq(w, feedback(moments, DAMPING), "w4")
    np.testing.assert_array_equal(
        gptq(w, feedback(size * moments, DAMPING), "w4").levels, expected.levels
    )


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e-6, 1e6, 1e38])
def test_weights_too_small_or_too_large_for_a_scale(size: float) -> None:
    """As near as codes can come: 0, or the largest that they stand for."""
    w, moments = problem(8, 64, seed=5)
    v = values(gptq((w * size).astype(np.float32), feedback(moments, DAMPING), "w4"))
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
    v = values(gptq(w, feedback(np.outer(x, x), DAMPING), "w4"))
    assert np.abs((w - v) @ x).max() < 0.2 * np.abs((w - nearest(w, "w4")) @ x).max()
    assert ((w - v) ** 2).mean() < 2 * ((w - nearest(w, "w4")) ** 2).mean()


def test_dead_columns_and_constant_channels() -> None:
    w, moments = problem(20, 288, seed=8)
    moments[:, 40:90] = moments[40:90] = 0
    moments[:, 256:] = moments[256:] = 0
    moments[5] = moments[9]  # two channels that are always the same
    moments[:, 5] = moments[:, 9]
    moments[5, 5] = moments[9, 9]
    v = values(gptq(w, feedback(moments, DAMPING), "w4"))
    assert output_error(w, v, moments) < output_error(w, nearest(w, "w4"), moments)
    np.testing.assert_allclose(v[:, 256:], nearest(w[:, 256:], "w4"), rtol=1e-6)


def test_rows_of_zeros_stay_zero() -> None:
    w, moments = problem(20, 288, seed=9)
    w[3] = 0
    w[4, 256:] = 0
    rounded = gptq(w, feedback(moments, DAMPING), "w4")
    assert not values(rounded)[3].any()
    assert np.isfinite(rounded.scales).all()


def test_each_row_is_rounded_by_itself() -> None:
    w, moments = problem(700, 96, seed=10)
    errors = feedback(moments, DAMPING)
    whole, one = gptq(w, errors, "w4"), gptq(w[600:601], errors, "w4")
    np.testing.assert_array_equal(whole.levels[600:601], one.levels)
    np.testing.assert_array_equal(gptq(w[:0], errors, "w4").levels.shape, (0, 96))


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
    with pytest.raises(RequestError, match="weight format 'w7'"):
        gptq(w, errors, "w7")
    with pytest.raises(RequestError, match="96 columns"):
        gptq(w[:, :64], errors, "w4")
    for value in (np.nan, np.inf):
        broken = w.copy()
        broken[2, 3] = value
        with pytest.raises(CheckpointError, match="NaN or infinity"):
            gptq(broken, errors, "w4")


_DIGEST = """
import hashlib, numpy as np
from deepmnn.quant.gptq import feedback, gptq
rng = np.random.default_rng(5)
x = rng.standard_normal((900, 800), np.float32)
rounded = gptq(rng.standard_normal((600, 800), np.float32), feedback(x.T @ x, 0.03), "w4")
print(hashlib.sha256(rounded.levels.tobytes() + rounded.scales.tobytes()).hexdigest())
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
