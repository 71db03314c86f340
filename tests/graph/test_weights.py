from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from deepmnn.errors import CheckpointError
from deepmnn.formats import BLOCK_ROWS, Codes
from deepmnn.graph.ir import Weight
from deepmnn.graph.weights import (
    F32,
    Concat,
    Constant,
    Expr,
    Interleave,
    PadHeads,
    Slice,
    Tensor,
)
from deepmnn.quant.rounding import round_to_nearest
from deepmnn.quant.store import store, store_codes
from storage import QUANTIZED_NAMES


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


# ------------------------------------------------------------------------------------ codes


class Rounded:
    """Random matrices, and the codes that rounding them gives."""

    def __init__(self, format: str, **others: str | None) -> None:
        self._shapes: dict[str, tuple[int, int]] = {}
        self._stored = format
        self._others = others

    def tensor(self, name: str, *shape: int) -> Tensor:
        self._shapes[name] = (shape[0], shape[1])
        return Tensor(name, shape)

    def read(self, name: str) -> F32:
        seed = [ord(c) for c in name]
        return np.random.default_rng(seed).standard_normal(self._shapes[name], np.float32)

    def codes(self, name: str) -> Codes | None:
        stored = self._others.get(name, self._stored)
        return None if stored is None else round_to_nearest(self.read(name), stored)


def movers(source: Rounded, rows: int, cols: int) -> dict[str, Expr]:
    """Every expression that only moves rows, and some inside another."""
    a, b, c = (source.tensor(name, rows, cols) for name in "abc")
    heads = source.tensor("h", 3 * rows, cols)
    return {
        "tensor": a,
        "concat": Concat((a, source.tensor("other", 5, cols), b)),
        "slice": Slice(heads, 1, rows, heads=3),
        "row slice": Slice(a, 0, 1),
        "padded heads": PadHeads(heads, heads=3),
        "interleaved": Interleave((a, b, c)),
        "nested": Concat((PadHeads(Slice(heads, 0, rows - 1, heads=3), 3), Interleave((b, a)))),
    }


@pytest.mark.parametrize("format", QUANTIZED_NAMES)
@pytest.mark.parametrize("shape", [(16, 64), (19, 300), (2, 40), (33, 257)])
def test_moving_codes_is_rounding_what_was_moved(format: str, shape: tuple[int, int]) -> None:
    """Byte for byte, zero rows included."""
    source = Rounded(format)
    for name, expr in movers(source, *shape).items():
        weight = Weight(name, expr, format=format)
        codes = expr.codes(source)
        assert codes is not None
        got = store_codes(weight, codes)
        np.testing.assert_array_equal(got, store(weight, expr.read(source)), err_msg=name)


def test_no_codes_where_numbers_must_be_computed_or_parts_differ() -> None:
    source = Rounded("w4", plain=None, w8="w8", w5="w5")
    a, plain, w8, w5 = (source.tensor(name, 32, 64) for name in ("a", "plain", "w8", "w5"))
    assert Concat((a, a)).codes(source) is not None
    for expr in (
        plain,
        Concat((a, plain)),
        Interleave((plain, a)),
        Slice(plain, 0, 2),
        Concat((a, w8)),
        Concat((a, w5)),
        Concat((a, Constant((2, 64)))),
    ):
        assert expr.codes(source) is None, expr


@pytest.mark.parametrize("part", ["levels", "scales"])
def test_codes_of_another_shape_are_refused(part: str) -> None:
    source = Rounded("w4")
    tensor = source.tensor("a", 20, 300)
    good = tensor.codes(source)
    assert good is not None
    for cut in (np.s_[1:], np.s_[:, 1:]):
        bad = replace(good, **{part: getattr(good, part)[cut]})
        source.codes = lambda name, bad=bad: bad  # type: ignore[method-assign]
        with pytest.raises(CheckpointError, match=r"'a' has shape .*config\.json"):
            Concat((tensor, tensor)).codes(source)
