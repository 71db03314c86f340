"""float_linear and float_linear_transposed against numpy: every layout, on each instruction set."""

from __future__ import annotations

import numpy as np
import pytest

from deepmnn import _core
from deepmnn._core import kernels
from deepmnn.formats import Codes, named
from deepmnn.quant.layout import pack, unpack
from deepmnn.quant.rotation import rotate, unrotate
from storage import NAMES, QUANTIZED_NAMES, any_codes

SIZES = [(1, 1), (16, 32), (7, 35), (32, 64), (17, 65), (50, 127), (128, 256), (33, 290), (70, 601)]


def stored(rng, dtype, rows, cols):
    """Bytes of a random matrix, and the numbers that they stand for."""
    packed = _core.quantize_pack(rng.standard_normal((rows, cols)).astype(np.float32), dtype)
    return packed, _core.unpack(packed, dtype, rows, cols)


def close(got, x, w):
    """To a few roundings of float32: of products, of a rotation, and of their sums."""
    x, w = x.astype(np.float64), w.astype(np.float64)
    size = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(w, axis=1)
    assert (np.abs(got - x @ w.T) <= 1e-6 * size).all()


@pytest.mark.parametrize("dtype", NAMES)
@pytest.mark.parametrize(("rows", "cols"), SIZES)
def test_both_ways_round(isa, rng, unaligned, dtype, rows, cols):
    packed, w = stored(rng, dtype, rows, cols)
    for n in (0, 1, 2, 3, 5, 9):
        for matrix, transposed in ((w, False), (w.T, True)):
            x = unaligned(rng.standard_normal((n, matrix.shape[1])).astype(np.float32))
            got = kernels.float_linear(x, packed, dtype, rows, cols, transposed, None, isa)
            assert got.shape == (n, matrix.shape[0])
            close(got, x, matrix)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", QUANTIZED_NAMES)
def test_any_level_and_scale(isa, rng, dtype, transposed):
    """Every code of the format, and scales far apart, which products must not mix."""
    codes = any_codes(40, 300, dtype)
    packed = pack(codes)
    w = unpack(packed, dtype, 40, 300)
    matrix = w.T if transposed else w
    x = rng.standard_normal((3, matrix.shape[1])).astype(np.float32)
    close(kernels.float_linear(x, packed, dtype, 40, 300, transposed, None, isa), x, matrix)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", NAMES)
def test_chosen_rows_and_a_row_by_itself(isa, rng, dtype, transposed):
    """A row's numbers do not depend on which others run with it."""
    packed, w = stored(rng, dtype, 33, 70)
    x = rng.standard_normal((6, w.shape[0 if transposed else 1])).astype(np.float32)
    index = np.array([5, 0, 0, 3, 2], np.int32)
    run = lambda *args: kernels.float_linear(*args, transposed, None, isa)  # noqa: E731
    got = kernels.float_linear(x, packed, dtype, 33, 70, transposed, index, isa)
    alone = np.concatenate([run(x[i : i + 1].copy(), packed, dtype, 33, 70) for i in index])
    assert np.array_equal(got, alone)


@pytest.mark.parametrize("transposed", [False, True])
def test_integers_come_out_exactly(isa, rng, transposed):
    """Sums of integers that float32 holds are the same on each instruction set, in any order."""
    levels = rng.integers(-128, 128, (48, 64)).astype(np.int8)
    packed = pack(Codes("w8", levels, np.ones((48, 1), np.float16)))
    rotated = levels.astype(np.float32)
    if transposed:
        x = rng.integers(-9, 10, (3, 48)).astype(np.float32)
        wanted = unrotate(x @ rotated)
    else:
        turned = rng.integers(-9, 10, (3, 64)).astype(np.float32)
        x = unrotate(turned)
        assert np.array_equal(rotate(x), turned)
        wanted = turned @ rotated.T
    got = kernels.float_linear(x, packed, "w8", 48, 64, transposed, None, isa)
    assert np.array_equal(got, wanted)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", ["f32", "w8"])
def test_faults_stay_in_their_row(isa, rng, dtype, transposed):
    packed, w = stored(rng, dtype, 20, 40)
    x = rng.standard_normal((3, w.shape[0 if transposed else 1])).astype(np.float32)
    x[1, 4] = np.nan
    got = kernels.float_linear(x, packed, dtype, 20, 40, transposed, None, isa)
    assert np.isnan(got[1]).all()
    assert np.isfinite(got[[0, 2]]).all()
    assert named(dtype).is_matrix
