"""linear against numpy: every layout, epilogue and odd size, on each instruction set."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
import pytest

from deepmnn import _core
from deepmnn._core import kernels
from deepmnn.formats import Codes, named
from deepmnn.quant.layout import pack, unpack, unpack_codes
from deepmnn.quant.rotation import unrotate
from dense_rotation import dense_rotation
from storage import NAMES, QUANTIZED_NAMES, any_codes

PANEL = 256
UNTOUCHED = 123.0


@dataclass
class Problem:
    """A packed matrix, the values it stands for, and inputs."""

    dtype: str
    packed: np.ndarray
    w: np.ndarray
    x: np.ndarray

    @classmethod
    def random(cls, rng, dtype, rows, cols, n):
        w = rng.standard_normal((rows, cols)).astype(np.float32)
        packed = _core.quantize_pack(w, dtype)
        w = _core.unpack(packed, dtype, rows, cols)
        return cls(dtype, packed, w, rng.standard_normal((n, cols)).astype(np.float32))

    @classmethod
    def quantized(cls, codes, x):
        """Of codes and scales as they are."""
        packed = pack(codes)
        return cls(codes.format, packed, unpack(packed, codes.format, *codes.levels.shape), x)

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
            *(self.x, self.packed, self.dtype, rows, cols, y, out_cols),
            *(epilogue, bias, index, begin, end, isa),
        )

    def panel_products(self):
        """What each panel adds to y, float64 [panels, n, rows]: its exact sum of integers times the
        weight's scale, rounded to float32, and that times the activations' scale, not rounded.
        """
        rows, cols = self.w.shape
        codes, scales, _ = kernels.quantize_rows(self.x, "scalar")  # checked on their own
        weight = unpack_codes(self.packed, self.dtype, cols)
        weight_scales = weight.scales[:rows].astype(np.float32)
        integers = np.zeros((rows, codes.shape[1]))
        integers[:, : weight.levels.shape[1]] = weight.levels[:rows]
        shape = scales.shape[1], PANEL
        x, w = (m.reshape(len(m), *shape).swapaxes(0, 1) for m in (codes, integers))
        sums = x.astype(np.float64) @ w.swapaxes(1, 2)
        products = sums.astype(np.float32) * weight_scales.T[:, None, :]
        return products.astype(np.float64) * scales.T[:, :, None].astype(np.float64)

    def expected(self):
        if not named(self.dtype).is_quantized:
            return self.x.astype(np.float64) @ self.w.T.astype(np.float64)
        return self.panel_products().sum(axis=0)

    def tolerance(self):
        if not named(self.dtype).is_quantized:
            return 1e-6 * (np.abs(self.x).sum(axis=1).max(initial=1)) * (np.abs(self.w).max() + 1)
        products = np.abs(self.panel_products())
        return 2e-7 * len(products) * products.sum(axis=0).max(initial=1)


@pytest.mark.parametrize("dtype", NAMES)
@pytest.mark.parametrize(
    ("rows", "cols"), [(1, 1), (16, 64), (17, 65), (50, 127), (83, 200), (33, 290), (70, 601)]
)
def test_store_for_any_number_of_rows(isa, rng, dtype, rows, cols):
    for n in [0, 1, 2, 3, 4, 5, 6, 7, 8, 11, 13, 19, 40]:
        problem = Problem.random(rng, dtype, rows, cols, n)
        y = problem.run(isa)
        np.testing.assert_allclose(
            y[:, :rows], problem.expected(), rtol=0, atol=problem.tolerance()
        )
        assert (y[:, rows:] == UNTOUCHED).all()


@pytest.mark.parametrize("dtype", NAMES)
def test_every_small_width(isa, rng, dtype):
    for cols, n in itertools.product([*range(1, 18), 31, 33, 63, 95, 256, 257], [1, 3]):
        problem = Problem.random(rng, dtype, 20, cols, n)
        y = problem.run(isa)[:, :20]
        np.testing.assert_allclose(y, problem.expected(), rtol=0, atol=problem.tolerance())


@pytest.mark.parametrize("dtype", NAMES)
@pytest.mark.parametrize("n", [1, 2, 9])
def test_bias_accumulate_and_out_cols(isa, rng, dtype, n):
    problem = Problem.random(rng, dtype, 48, 70, n)
    bias = rng.standard_normal(37).astype(np.float32)
    y = problem.run(isa, out_cols=37, bias=bias)
    expected = problem.expected()[:, :37]
    np.testing.assert_allclose(y[:, :37], expected + bias, rtol=0, atol=problem.tolerance())
    assert (y[:, 37:] == UNTOUCHED).all()
    before = rng.standard_normal((n, 37)).astype(np.float32)
    y = problem.run(isa, "accumulate", y=before, out_cols=37)
    np.testing.assert_allclose(y, expected + before, rtol=0, atol=problem.tolerance())


@pytest.mark.parametrize("dtype", NAMES)
@pytest.mark.parametrize("n", [1, 2, 5, 14])
@pytest.mark.parametrize("intermediate_size", [16, 21, 80])
def test_swiglu(isa, rng, dtype, n, intermediate_size):
    blocks = -(-intermediate_size // 16)
    problem = Problem.random(rng, dtype, blocks * 32, 66, n)
    y = problem.run(isa, "swiglu", out_cols=intermediate_size)
    halves = problem.expected().reshape(n, blocks, 2, 16)
    gate, up = (halves[:, :, i].reshape(n, -1)[:, :intermediate_size] for i in range(2))
    expected = gate / (1 + np.exp(-gate)) * up
    np.testing.assert_allclose(
        y[:, :intermediate_size], expected, rtol=0, atol=problem.tolerance() * 20
    )
    assert (y[:, intermediate_size:] == UNTOUCHED).all()


@pytest.mark.parametrize("dtype", NAMES)
@pytest.mark.parametrize(("cols", "n"), [(40, 7), (300, 25)])
def test_gathered_rows_and_block_ranges(isa, rng, dtype, cols, n):
    problem = Problem.random(rng, dtype, 75, cols, 6)
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


@pytest.mark.parametrize("dtype", NAMES)
@pytest.mark.parametrize(("cols", "n"), [(99, 13), (600, 40), (70, 300)])
def test_a_row_does_not_depend_on_its_neighbours(isa, rng, dtype, cols, n):
    """Batching must not change an answer, not even its last bit."""
    for epilogue in ("store", "swiglu"):
        problem = Problem.random(rng, dtype, 96, cols, n)
        together = problem.run(isa, epilogue, out_cols=48)
        for first, last in [(0, 1), (1, 3), (4, 9), (n - 1, n), (n // 3, n)]:
            some = Problem(dtype, problem.packed, problem.w, problem.x[first:last])
            assert np.array_equal(some.run(isa, epilogue, out_cols=48), together[first:last])


@pytest.mark.parametrize("dtype", NAMES)
def test_inputs_may_be_views(isa, rng, dtype):
    problem = Problem.random(rng, dtype, 33, 50, 5)
    expected = problem.run(isa)
    room = np.zeros((5, 61), np.float32)
    room[:, 3:53] = problem.x
    problem.x = room[:, 3:53]
    assert np.array_equal(problem.run(isa), expected)


@pytest.mark.parametrize("dtype", QUANTIZED_NAMES)
@pytest.mark.parametrize(("rows", "cols", "n"), [(33, 200, 3), (70, 601, 9), (48, 1536, 30)])
def test_products_are_those_of_the_numbers_that_were_stored(isa, rng, dtype, rows, cols, n):
    """Rotating both sides changes nothing but the rounding of the activations: to half a step of
    127ths of a rotated panel's largest, as by chance.
    """
    problem = Problem.random(rng, dtype, rows, cols, n)
    exact = problem.x.astype(np.float64) @ problem.w.T
    error = problem.run(isa)[:, :rows] - exact
    step = np.abs(dense_rotation(cols) @ np.pad(problem.x, ((0, 0), (0, -cols % 32))).T).max() / 127
    expected = step / np.sqrt(12) * np.sqrt((problem.w.astype(np.float64) ** 2).sum(axis=1).mean())
    assert np.sqrt((error**2).mean()) < 1.1 * expected


def exact_rows(rng, n, cols):
    """Rows [n, cols], whole panels, whose codes are integers of -127 .. 127 and whose scales are 1:
    a block of 256 columns is rotated back without rounding.
    """
    codes = rng.integers(-127, 128, (n, cols)).astype(np.float32)
    codes[:, ::PANEL] = 127
    x = unrotate(codes)
    found, scales, _ = kernels.quantize_rows(x, "scalar")
    assert np.array_equal(found, codes)
    assert (scales == 1).all()
    return codes, x


def ones(rows, cols):
    return np.ones((rows, -(-cols // PANEL)), np.float16)


@pytest.mark.parametrize("dtype", QUANTIZED_NAMES)
@pytest.mark.parametrize("cols", [256, 512, 2304])
@pytest.mark.parametrize("n", [1, 2, 3, 9, 20, 40])
def test_no_saturation_at_the_extremes(isa, dtype, cols, n):
    """Largest weights times largest activations: int16 pairs would overflow if summed naively."""
    ends = min(named(dtype).levels), max(named(dtype).levels)
    for code, a in itertools.product(ends, (127.0, -127.0)):
        codes = np.full((32, cols), code, np.int8)
        x = unrotate(np.full((n, cols), a, np.float32))
        assert (kernels.quantize_rows(x, "scalar")[0] == a).all()
        problem = Problem.quantized(Codes(dtype, codes, ones(32, cols)), x)
        assert (problem.run(isa)[:, :32] == code * a * cols).all()


@pytest.mark.parametrize("dtype", QUANTIZED_NAMES)
@pytest.mark.parametrize("n", [1, 2, 5, 9, 20])
def test_no_saturation_whatever_lies_beside_what(isa, rng, dtype, n):
    """Runs of codes at either end, of every length, against activations at either end."""
    low, high = min(named(dtype).levels), max(named(dtype).levels)
    place = np.arange(256)
    for run in (1, 2, 4, 8, 16, 32, 64):
        codes = np.where(place // run % 2, low, high).astype(np.int8)
        codes = np.stack([np.roll(codes, -r) for r in range(48)])
        activations = np.where(place // run % 2, -127, 127).astype(np.float32)
        activations = np.stack([np.roll(activations, -i) for i in range(n)])
        problem = Problem.quantized(Codes(dtype, codes, ones(48, 256)), unrotate(activations))
        expected = activations.astype(np.float64) @ codes.T
        assert np.array_equal(problem.run(isa)[:, :48], expected)


@pytest.mark.parametrize("dtype", QUANTIZED_NAMES)
@pytest.mark.parametrize("cols", [256, 768])
@pytest.mark.parametrize("n", [*range(1, 14), 17, 24, 30, 65])
def test_integer_sums_agree_to_the_bit(isa, rng, dtype, cols, n):
    """With all scales 1 the result is the integer sum itself: exact on every instruction set."""
    codes = rng.choice(np.array(named(dtype).levels, np.int8), (48, cols))
    activations, x = exact_rows(rng, n, cols)
    problem = Problem.quantized(Codes(dtype, codes, ones(48, cols)), x)
    assert np.array_equal(problem.run(isa)[:, :48], activations.astype(np.float64) @ codes.T)


@pytest.mark.parametrize("dtype", QUANTIZED_NAMES)
@pytest.mark.parametrize("cols", [1, 33, 96, 200, 224])
@pytest.mark.parametrize("n", [1, 4, 7, 30])
def test_a_narrow_panel_agrees_to_the_bit(isa, rng, dtype, cols, n):
    """Weights' scales are 1, so all that is rounded is the product with the activations'."""
    codes = any_codes(40, cols, dtype)
    codes = replace(codes, scales=np.ones_like(codes.scales))
    problem = Problem.quantized(codes, rng.standard_normal((n, codes.levels.shape[1]), np.float32))
    assert np.array_equal(problem.run(isa)[:, :40], problem.expected().astype(np.float32))


@pytest.mark.parametrize("dtype", QUANTIZED_NAMES)
@pytest.mark.parametrize("n", [1, 5, 30])
def test_one_panel_is_rounded_twice(isa, rng, dtype, n):
    """After the weight's scale and after the activations': the same bits everywhere."""
    problem = Problem.random(rng, dtype, 40, 200, n)
    assert np.array_equal(problem.run(isa)[:, :40], problem.expected().astype(np.float32))


@pytest.mark.parametrize("fault", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", NAMES)
@pytest.mark.parametrize("n", [3, 5, 20])
def test_faults_in_the_input_are_not_lost(isa, rng, dtype, fault, n):
    """In every number of their row, and in no other row."""
    problem = Problem.random(rng, dtype, 16, 300, n)
    problem.x[1, 5] = fault
    y = problem.run(isa)[:, :16]
    assert not np.isfinite(y[1]).any()
    assert named(dtype).is_quantized <= np.isnan(y[1]).all()
    assert np.isfinite(np.delete(y, 1, axis=0)).all()
