"""Random stored bytes: valid, deterministic, of sane size, and padded as the layout says."""

import numpy as np
import pytest

from deepmnn.graph.ir import Weight
from deepmnn.graph.weights import Constant
from deepmnn.quant.pack import pack_codes, unpack_codes, unpack_weight
from deepmnn.quant.random_bytes import PIECE, draw

SHAPES = [(1, 1), (37, 200), (16, 64), (5, 33), (33, 127), (64, 130), (20, 256), (18, 700)]
FORMATS = [("w8", 256), ("w4", 32), ("w4", 64), ("w4", 128)]


@pytest.mark.parametrize(("dtype", "group_size"), FORMATS)
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
    used = pack_codes(found)
    np.testing.assert_array_equal(stored[: used.size], used)
    assert not stored[used.size :].any()


@pytest.mark.parametrize(("dtype", "group_size"), FORMATS)
def test_values_are_sane_and_deterministic(dtype: str, group_size: int) -> None:
    weight = Weight("w", Constant((4000, 1030)), format=dtype, group_size=group_size)
    stored = draw(weight, 1)
    assert stored.nbytes > PIECE
    multipliers = unpack_codes(stored, dtype, 1030, group_size).multipliers
    assert multipliers is None or np.abs(multipliers).max() == 15
    values = unpack_weight(weight, stored)
    assert values.std() * np.sqrt(1030) == pytest.approx(1, rel=0.05)
    assert values.mean() * np.sqrt(1030) == pytest.approx(0, abs=0.01)
    np.testing.assert_array_equal(draw(weight, 1), stored)
    assert not np.array_equal(draw(weight, 2), stored)
    weight.name = "v"
    assert not np.array_equal(draw(weight, 1), stored)
