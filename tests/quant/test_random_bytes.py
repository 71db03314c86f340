"""Random stored bytes: valid, deterministic, of sane size, and padded as the layout says."""

import numpy as np
import pytest

from deepmnn.graph.ir import Weight
from deepmnn.graph.weights import Constant
from deepmnn.quant.layout import pack, unpack_codes
from deepmnn.quant.random_bytes import PIECE, draw
from deepmnn.quant.store import stored_values
from storage import QUANTIZED_NAMES

SHAPES = [(1, 1), (37, 200), (16, 64), (5, 33), (33, 127), (64, 130), (20, 256), (18, 700)]


@pytest.mark.parametrize("dtype", QUANTIZED_NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_of_padding_are_zero(shape: tuple[int, int], dtype: str) -> None:
    """In value: their scales are 0."""
    weight = Weight("w", Constant(shape), format=dtype)
    stored = draw(weight, 0)
    assert stored.nbytes == weight.nbytes
    rows, cols = shape
    found = unpack_codes(stored, dtype, cols)
    assert not found.scales[rows:].any()
    assert found.scales[:rows].all()
    np.testing.assert_array_equal(stored, pack(found))


@pytest.mark.parametrize("dtype", QUANTIZED_NAMES)
def test_values_are_sane_and_deterministic(dtype: str) -> None:
    weight = Weight("w", Constant((4000, 1030)), format=dtype)
    stored = draw(weight, 1)
    assert stored.nbytes > PIECE
    values = stored_values(weight, stored)
    assert values.std() * np.sqrt(1030) == pytest.approx(1, rel=0.05)
    assert values.mean() * np.sqrt(1030) == pytest.approx(0, abs=0.01)
    np.testing.assert_array_equal(draw(weight, 1), stored)
    assert not np.array_equal(draw(weight, 2), stored)
    weight.name = "v"
    assert not np.array_equal(draw(weight, 1), stored)
