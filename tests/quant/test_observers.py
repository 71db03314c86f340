"""Static ranges: histograms against numpy's, thresholds against brute force with torch's KL."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from deepmnn.errors import RequestError
from deepmnn.quant.observers import (
    BINS,
    LEVELS,
    METHODS,
    Histogram,
    StaticRange,
    View,
    beyond,
    divergences,
    squared_errors,
    static_range,
    thresholds,
)

F32 = np.ndarray

SAMPLES: dict[str, Callable[[np.random.Generator], F32]] = {
    "normal": lambda random: random.normal(0, 3, 40_000),
    "laplace": lambda random: random.laplace(0, 1e-3, 40_000),
    "heavy tail": lambda random: random.standard_t(2, 40_000),
    "relu": lambda random: np.maximum(random.normal(-1, 1, 40_000), 0),
    "outlier": lambda random: np.append(random.normal(0, 1, 40_000), 500.0),
    "two values": lambda random: random.choice([-2.0, 0.0, 2.0, 7.0], 500),
    "few": lambda random: random.normal(0, 1, 5),
}


def values_of(name: str) -> F32:
    return SAMPLES[name](np.random.default_rng(7)).astype(np.float32)


def histogram_of(x: F32) -> Histogram:
    histogram = Histogram()
    histogram.add(x)
    return histogram


def level_of_bins(bins: int) -> np.ndarray:
    """Where the middle of each of the first bins is rounded to, half a level up."""
    middles = 2 * np.arange(bins) + 1  # in halves of a bin
    return (middles * LEVELS + bins) // (2 * bins)


def brute_divergence(view: View, bins: int) -> float:
    """TensorRT's, written out: a reference with the outliers, a candidate expanded from levels."""
    reference = view.counts[:bins].copy()
    clipped = view.total - reference.sum()
    reference[-1] += clipped
    levels = level_of_bins(bins)
    mass = np.bincount(levels, view.counts[:bins], LEVELS + 1)
    members = np.bincount(levels, reference > 0, LEVELS + 1)
    candidate = np.where(reference > 0, (mass / np.maximum(members, 1))[levels], 0)
    if not candidate.any():
        return float("inf")
    if clipped and not mass[LEVELS]:
        candidate[-1] = 1
    p, q = (torch.tensor(x[reference > 0] / x.sum()) for x in (reference, candidate))
    return float(torch.nn.functional.kl_div(q.log(), p, reduction="sum"))


def brute_squares(view: View, bins: int) -> float:
    middles = np.arange(len(view.counts)) + 0.5
    step = bins / LEVELS
    stored = np.minimum(np.rint(middles / step), LEVELS) * step
    inside = (view.counts * (middles - stored) ** 2).sum()
    count, first, second = view.beyond
    beyond = second - 2 * bins * first + bins**2 * count
    return float((inside + beyond) * view.width**2 / view.total)


MEASURES = (("kl", divergences, brute_divergence), ("mse", squared_errors, brute_squares))


@pytest.mark.parametrize("name", SAMPLES)
def test_views_are_numpys_histograms(name: str) -> None:
    x = values_of(name)
    histogram = histogram_of(x)
    magnitudes = np.abs(x[x != 0]).astype(np.float64)
    assert histogram.zeros == np.count_nonzero(x == 0)
    assert histogram.count == x.size
    assert histogram.largest == magnitudes.max()
    views = list(histogram.views())
    for octave, view in enumerate(views):
        top = view.width * 2 * BINS
        assert top == 2.0 ** (np.floor(np.log2(magnitudes.max())) + 1 - octave)
        want, _ = np.histogram(magnitudes[magnitudes < top], 2 * BINS, (0, top))
        np.testing.assert_array_equal(view.counts, want)
        beyond = magnitudes[magnitudes >= top] / view.width
        assert view.beyond[0] == beyond.size <= x.size / 10
        assert view.beyond[1:] == pytest.approx((beyond.sum(), (beyond**2).sum()), rel=1e-3)
    below = magnitudes < views[-1].width * BINS
    assert np.mean(below) < 0.9


@pytest.mark.parametrize("name", SAMPLES)
def test_order_and_pieces_do_not_matter(name: str) -> None:
    x = values_of(name)
    whole = histogram_of(x)
    for order in (np.sort(np.abs(x)), -np.sort(-x), np.random.default_rng(1).permutation(x)):
        pieces = Histogram()
        for piece in np.array_split(order, 23):
            pieces.add(piece)
        np.testing.assert_array_equal(pieces.counts, whole.counts)
        assert (pieces.zeros, pieces.small) == (whole.zeros, whole.small)


