"""Second moments: sums of outer products, whatever the pieces."""

from __future__ import annotations

import numpy as np
import pytest

from deepmnn.errors import RequestError
from deepmnn.quant.moments import Moments


@pytest.mark.parametrize("rows", [1, 7, 4096, 10_000])
def test_moments_are_sums_of_outer_products(rows: int) -> None:
    x = np.random.default_rng(rows).standard_normal((rows, 33)).astype(np.float32)
    moments = Moments(33)
    for piece in np.array_split(x, 3):
        moments.add(piece)
    assert moments.rows == rows
    want = x.T.astype(np.float64) @ x
    np.testing.assert_allclose(moments.total(), want, atol=1e-5 * float(np.abs(want).max()))


def test_what_is_missing_is_summed_with_its_inputs() -> None:
    rng = np.random.default_rng(0)
    x, d = (rng.standard_normal((500, cols)).astype(np.float32) for cols in (33, 7))
    moments = Moments(33, 7)
    for first in range(0, 500, 90):
        moments.add(x[first : first + 90], d[first : first + 90])
    want = d.T.astype(np.float64) @ x
    np.testing.assert_allclose(moments.missed(), want, atol=1e-5 * float(np.abs(want).max()))
    assert moments.corrects
    assert not Moments(33).corrects


@pytest.mark.parametrize("fault", [np.nan, np.inf])
def test_activations_that_are_no_numbers_are_refused(fault: float) -> None:
    x = np.ones((3, 4), np.float32)
    x[1, 2] = fault
    moments = Moments(4)
    moments.add(x)
    with pytest.raises(RequestError, match="NaN or infinity"):
        moments.total()


def test_a_missing_value_that_is_no_number_is_refused() -> None:
    moments = Moments(4, 1)
    moments.add(np.ones((3, 4), np.float32), np.array([[1], [np.nan], [1]], np.float32))
    with pytest.raises(RequestError, match="NaN or infinity"):
        moments.missed()
