from __future__ import annotations

import numpy as np
import pytest

from deepmnn import _core
from deepmnn.errors import RequestError


def sample(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, *, u, isa=""):
    return _core.sample(logits, temperature, top_k, top_p, min_p, u, isa)


def kept_probabilities(logits, temperature, top_k, top_p, min_p):
    """The distribution that is drawn from, by a full sort."""
    p = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    order = np.lexsort((np.arange(len(p)), -logits))
    keep = order[: top_k or len(order)]
    shares = np.cumsum(p[keep]) / p[keep].sum()
    keep = keep[: np.searchsorted(shares, top_p - 1e-9) + 1]
    keep = keep[p[keep] >= min_p]
    out = np.zeros(len(p))
    out[keep] = p[keep]
    return out / out.sum()


PARAMETERS = [
    (1.0, 0, 1.0, 0.0),
    (0.6, 0, 0.95, 0.0),
    (1.5, 5, 1.0, 0.0),
    (0.8, 40, 0.9, 0.0),
    (1.0, 0, 1.0, 0.1),
    (1.0, 10, 0.8, 0.2),
    (1.0, 1, 1.0, 0.0),
    (1.0, 0, 1e-6, 0.0),
    (1.0, 10**6, 1.0, 1.0),
]


@pytest.mark.parametrize("parameters", PARAMETERS)
@pytest.mark.parametrize("n", [1, 2, 50, 1000])
def test_walks_the_distribution(isa, rng, n, parameters):
    logits = (rng.standard_normal(n) * 3).astype(np.float32)
    steps = np.cumsum(kept_probabilities(logits, *parameters))
    for u in np.linspace(0, 0.9999, 101):
        if np.abs(steps - u).min() < 1e-5:
            continue  # rounding decides
        got = sample(logits, *parameters, u=u, isa=isa)
        assert got == np.searchsorted(steps, u, side="right")


@pytest.mark.parametrize("parameters", PARAMETERS)
@pytest.mark.parametrize("shape", ["normal", "ties", "masked", "peaked", "ascending"])
def test_a_whole_vocabulary(isa, rng, shape, parameters):
    logits = (rng.standard_normal(151_936) * 3).astype(np.float32)
    if shape == "ties":
        logits = np.round(logits)
    elif shape == "masked":
        logits[rng.random(len(logits)) < 0.9] = -np.inf
    elif shape == "peaked":
        logits[1000:1010] += 15
    elif shape == "ascending":
        logits.sort()
    steps = np.cumsum(kept_probabilities(logits, *parameters))
    for u in (0.0, 0.123, 0.5, 0.77, 0.9999):
        if np.abs(steps - u).min() > 1e-5:
            got = sample(logits, *parameters, u=u, isa=isa)
            assert got == np.searchsorted(steps, u, side="right")


def test_ties_go_to_the_lower_index(isa):
    logits = np.zeros(20, np.float32)
    assert sample(logits, 0.0, u=0.9, isa=isa) == 0
    assert sample(logits, top_k=3, u=0.99, isa=isa) == 2
    assert sample(logits, top_p=0.25, u=0.99, isa=isa) == 4
    assert sample(logits, u=0.99, isa=isa) == 19


def test_masked_logits_are_never_drawn(isa):
    logits = np.full(50, -np.inf, np.float32)
    logits[[7, 31]] = [1, 1]
    for options in ({}, {"top_k": 3}, {"top_p": 0.999}, {"min_p": 0.5}):
        found = {sample(logits, **options, u=u / 10, isa=isa) for u in range(10)}
        assert found == {7, 31}
    logits[31] = -300
    assert {sample(logits, top_p=0.9, u=u / 10, isa=isa) for u in range(10)} == {7}


@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"top_p": 0.9}, {"min_p": 0.1}])
def test_the_smallest_temperature_takes_the_best(isa, options):
    logits = np.array([1e6, 1e6 - 1, -1e6, 0], np.float32)
    for temperature in (1e-45, 1e-38, 1e-3):
        assert sample(logits, temperature, **options, u=0.999, isa=isa) == 0


def test_frequencies(rng):
    logits = np.array([0, 1, 2, -1, 0.5], np.float32)
    draws = [sample(logits, 0.9, 4, 0.97, 0.0, u=u) for u in rng.random(20_000) * 0.999999]
    found = np.bincount(draws, minlength=5) / len(draws)
    np.testing.assert_allclose(found, kept_probabilities(logits, 0.9, 4, 0.97, 0.0), atol=0.015)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"temperature": -1.0}, "temperature -1"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"temperature": float("inf")}, "temperature inf"),
        ({"top_k": -1}, "top_k -1"),
        ({"top_p": 0.0}, "top_p 0"),
        ({"top_p": 1.5}, "top_p 1.5"),
        ({"min_p": -0.1}, "min_p -0.1"),
        ({"u": 1.0}, "u 1"),
        ({"logits": np.array([1, np.nan], np.float32)}, "NaN at index 1"),
        ({"logits": np.full(3, -np.inf, np.float32)}, "3 logits"),
        ({"logits": np.array([1, np.inf], np.float32)}, "2 logits"),
        ({"logits": np.zeros(0, np.float32)}, "0 logits"),
        ({"logits": np.zeros((2, 2), np.float32)}, "logits is float32 [2, 2]"),
        ({"logits": np.zeros(2)}, "logits is float64 [2]"),
    ],
)
def test_bad_calls_raise_typed_errors(options, found):
    arguments = {"logits": np.zeros(4, np.float32), "u": 0.5, **options}
    with pytest.raises(RequestError) as caught:
        sample(**arguments)
    assert found in str(caught.value)
