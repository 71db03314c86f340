"""Rounding to nearest, against searches for better scales and weights that it must hit exactly."""

import numpy as np
import pytest

from deepmnn.errors import RequestError
from deepmnn.formats import FORMATS, named
from deepmnn.quant.rounding import RULES, round_to_nearest
from storage import QUANTIZED

SHAPES = [(1, 1), (3, 7), (16, 64), (17, 65), (33, 31), (40, 200), (5, 129), (18, 256), (7, 700)]


def values(rows: int, cols: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, rows, cols]).standard_normal((rows, cols), np.float32)


def test_every_quantised_format_has_a_rule() -> None:
    assert set(RULES) == {format.name for format in FORMATS.values() if format.is_quantized}


@pytest.mark.parametrize(("format", "group_size"), QUANTIZED)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_and_bounds(shape: tuple[int, int], format: str, group_size: int) -> None:
    (rows, cols), storage = shape, named(format)
    codes = round_to_nearest(values(rows, cols), format, group_size)
    stored = storage.stored_cols(cols, group_size)
    assert (codes.format, codes.group_size) == (format, group_size)
    assert codes.codes.shape == (rows, stored)
    assert codes.scales.shape == (rows, -(-stored // 256))
    assert not codes.codes[:, cols:].any()
    assert -storage.offset <= codes.codes.min() <= codes.codes.max() < storage.offset
    assert (codes.multipliers is not None) == storage.multipliers
    if codes.multipliers is not None:
        assert codes.multipliers.shape == (rows, stored // group_size)
        assert np.abs(codes.multipliers).max() <= 15


@pytest.mark.parametrize(("format", "group_size"), QUANTIZED)
def test_quantising_is_near_the_best_scale(format: str, group_size: int) -> None:
    """Of each group, against a dense search over 400 scales of both signs."""
    w = values(20, 512, seed=3) * np.repeat(10 ** values(20, 512 // group_size), group_size, axis=1)
    quantized = round_to_nearest(w, format, group_size)
    half = named(format).offset
    assert quantized.codes.min() >= -half
    assert quantized.codes.max() <= half - 1
    assert quantized.multipliers is None or np.abs(quantized.multipliers).max() <= 15
    best = np.full((20, 512 // group_size), np.inf)
    groups = w.reshape(20, -1, group_size)
    largest = np.abs(groups).max(2, keepdims=True)
    for step in np.outer((-1, 1), np.linspace(0.5, 1.2, 400)).reshape(-1) / half:
        trial = np.clip(np.rint(groups / (step * largest)), -half, half - 1) * step * largest
        best = np.minimum(best, ((groups - trial) ** 2).sum(2))
    error = ((groups - quantized.values().reshape(groups.shape)) ** 2).sum(2)
    assert error.sum() <= 1.2 * best.sum()
    plain = np.rint(groups / largest * (half - 1)) * largest / (half - 1)
    assert error.sum() < ((groups - plain) ** 2).sum()


@pytest.mark.parametrize("group_size", named("w4").group_sizes)
def test_groups_of_a_panel_differ(group_size: int) -> None:
    """A small group beside ones 4 times as large is little worse off than by itself."""
    w = values(30, 256)
    w[:, :group_size] /= 4
    alone = round_to_nearest(w[:, :group_size], "w4", group_size).values()
    beside = round_to_nearest(w, "w4", group_size).values()[:, :group_size]
    errors = [((v - w[:, :group_size]) ** 2).sum() for v in (alone, beside)]
    assert errors[1] < 1.3 * errors[0]


@pytest.mark.parametrize(("format", "group_size"), QUANTIZED)
def test_extreme_values(format: str, group_size: int) -> None:
    """Zeros stay zero; values too small or too large for an fp16 scale do not become NaN."""
    w = np.zeros((4, 64), np.float32)
    w[1], w[2], w[3] = 1e-12, 3e38, -3e38
    decoded = round_to_nearest(w, format, group_size).values()[:, :64]
    assert np.isfinite(decoded).all()
    assert not decoded[0].any()
    assert np.abs(decoded[1]).max() < 1e-6
    assert (np.sign(decoded[2]) == 1).all()
    assert (np.sign(decoded[3]) == -1).all()


@pytest.mark.parametrize(("format", "group_size"), QUANTIZED)
def test_representable_weights_are_exact(format: str, group_size: int) -> None:
    """Every group's codes begin at the long end; the first group has the largest multiplier."""
    rng, half = np.random.default_rng(5), named(format).offset
    codes = rng.integers(-half, half, (20, 600)).astype(np.float32)
    codes[:, ::group_size] = -half
    w = codes * np.float32(2**-6)
    if named(format).multipliers:
        multipliers = rng.choice([-15, -14, -9, -1, 0, 1, 2, 13, 15], (20, -(-600 // group_size)))
        multipliers[:, :: 256 // group_size] = 15
        w *= np.repeat(multipliers, group_size, axis=1)[:, :600].astype(np.float32)
    np.testing.assert_array_equal(round_to_nearest(w, format, group_size).values()[:, :600], w)


def test_formats_without_codes_and_other_group_sizes_are_request_errors() -> None:
    w = values(2, 64)
    for format, group_size, match in [
        ("w5", 64, "weight format 'w5'"),
        ("bf16", 0, "codes in format 'bf16'"),
        ("bf16", 64, "group_size 64 for bf16"),
        ("w4", 48, "group_size 48 for w4"),
    ]:
        with pytest.raises(RequestError, match=match):
            round_to_nearest(w, format, group_size)
