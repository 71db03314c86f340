"""linear against numpy: every layout, epilogue and odd size, on each instruction set."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest

from deepmnn import _core
from deepmnn._core import kernels

FORMATS = [("f32", 0), ("bf16", 0), ("w8", 32), ("w8", 64), ("w4", 32), ("w4", 64), ("w4", 128)]
UNTOUCHED = 123.0


@dataclass
class Problem:
    """A packed matrix, the values it stands for, and inputs."""

    dtype: str
    group_size: int
    packed: np.ndarray
    w: np.ndarray
    x: np.ndarray

    @classmethod
    def random(cls, rng, dtype, group_size, rows, cols, n):
        w = rng.standard_normal((rows, cols)).astype(np.float32)
        packed = _core.quantize_pack(w, dtype, group_size)
        w = _core.unpack(packed, dtype, rows, cols, group_size)
        return cls(dtype, group_size, packed, w, rng.standard_normal((n, cols)).astype(np.float32))

    def run(self, isa, epilogue="store", y=None, out_cols=None, **options):
        rows, cols = self.w.shape
        out_cols = rows if out_cols is None else out_cols
        index = options.pop("index", None)
        n = len(self.x) if index is None else len(index)
        if y is None:
            y = np.full((n, out_cols + 3), UNTOUCHED, np.float32)
        blocks = -(-rows // 16) // (2 if epilogue == "swiglu" else 1)
        begin, end = options.pop("blocks", (0, blocks))
        bias = options.pop("bias", None)
        return kernels.linear(
            *(self.x, self.packed, self.dtype, rows, cols, self.group_size, y, out_cols),
            *(epilogue, bias, index, begin, end, isa),
        )

    def inputs(self):
        """x as the kernel sees it: quantised for integer weights (checked on its own)."""
        if not self.group_size:
            return self.x.astype(np.float64)
        codes, scales, _ = kernels.quantize_rows(self.x, self.group_size, "scalar")
        wide = codes.astype(np.float64) * np.repeat(scales, self.group_size, axis=1)
        return wide[:, : self.x.shape[1]]

    def expected(self):
        return self.inputs() @ self.w.T.astype(np.float64)

    def tolerance(self):
        return 1e-6 * (np.abs(self.x).sum(axis=1).max(initial=1)) * (np.abs(self.w).max() + 1)


@pytest.mark.parametrize(("dtype", "group_size"), FORMATS)
@pytest.mark.parametrize(
    ("rows", "cols"), [(1, 1), (16, 64), (17, 65), (50, 127), (83, 200), (70, 601)]
)
def test_store_for_any_number_of_rows(isa, rng, dtype, group_size, rows, cols):
    for n in [0, 1, 2, 3, 4, 5, 6, 7, 8, 11, 13, 19, 40]:
        problem = Problem.random(rng, dtype, group_size, rows, cols, n)
        y = problem.run(isa)
        np.testing.assert_allclose(
            y[:, :rows], problem.expected(), rtol=0, atol=problem.tolerance()
        )
        assert (y[:, rows:] == UNTOUCHED).all()


@pytest.mark.parametrize(("dtype", "group_size"), FORMATS)
def test_every_small_width(isa, rng, dtype, group_size):
    for cols, n in itertools.product([*range(1, 18), 31, 33, 63, 95], [1, 3]):
        problem = Problem.random(rng, dtype, group_size, 20, cols, n)
        y = problem.run(isa)[:, :20]
        np.testing.assert_allclose(y, problem.expected(), rtol=0, atol=problem.tolerance())


@pytest.mark.parametrize(("dtype", "group_size"), FORMATS)
@pytest.mark.parametrize("n", [1, 2, 9])
def test_bias_accumulate_and_out_cols(isa, rng, dtype, group_size, n):
    problem = Problem.random(rng, dtype, group_size, 48, 70, n)
    bias = rng.standard_normal(37).astype(np.float32)
    y = problem.run(isa, out_cols=37, bias=bias)
    expected = problem.expected()[:, :37]
    np.testing.assert_allclose(y[:, :37], expected + bias, rtol=0, atol=problem.tolerance())
    assert (y[:, 37:] == UNTOUCHED).all()
    before = rng.standard_normal((n, 37)).astype(np.float32)
    y = problem.run(isa, "accumulate", y=before, out_cols=37)
    np.testing.assert_allclose(y, expected + before, rtol=0, atol=problem.tolerance())


@pytest.mark.parametrize(("dtype", "group_size"), FORMATS)
@pytest.mark.parametrize("n", [1, 2, 5, 14])
@pytest.mark.parametrize("intermediate_size", [16, 21, 80])
def test_swiglu(isa, rng, dtype, group_size, n, intermediate_size):
    blocks = -(-intermediate_size // 16)
    problem = Problem.random(rng, dtype, group_size, blocks * 32, 66, n)
    y = problem.run(isa, "swiglu", out_cols=intermediate_size)
    halves = problem.expected().reshape(n, blocks, 2, 16)
    gate, up = (halves[:, :, i].reshape(n, -1)[:, :intermediate_size] for i in range(2))
    expected = gate / (1 + np.exp(-gate)) * up
    np.testing.assert_allclose(
        y[:, :intermediate_size], expected, rtol=0, atol=problem.tolerance() * 20
    )
    assert (y[:, intermediate_size:] == UNTOUCHED).all()


@pytest.mark.parametrize(("dtype", "group_size"), FORMATS)
@pytest.mark.parametrize(("cols", "n"), [(40, 7), (300, 25)])
def test_gathered_rows_and_block_ranges(isa, rng, dtype, group_size, cols, n):
    problem = Problem.random(rng, dtype, group_size, 75, cols, 6)
    index = rng.integers(0, 6, n).astype(np.int32)
    whole = problem.run(isa, index=index)
    np.testing.assert_allclose(
        whole[:, :75], problem.expected()[index], rtol=0, atol=problem.tolerance()
    )
    y = np.full_like(whole, UNTOUCHED)
    for blocks in [(3, 5), (0, 1), (1, 3)]:
        assert (y[:, 16 * blocks[0] : min(16 * blocks[1], 75)] == UNTOUCHED).all()
        y = problem.run(isa, index=index, blocks=blocks, y=y, out_cols=75)
    assert np.array_equal(y, whole)
    assert np.array_equal(problem.run(isa, index=index, blocks=(2, 2), y=y, out_cols=75), y)


@pytest.mark.parametrize(("dtype", "group_size"), FORMATS)
@pytest.mark.parametrize(("cols", "n"), [(99, 13), (300, 40), (70, 300)])
def test_a_row_does_not_depend_on_its_neighbours(isa, rng, dtype, group_size, cols, n):
    """Batching must not change an answer, not even its last bit."""
    for epilogue in ("store", "swiglu"):
        problem = Problem.random(rng, dtype, group_size, 96, cols, n)
        together = problem.run(isa, epilogue, out_cols=48)
        for first, last in [(0, 1), (1, 3), (4, 9), (n - 1, n), (n // 3, n)]:
            some = Problem(dtype, group_size, problem.packed, problem.w, problem.x[first:last])
            assert np.array_equal(some.run(isa, epilogue, out_cols=48), together[first:last])


@pytest.mark.parametrize(("dtype", "group_size"), FORMATS)
def test_inputs_may_be_views(isa, rng, dtype, group_size):
    problem = Problem.random(rng, dtype, group_size, 33, 50, 5)
    expected = problem.run(isa)
    room = np.zeros((5, 61), np.float32)
    room[:, 3:53] = problem.x
    problem.x = room[:, 3:53]
    assert np.array_equal(problem.run(isa), expected)


def extreme_codes(dtype, group_size, rows, cols):
    """A packed matrix whose codes are all at one end, by construction of its bytes."""
    nbytes = _core.packed_nbytes(dtype, rows, cols, group_size)
    group = 16 * (group_size if dtype == "w8" else group_size // 2)
    one = np.ones(16, np.float16).view(np.uint8)
    for byte in (0x00, 0xFF):
        block = np.concatenate([np.full(group, byte, np.uint8), one])
        packed = np.tile(block, nbytes // block.size + 1)[:nbytes]
        yield packed, np.float64({"w8": {0: -128, 255: 127}, "w4": {0: -8, 255: 7}}[dtype][byte])


@pytest.mark.parametrize(("dtype", "group_size"), [f for f in FORMATS if f[1]])
@pytest.mark.parametrize("n", [1, 3, 9, 20])
def test_no_saturation_at_the_extremes(isa, dtype, group_size, n):
    """Largest weights times largest activations: int16 pairs would overflow if summed naively."""
    cols = 3 * group_size
    for packed, code in extreme_codes(dtype, group_size, 16, cols):
        w = np.full((16, cols), code, np.float32)
        for value in (127.0, -127.0):  # scale 1, codes at +-127: exact
            x = np.full((n, cols), value, np.float32)
            y = Problem(dtype, group_size, packed, w, x).run(isa)
            assert (y[:, :16] == code * value * cols).all()


@pytest.mark.parametrize(("dtype", "group_size"), [f for f in FORMATS if f[1]])
def test_integer_sums_agree_to_the_bit(isa, rng, dtype, group_size):
    """With all scales 1 the result is the integer sum itself: exact on every instruction set."""
    packed, _ = next(iter(extreme_codes(dtype, group_size, 32, group_size)))
    body = 16 * (group_size if dtype == "w8" else group_size // 2)
    for start in (0, body + 32):
        packed[start : start + body] = rng.integers(0, 256, body)
    w = _core.unpack(packed, dtype, 32, group_size, group_size)
    x = rng.integers(-127, 128, (7, group_size)).astype(np.float32)
    x[:, 0] = 127
    y = Problem(dtype, group_size, packed, w, x).run(isa)
    assert np.array_equal(y[:, :32], x @ w.T)


@pytest.mark.parametrize("fault", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("dtype", "group_size"), FORMATS)
def test_faults_in_the_input_are_not_lost(isa, rng, dtype, group_size, fault):
    problem = Problem.random(rng, dtype, group_size, 16, 80, 3)
    problem.x[1, 5] = fault
    y = problem.run(isa)[:, :16]
    assert not np.isfinite(y[1]).any()
    assert np.isfinite(y[[0, 2]]).all()
