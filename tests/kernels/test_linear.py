"""linear against numpy: every layout, epilogue and odd size, on each instruction set."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest

from deepmnn import _core
from deepmnn._core import kernels
from deepmnn.formats import Codes, named
from deepmnn.quant import pack

QUANTIZED = [("w8", 256), ("w4", 32), ("w4", 64), ("w4", 128)]
FORMATS = [("f32", 0), ("bf16", 0), *QUANTIZED]
PANEL = 256
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

    @classmethod
    def quantized(cls, quantized, rows, cols, x):
        """Of codes, multipliers and scales as they are."""
        packed = pack.pack_codes(quantized)
        packed = np.concatenate([packed, np.zeros(-packed.size % 64, np.uint8)])
        w = quantized.values()[:rows, :cols]
        return cls(quantized.format, quantized.group_size, packed, w, x)

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

    def panel_products(self):
        """What each panel adds to y, float64 [panels, n, rows]: its exact sum of integers times the
        weight's scale, rounded to float32, and that times the activations' scale, not rounded.
        """
        rows, cols = self.w.shape
        codes, scales, *_ = kernels.quantize_rows(self.x, "scalar")  # checked on their own
        weight = pack.unpack_codes(self.packed, self.dtype, cols, self.group_size)
        weight_scales = weight.scales[:rows].astype(np.float32)
        integers = np.zeros((rows, codes.shape[1]))
        integers[:, : weight.codes.shape[1]] = weight.codes[:rows]
        if weight.multipliers is not None:
            multipliers = np.repeat(weight.multipliers[:rows], self.group_size, axis=1)
            integers[:, : multipliers.shape[1]] *= multipliers
            weight_scales /= 16
        shape = scales.shape[1], PANEL
        x, w = (m.reshape(len(m), *shape).swapaxes(0, 1) for m in (codes, integers))
        sums = x.astype(np.float64) @ w.swapaxes(1, 2)
        products = sums.astype(np.float32) * weight_scales.T[:, None, :]
        return products.astype(np.float64) * scales.T[:, :, None].astype(np.float64)

    def expected(self):
        if not self.group_size:
            return self.x.astype(np.float64) @ self.w.T.astype(np.float64)
        return self.panel_products().sum(axis=0)

    def tolerance(self):
        if not self.group_size:
            return 1e-6 * (np.abs(self.x).sum(axis=1).max(initial=1)) * (np.abs(self.w).max() + 1)
        products = np.abs(self.panel_products())
        return 2e-7 * len(products) * products.sum(axis=0).max(initial=1)


@pytest.mark.parametrize(("dtype", "group_size"), FORMATS)
@pytest.mark.parametrize(
    ("rows", "cols"), [(1, 1), (16, 64), (17, 65), (50, 127), (83, 200), (33, 290), (70, 601)]
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
    for cols, n in itertools.product([*range(1, 18), 31, 33, 63, 95, 256, 257], [1, 3]):
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
@pytest.mark.parametrize(("cols", "n"), [(99, 13), (600, 40), (70, 300)])
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


def matrix(dtype, group_size, rows, cols, codes, multipliers):
    """A matrix of whole blocks with these codes and multipliers (drawn by functions of a shape);
    scales are such that values are their products, or in w8 the codes.
    """
    columns = named(dtype).stored_cols(cols, group_size)
    drawn = codes((rows, columns)).astype(np.int8)
    drawn[:, cols:] = 0
    panels = -(-cols // PANEL)
    if dtype == "w8":
        return Codes(dtype, drawn, None, np.ones((rows, panels), np.float16), group_size)
    multiplied = multipliers((rows, columns // group_size)).astype(np.int8)
    return Codes(dtype, drawn, multiplied, np.full((rows, panels), 16, np.float16), group_size)


@pytest.mark.parametrize(("dtype", "group_size"), QUANTIZED)
@pytest.mark.parametrize("cols", [96, 256, 601])
@pytest.mark.parametrize("n", [1, 3, 9, 20])
def test_no_saturation_at_the_extremes(isa, dtype, group_size, cols, n):
    """Largest weights times largest activations: int16 pairs would overflow if summed naively."""
    half = named(dtype).offset
    multipliers = [1] if dtype == "w8" else [15, -15]
    for code, multiplier, x in itertools.product((-half, half - 1), multipliers, (127.0, -127.0)):
        problem = Problem.quantized(
            matrix(
                *(dtype, group_size, 16, cols),
                lambda shape, code=code: np.full(shape, code),
                lambda shape, multiplier=multiplier: np.full(shape, multiplier),
            ),
            *(16, cols),
            np.full((n, cols), x, np.float32),  # scale 1, codes at +-127: exact
        )
        assert (problem.run(isa)[:, :16] == code * multiplier * x * cols).all()


@pytest.mark.parametrize(("dtype", "group_size"), QUANTIZED)
@pytest.mark.parametrize("cols", [33, 256, 545])
@pytest.mark.parametrize("n", [1, 4, 7, 30])
def test_integer_sums_agree_to_the_bit(isa, rng, dtype, group_size, cols, n):
    """With all scales 1 the result is the integer sum itself: exact on every instruction set."""
    half = named(dtype).offset
    quantized = matrix(
        *(dtype, group_size, 48, cols),
        lambda shape: rng.integers(-half, half, shape),
        lambda shape: rng.integers(-15, 16, shape),
    )
    x = rng.integers(-127, 128, (n, cols)).astype(np.float32)
    x[:, ::PANEL] = 127
    problem = Problem.quantized(quantized, 48, cols, x)
    assert np.array_equal(problem.run(isa)[:, :48], x.astype(np.float64) @ problem.w.T)


@pytest.mark.parametrize(("dtype", "group_size"), QUANTIZED)
@pytest.mark.parametrize("n", [1, 5, 30])
def test_one_panel_is_rounded_twice(isa, rng, dtype, group_size, n):
    """After the weight's scale and after the activations': the same bits everywhere."""
    problem = Problem.random(rng, dtype, group_size, 40, 200, n)
    assert np.array_equal(problem.run(isa)[:, :40], problem.expected().astype(np.float32))


@pytest.mark.parametrize("fault", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("dtype", "group_size"), FORMATS)
def test_faults_in_the_input_are_not_lost(isa, rng, dtype, group_size, fault):
    problem = Problem.random(rng, dtype, group_size, 16, 80, 3)
    problem.x[1, 5] = fault
    y = problem.run(isa)[:, :16]
    assert not np.isfinite(y[1]).any()
    assert np.isfinite(y[[0, 2]]).all()