def test_magnitudes_of_all_of_float32() -> None:
    histogram = Histogram()
    smallest, largest = np.float32(1e-45), np.finfo(np.float32).max
    for value in (0.0, smallest, 2.0**-126, 1.0, -largest, smallest):
        histogram.add(np.array([[value]], np.float32))
        assert histogram.count == histogram.zeros + histogram.small + histogram.counts.sum()
        assert histogram.counts.any() == (histogram.largest >= 2.0**-126)
    assert histogram.zeros == 1
    assert histogram.small == 4
    assert histogram.counts[-1, -1] == 1
    assert static_range(histogram, "minmax").threshold == float(largest)


@pytest.mark.parametrize("name", SAMPLES)
def test_thresholds_are_the_best_there_are(name: str) -> None:
    histogram = histogram_of(values_of(name))
    tried = list(thresholds(list(histogram.views())))
    for method, measure, brute in MEASURES:
        found = static_range(histogram, method)
        others = []
        for view, bins in tried:
            some = bins[::29]
            want = [brute(view, int(n)) for n in some]
            others += want
            np.testing.assert_allclose(measure(view, some), want, rtol=1e-9, atol=1e-11)
            at = np.minimum(bins * view.width, histogram.largest) == found.threshold
            if at.any():
                cost = brute(view, int(bins[at][0]))
                kl = brute_divergence(view, int(bins[at][0]))
        assert cost <= min(others) * (1 + 1e-9) + 1e-11
        assert found.divergence == pytest.approx(kl, abs=1e-9)


def test_squared_error_is_that_of_quantised_values() -> None:
    x = values_of("normal")
    histogram = histogram_of(x)
    best = static_range(histogram, "mse").threshold

    def error(threshold: float) -> float:
        step = threshold / LEVELS
        return float(np.square(x - np.clip(np.rint(x / step), -LEVELS, LEVELS) * step).mean())

    tried = np.abs(x).max() * np.linspace(0.3, 1, 141)
    assert error(best) <= 1.005 * min(map(error, tried))


@pytest.mark.parametrize("name", SAMPLES)
def test_thresholds_of_largest_and_percentile(name: str) -> None:
    x = values_of(name)
    histogram = histogram_of(x)
    magnitudes = np.abs(x[x != 0])
    assert static_range(histogram, "minmax").threshold == magnitudes.max()
    want = np.percentile(magnitudes, 99.99, method="inverted_cdf")
    assert static_range(histogram, "percentile").threshold == pytest.approx(want, rel=1 / BINS)


def test_an_outlier_is_clipped_but_by_minmax() -> None:
    histogram = histogram_of(values_of("outlier"))
    found = {method: static_range(histogram, method) for method in METHODS}
    assert found["minmax"].threshold == 500
    assert found["minmax"].divergence > 0.1
    assert found["kl"].threshold < 20
    assert found["kl"].divergence == min(each.divergence for each in found.values())


def test_what_is_nearly_normal_keeps_the_bound() -> None:
    histogram = Histogram()
    random = np.random.default_rng(3)
    for _ in range(10):
        histogram.add(random.normal(0, 2, 100_000).astype(np.float32))
    ranges = {method: static_range(histogram, method) for method in METHODS}
    assert not beyond(ranges)
    assert list(beyond(ranges, 0)) == sorted(ranges, key=lambda name: -ranges[name].divergence)


def test_what_exceeds_the_bound_is_named_the_worst_first() -> None:
    ranges = {
        "good": StaticRange(1.0, 0.0199),
        "bad": StaticRange(1.0, 0.02),
        "worse": StaticRange(1.0, float("inf")),
    }
    assert list(beyond(ranges)) == ["worse", "bad"]
    assert list(beyond(ranges, 0.5)) == ["worse"]


@pytest.mark.parametrize("x", [np.zeros((0, 4)), np.zeros((3, 4))])
def test_nothing_but_zeros(x: F32) -> None:
    histogram = histogram_of(x.astype(np.float32))
    assert histogram.zeros == x.size
    for method in METHODS:
        assert static_range(histogram, method) == StaticRange(0.0, 0.0)


@pytest.mark.parametrize("method", METHODS)
def test_a_constant_is_exact(method: str) -> None:
    found = static_range(histogram_of(np.full(100, -3.0, np.float32)), method)
    assert found.threshold == pytest.approx(3.0, rel=1e-3)
    assert method == "mse" or found == StaticRange(3.0, 0.0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number(value: float) -> None:
    x = np.ones(3, np.float32)
    histogram = histogram_of(x)
    x[1] = value
    with pytest.raises(RequestError, match="NaN or infinity"):
        histogram.add(x)
    assert histogram.counts.sum() == 3


def test_an_unknown_method() -> None:
    with pytest.raises(RequestError, match="kl, mse, percentile, minmax"):
        static_range(Histogram(), "median")
