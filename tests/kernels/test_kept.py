"""Products with kept formats on every instruction set, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from tests.kernels.kept_products import plain_rows, random_codes

from deepmnn import _core
from deepmnn.formats import F32, FORMATS, KeptCodes
from deepmnn.quant.layout import pack, unpack

KEPT = [name for name, format in FORMATS.items() if format.is_kept]
ISAS = _core.isas()
SHAPES = [(1, 1), (16, 32), (17, 250), (33, 576), (48, 256), (80, 700), (130, 1000)]
ROWS = [1, 2, 3, 4, 5, 7, 12, 40]


def activations(n: int, cols: int) -> F32:
    """With a few columns that are far larger than the rest, as those of language models."""
    rng = np.random.default_rng([n, cols])
    x = rng.standard_normal((n, cols)).astype(np.float32)
    x[:, rng.integers(0, cols, 1 + cols // 100)] *= 300
    return x


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
        codes = random_codes(format, rows, cols)
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
    codes, x = random_codes(format, rows, cols), activations(40, cols)
    alone = np.concatenate([product(x[i : i + 1], codes, cols, isa) for i in range(len(x))])
    for n in ROWS:
        assert np.array_equal(product(x[:n], codes, cols, isa), alone[:n]), n


@pytest.mark.parametrize("format", KEPT)
def test_vector_instruction_sets_agree_to_the_bit(format: str) -> None:
    codes, x = random_codes(format, 70, 900), activations(9, 900)
    found = [product(x, codes, 900, isa) for isa in ISAS if isa != "scalar"]
    assert all(np.array_equal(one, found[0]) for one in found)


@pytest.mark.parametrize("format", KEPT)
def test_the_core_decodes_to_the_same_bits(format: str) -> None:
    for rows, cols in SHAPES:
        codes = random_codes(format, rows, cols)
        stored = pack(codes)
        wanted = codes.values()[:, :cols]
        assert np.array_equal(unpack(stored, format, rows, cols), wanted)
        assert np.array_equal(_core.unpack(stored, format, rows, cols), wanted)
