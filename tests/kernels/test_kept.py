"""Products with kept formats on every instruction set, against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from deepmnn import _core
from deepmnn.formats import F32, KeptCodes
from deepmnn.quant.layout import pack, unpack
from storage import KEPT_NAMES as KEPT
from storage import any_kept_codes

PANEL = 256
OUTLIERS = 3
"""Quads of a panel whose codes may have 16 bits."""

ISAS = _core.isas()
SHAPES = [(1, 1), (16, 32), (17, 250), (33, 576), (48, 256), (80, 700), (130, 1000)]
ROWS = [1, 2, 3, 4, 5, 7, 12, 40]


def activations(n: int, cols: int) -> F32:
    """With a few columns that are far larger than the rest, as those of language models."""
    rng = np.random.default_rng([n, cols])
    x = rng.standard_normal((n, cols)).astype(np.float32)
    x[:, rng.integers(0, cols, 1 + cols // 100)] *= 300
    return x


def plain_rows(x: F32) -> F32:
    """What plain rows of x [n, cols] stand for (docs/layouts.md), in float64."""
    n, cols = x.shape
    panels = np.pad(x, ((0, 0), (0, -cols % PANEL))).reshape(n, -1, PANEL)
    sizes = np.sort(np.abs(panels).reshape(n, -1, PANEL // 4, 4).max(axis=3), axis=2)
    rest, top = sizes[..., -1 - OUTLIERS], sizes[..., -1]
    scale = np.maximum(rest / np.float32(127), top / np.float32(16000))
    bits = scale.view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    scale = rounded.astype(np.uint32).view(np.float32)[..., None]
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale >= np.finfo("f4").tiny)
    codes = np.rint(panels * inverse)
    return (codes.astype(np.float64) * scale).reshape(n, -1)[:, :cols]


def product(x: F32, codes: KeptCodes, cols: int, isa: str) -> F32:
    rows = len(codes.codes)
    y = np.zeros((len(x), rows), np.float32)
    blocks = -(-rows // 16)
    return np.asarray(
        _core.kernels.linear(
            x, pack(codes), codes.format, rows, cols, y, rows, "store", None, None, 0, blocks, isa
        )
    )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", KEPT)
def test_products_are_those_of_the_numbers(format: str, isa: str) -> None:
    for index, (rows, cols) in enumerate(SHAPES):
        codes = any_kept_codes(format, rows, cols)
        x = activations(ROWS[index % len(ROWS)], cols)
        exact = plain_rows(x)
        wanted = exact @ codes.values()[:, :cols].astype(np.float64).T
        size = np.abs(exact) @ np.abs(codes.values()[:, :cols].astype(np.float64)).T
        found = product(x, codes, cols, isa)
        assert np.abs(found - wanted).max() <= 2e-5 * size.max(), (rows, cols)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", KEPT)
def test_a_row_is_the_same_whatever_runs_with_it(format: str, isa: str) -> None:
    rows, cols = 150, 600
    codes, x = any_kept_codes(format, rows, cols), activations(40, cols)
    alone = np.concatenate([product(x[i : i + 1], codes, cols, isa) for i in range(len(x))])
    for n in ROWS:
        assert np.array_equal(product(x[:n], codes, cols, isa), alone[:n]), n


@pytest.mark.parametrize("format", KEPT)
def test_vector_instruction_sets_agree_to_the_bit(format: str) -> None:
    codes, x = any_kept_codes(format, 70, 900), activations(9, 900)
    found = [product(x, codes, 900, isa) for isa in ISAS if isa != "scalar"]
    assert all(np.array_equal(one, found[0]) for one in found)


@pytest.mark.parametrize("format", KEPT)
def test_the_core_decodes_to_the_same_bits(format: str) -> None:
    for rows, cols in SHAPES:
        codes = any_kept_codes(format, rows, cols)
        stored = pack(codes)
        wanted = codes.values()[:, :cols]
        assert np.array_equal(unpack(stored, format, rows, cols), wanted)
        assert np.array_equal(_core.unpack(stored, format, rows, cols), wanted)


def test_faults_of_activations_are_not_lost() -> None:
    codes = any_kept_codes("q8_0", 16, 300)
    for fault in (np.nan, np.inf, -np.inf):
        x = activations(2, 300)
        x[1, 270] = fault
        for isa in ISAS:
            found = product(x, codes, 300, isa)
            assert np.isfinite(found[0]).all()
            assert np.isnan(found[1]).all()


@pytest.mark.parametrize("isa", ISAS)
def test_rows_of_one_size(isa: str) -> None:
    """Zeros, equal numbers, numbers of which more than OUTLIERS are as large, and tiny ones."""
    codes = any_kept_codes("q4_1", 20, 256)
    x = np.zeros((6, 256), np.float32)
    x[1] = 3
    x[2, ::16] = 1e4
    x[3, 5] = 1e30
    x[4] = 1e-42
    x[5, :12] = 1e5
    x[5, 12:] = np.linspace(-1, 1, 244)
    wanted = plain_rows(x) @ codes.values().astype(np.float64).T
    size = np.abs(plain_rows(x)) @ np.abs(codes.values().astype(np.float64)).T
    found = product(x, codes, 256, isa)
    assert (np.abs(found - wanted) <= 2e-5 * size.max(axis=1, keepdims=True) + 1e-40).all()
