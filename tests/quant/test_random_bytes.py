"""Random stored bytes: valid, deterministic, of sane size, and padded as the layout says."""

import numpy as np
import pytest

from deepmnn.graph.ir import Weight
from deepmnn.graph.weights import Constant
from deepmnn.quant.layout import pack, unpack_codes
from deepmnn.quant.random_bytes import PIECE, draw
from deepmnn.quant.store import stored_values
from storage import QUANTIZED

SHAPES = [(1, 1), (37, 200), (16, 64), (5, 33), (33, 127), (64, 130), (20, 256), (18, 700)]


@pytest.mark.parametrize(("dtype", "group_size"), QUANTIZED)
@pytest.mark.parametrize("shape", SHAPES)
def test_padding_is_zero(shape: tuple[int, int], group_size: int, dtype: str) -> None:
    weight = Weight("w", Constant(shape), format=dtype, group_size=group_size)
    stored = draw(weight, 0)
    assert stored.nbytes == weight.nbytes
    rows, cols = shape
    found = unpack_codes(stored, dtype, cols, group_size)
    assert not found.codes[:, cols:].any()
    assert not found.codes[rows:].any()
    assert not found.scales[rows:].any()
    assert found.scales[:rows].all()
    if found.multipliers is not None:
        assert not found.multipliers[rows:].any()
        assert found.multipliers[:rows].all()
    np.testing.assert_array_equal(stored, pack(found))


@pytest.mark.parametrize(("dtype", "group_size"), QUANTIZED)
def test_values_are_sane_and_deterministic(dtype: str, group_size: int) -> None:
    weight = Weight("w", Constant((4000, 1030)), format=dtype, group_size=group_size)
    stored = draw(weight, 1)
    assert stored.nbytes > PIECE
    multipliers = unpack_codes(stored, dtype, 1030, group_size).multipliers
    assert multipliers is None or np.abs(multipliers).max() == 15
    values = stored_values(weight, stored)
    assert values.std() * np.sqrt(1030) == pytest.approx(1, rel=0.05)
    assert values.mean() * np.sqrt(1030) == pytest.approx(0, abs=0.01)
    np.testing.assert_array_equal(draw(weight, 1), stored)
    assert not np.array_equal(draw(weight, 2), stored)
    weight.name = "v"
    assert not np.array_equal(draw(weight, 1), stored)
