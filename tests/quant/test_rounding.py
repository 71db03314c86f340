"""Rounding to nearest, against searches for better scales and weights that it must hit exactly."""

import numpy as np
import pytest

from deepmnn.errors import RequestError
from deepmnn.formats import named
from deepmnn.quant.rotation import rotate, unrotate
from deepmnn.quant.rounding import DIVISORS, nearest, round_to_nearest
from storage import QUANTIZED_NAMES

SHAPES = [(1, 1), (3, 7), (16, 64), (17, 65), (33, 31), (40, 200), (5, 129), (18, 256), (7, 700)]


def values(rows: int, cols: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, rows, cols]).standard_normal((rows, cols), np.float32)


@pytest.mark.parametrize("format", QUANTIZED_NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_and_bounds(shape: tuple[int, int], format: str) -> None:
    (rows, cols), storage = shape, named(format)
    codes = round_to_nearest(values(rows, cols), format)
    stored = storage.stored_cols(cols)
    assert codes.format == format
    assert codes.levels.shape == (rows, stored)
    assert codes.scales.shape == (rows, -(-stored // 256))
    assert set(np.unique(codes.levels)) <= set(storage.levels)


def by_distance(x: np.ndarray, format: str) -> np.ndarray:
    """The nearest level, by looking at each."""
    levels = np.array(named(format).levels, np.float64)
    return levels[np.abs(x[..., None] - levels).argmin(-1)]


@pytest.mark.parametrize("format", QUANTIZED_NAMES)
def test_nearest_levels(format: str) -> None:
    """Far beyond the ends, too; not between two, where either is right."""
    x = np.random.default_rng(1).uniform(-200, 200, 5000).astype(np.float32)
    np.testing.assert_array_equal(nearest(x, named(format)), by_distance(x, format))


@pytest.mark.parametrize("format", QUANTIZED_NAMES)
def test_quantising_is_near_the_best_scale(format: str) -> None:
    """Of each panel, against a dense search over 400 scales of both signs."""
    w = values(20, 512, seed=3) * 10 ** values(20, 512)
    found = round_to_nearest(w, format).values().reshape(20, 2, 256)
    top, panels = max(named(format).levels), rotate(w).reshape(20, 2, 256)
    best = np.full((20, 2), np.inf)
    largest = np.abs(panels).max(2, keepdims=True)
    for step in np.outer((-1, 1), np.linspace(0.5, 1.2, 200)).reshape(-1) / top:
        trial = by_distance(panels / (step * largest), format) * step * largest
        best = np.minimum(best, ((panels - trial) ** 2).sum(2))
    error = ((panels - found) ** 2).sum(2)
    assert error.sum() <= 1.05 * best.sum()
    half = 1 << named(format).bits - 1
    plain = np.rint(panels / largest * (half - 1)) * largest / (half - 1)
    assert error.sum() < ((panels - plain) ** 2).sum()


@pytest.mark.parametrize(("format", "saved"), [("w3", 0.08), ("w4", 0.17), ("w5", 0.27)])
def test_levels_suit_a_normal_distribution(format: str, saved: float) -> None:
    """Against evenly spaced ones, both with their best scale for many normal numbers."""
    x = np.random.default_rng(2).standard_normal(100_000).astype(np.float32)
    half = 1 << named(format).bits - 1
    scales = np.linspace(0.02, 1.5, 300)
    even = min(
        np.square(x - np.clip(np.rint(x / s - 0.5), -half, half - 1) * s - s / 2).mean()
        for s in scales
    )
    ours = min(
        np.square(x - nearest((x / s).astype(np.float32), named(format)) * s).mean()
        for s in scales / max(named(format).levels) * half
    )
    assert ours < (1 - saved + 0.02) * even


def test_more_bits_are_nearer() -> None:
    """By a factor of about 4 for each bit, in squares: 2.5 at least."""
    w = values(40, 512)
    errors = [((round_to_nearest(w, f).values() - rotate(w)) ** 2).sum() for f in QUANTIZED_NAMES]
    bits = [named(f).bits for f in QUANTIZED_NAMES]
    for (b, e), (fewer, more_error) in zip(
        zip(bits, errors, strict=True), zip(bits[1:], errors[1:], strict=True), strict=False
    ):
        assert more_error > 2.5 ** (b - fewer) * e


@pytest.mark.parametrize("format", QUANTIZED_NAMES)
def test_large_numbers_do_not_cost_their_neighbours(format: str) -> None:
    """One column 30 times as large as the others: as it lies, all of its panel would round to few
    codes.
    """
    w = values(30, 256)
    w[:, 17] *= 30
    half = 1 << named(format).bits - 1
    found = unrotate(round_to_nearest(w, format).values())
    scale = np.abs(w).max(axis=1, keepdims=True) / (half - 1)
    as_it_lies = np.rint(w / scale) * scale
    assert ((found - w) ** 2).sum() < 0.2 * ((as_it_lies - w) ** 2).sum()


@pytest.mark.parametrize("format", QUANTIZED_NAMES)
def test_extreme_values(format: str) -> None:
    """Zeros stay zero; values too small or too large for an fp16 scale do not become NaN."""
    w = np.zeros((4, 64), np.float32)
    w[1], w[2], w[3] = 1e-12, 3e36, -3e36
    codes = round_to_nearest(w, format)
    assert np.isfinite(codes.scales).all()
    decoded = codes.values()
    assert not decoded[0].any()
    assert np.abs(decoded[1]).max() < 1e-6
    expected = np.sign(rotate(w[2:]))
    large = np.abs(rotate(w[2:])) > 1e35
    assert large.any()
    assert (np.sign(decoded[2:]) == expected)[large].all()


@pytest.mark.parametrize("format", QUANTIZED_NAMES)
def test_representable_weights_are_exact(format: str) -> None:
    """The least level is in every panel; rotating rounds nothing: blocks of 256 and 64 columns."""
    rng = np.random.default_rng(5)
    levels = sorted(named(format).levels)
    codes = rng.choice(np.array(levels, np.float32), (20, 576))
    codes[:, ::256] = levels[0]
    assert levels[0] in DIVISORS[format]
    w = unrotate(codes * np.float32(2**-6))
    found = round_to_nearest(w, format)
    np.testing.assert_array_equal(found.levels, codes)
    np.testing.assert_array_equal(unrotate(found.values()), w)


def test_formats_without_codes_are_request_errors() -> None:
    for format, match in [("w7", "weight format 'w7'"), ("bf16", "codes in format 'bf16'")]:
        with pytest.raises(RequestError, match=match):
            round_to_nearest(values(2, 64), format)
