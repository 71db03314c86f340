"""Random stored bytes: valid, deterministic, of sane size, and padded as the layout says."""

import numpy as np
import pytest

from deepmnn.graph.ir import Weight
from deepmnn.graph.weights import Constant
from deepmnn.quant.pack import block_nbytes, unpack, unpack_weight, weight_nbytes
from deepmnn.quant.random_bytes import PIECE, draw

SHAPES = [(1, 1), (37, 200), (16, 64), (5, 33), (33, 127), (64, 130)]


@pytest.mark.parametrize("dtype", ["w8", "w4"])
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("shape", SHAPES)
def test_padding_is_zero(shape: tuple[int, int], group_size: int, dtype: str) -> None:
    weight = Weight("w", Constant(shape), dtype=dtype, group_size=group_size)
    stored = draw(weight, 0)
    assert stored.nbytes == weight_nbytes(weight)
    rows, cols = -(-shape[0] // 16) * 16, -(-shape[1] // group_size) * group_size
    padded = unpack(stored, dtype, rows, cols, group_size)
    assert not padded[shape[0] :].any()
    assert not padded[:, shape[1] :].any()
    used = rows // 16 * block_nbytes(dtype, shape[1], group_size)
    assert not stored[used:].any()


@pytest.mark.parametrize("dtype", ["w8", "w4"])
def test_values_are_sane_and_deterministic(dtype: str) -> None:
    weight = Weight("w", Constant((4000, 1030)), dtype=dtype, group_size=64)
    stored = draw(weight, 1)
    assert stored.nbytes > PIECE
    values = unpack_weight(weight, stored)
    assert values.std() * np.sqrt(1030) == pytest.approx(1, rel=0.05)
    assert values.mean() * np.sqrt(1030) == pytest.approx(0, abs=0.01)
    np.testing.assert_array_equal(draw(weight, 1), stored)
    assert not np.array_equal(draw(weight, 2), stored)
    weight.name = "v"
    assert not np.array_equal(draw(weight, 1), stored)
