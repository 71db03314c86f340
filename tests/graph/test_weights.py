from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from deepmnn.formats import BLOCK_ROWS
from deepmnn.graph.weights import F32, Concat, Expr, Interleave, Tensor


class Numbers:
    """Tensors of consecutive numbers, made anew at every read."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape

    def read(self, name: str) -> F32:
        size = int(np.prod(self._shape))
        return np.arange(size, dtype=np.float32).reshape(self._shape) + int(name)


def parts(*shape: int) -> tuple[Expr, ...]:
    return tuple(Tensor(str(1000 * number), shape) for number in range(3))


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 40])
def test_interleave_deals_out_padded_blocks(rows: int) -> None:
    source = Numbers((rows, 3))
    got = Interleave(parts(rows, 3)).read(source)
    for number in range(3):
        blocks = got.reshape(-1, 3, BLOCK_ROWS, 3)[:, number].reshape(-1, 3)
        np.testing.assert_array_equal(blocks[:rows], source.read(str(1000 * number)))
        assert not blocks[rows:].any()


@pytest.mark.parametrize("kind", [Concat, Interleave])
def test_only_one_part_is_in_memory_twice(kind: type[Concat | Interleave]) -> None:
    shape = (16 * 64, 256)
    expr, source = kind(parts(*shape)), Numbers(shape)
    tracemalloc.start()
    try:
        nbytes = expr.read(source).nbytes
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    making = 2 * nbytes // 3  # Numbers.read holds a part and its sum at once
    assert peak < nbytes + making + 100_000
