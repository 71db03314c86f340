"""The table of storage formats: here and in the core they say the same."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from deepmnn import _core
from deepmnn.errors import RequestError
from deepmnn.formats import FORMATS, PANEL_COLS, PART_COLS, VECTOR, Format, named
from deepmnn.graph.ir import Weight
from deepmnn.graph.weights import Constant

ROWS = [*range(1, 34), 100, 4095, 4096, 151_936]
COLS = [*range(1, 70), *range(250, 262), *range(510, 517), 1000, 1536, 7168, 18_432]


def test_the_core_has_the_same_table() -> None:
    assert _core.formats() == [dataclasses.asdict(format) for format in FORMATS.values()]


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
def test_the_core_has_the_same_sizes(format: Format) -> None:
    for rows, cols in itertools.product(ROWS if format.is_matrix else [1], COLS):
        nbytes = format.nbytes(rows, cols)
        assert nbytes == _core.packed_nbytes(format.name, rows, cols), (rows, cols)


@pytest.mark.parametrize(
    ("name", "bits"),
    [("w8", 8.0625), ("w6", 6.0625), ("w5", 5.0625), ("w4", 4.0625), ("w3", 3.0625), ("bf16", 16)],
)
def test_bits_of_a_weight(name: str, bits: float) -> None:
    """Of whole panels: a code, and a 256th of a scale of 16 bits."""
    assert named(name).nbytes(64, 1024) * 8 == bits * 64 * 1024


@pytest.mark.parametrize(
    ("name", "file"),
    [
        *[("q8_0", 8.5), ("q4_0", 4.5), ("q4_1", 5), ("q5_0", 5.5), ("q5_1", 6)],
        *[("q4_k", 4.5), ("q5_k", 5.5), ("q6_k", 6.5625), ("mxfp4", 4.25)],
        *[("int4_g32", 4 + 20 / 32), ("int4_g64", 4 + 20 / 64), ("int4_g128", 4 + 20 / 128)],
        *[("int8_g32", 8.5), ("int8_g64", 8.25), ("int8_g128", 8.125), ("int8", 8), ("int4", 4)],
    ],
)
def test_kept_formats_take_hardly_more_than_the_files(name: str, file: float) -> None:
    """file: bits of a number there; AWQ and GPTQ have zero points of 4 bits, and scales of a row
    are as good as nothing.
    """
    bits = named(name).nbytes(64, 1024) * 8 / (64 * 1024)
    assert file <= bits <= 1.03 * file


def test_positions_are_codes() -> None:
    """program.bin stores a format's code, and a reader finds its name there."""
    assert [format.code for format in FORMATS.values()] == list(range(len(FORMATS)))
    assert all(FORMATS[name].name == name for name in FORMATS)


def test_what_the_layout_asks_of_a_quantised_format() -> None:
    for format in FORMATS.values():
        assert PANEL_COLS % format.columns == 0
        assert (format.is_quantized or format.is_kept) == (format.columns == PART_COLS)
        if format.is_kept:
            assert len(format.levels) == 1 << format.bits
            assert format.groups is not None
            assert PANEL_COLS % format.groups.columns == 0
        if format.is_quantized:
            assert len(set(format.levels)) == 1 << format.bits
            assert -128 <= min(format.levels) < 0 < max(format.levels) <= 127
            assert sorted(-1 - level for level in format.levels) == sorted(format.levels)
            planes = list(format.planes())
            sizes = [bits for bits, _ in planes]
            assert sum(sizes) == format.bits
            assert sizes == sorted(set(sizes), reverse=True)
            assert [shift for _, shift in planes] == [
                sum(sizes[:index]) for index in range(len(sizes))
            ]


def test_unknown_formats_are_request_errors() -> None:
    for name in ("w7", "", None, ["f32"]):
        with pytest.raises(RequestError, match="weight format"):
            named(name)  # type: ignore[arg-type]


def test_shapes_of_weights() -> None:
    assert Weight("w", Constant((3, 5))).matrix_shape == (3, 5)
    assert Weight("b", Constant((5,)), format=VECTOR.name).matrix_shape == (1, 5)
    assert Weight("b", Constant((17,)), format=VECTOR.name).nbytes == 128
