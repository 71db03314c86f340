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
CHOSEN_HERE = {"default_group_size"}
"""The core is told the group size of every weight."""


def test_the_core_has_the_same_table() -> None:
    fields = [dataclasses.asdict(format) for format in FORMATS.values()]
    shared = [{k: v for k, v in entry.items() if k not in CHOSEN_HERE} for entry in fields]
    assert _core.formats() == shared


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
def test_the_core_has_the_same_sizes(format: Format) -> None:
    for group_size in format.group_sizes:
        for rows, cols in itertools.product(ROWS if format.is_matrix else [1], COLS):
            nbytes = format.nbytes(rows, cols, group_size)
            assert nbytes == _core.packed_nbytes(format.name, rows, cols, group_size), (rows, cols)


def test_positions_are_codes() -> None:
    """program.bin stores a format's code, and a reader finds its name there."""
    assert [format.code for format in FORMATS.values()] == list(range(len(FORMATS)))
    assert all(FORMATS[name].name == name for name in FORMATS)


def test_what_the_layout_asks_of_a_quantised_format() -> None:
    for format in FORMATS.values():
        assert format.default_group_size in format.group_sizes
        assert format.is_quantized == (format.group_sizes != (0,))
        if format.is_quantized:
            assert format.offset == 1 << format.bits - 1  # signed codes of all bits
            assert all(PANEL_COLS % size == size % PART_COLS == 0 for size in format.group_sizes)
            assert format.multipliers or format.group_sizes == (PANEL_COLS,)


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
def test_group_sizes_by_default_pad_least(format: Format) -> None:
    for cols in COLS:
        size = format.group_size(cols)
        stored = {other: format.stored_cols(cols, other) for other in format.group_sizes}
        assert size in (format.default_group_size, format.group_sizes[0])
        assert stored[size] <= stored[format.default_group_size]
        if stored[format.default_group_size] == min(stored.values()):
            assert size == format.default_group_size


def test_unknown_formats_and_group_sizes_are_request_errors() -> None:
    for name in ("w5", "", None, ["f32"]):
        with pytest.raises(RequestError, match="weight format"):
            named(name)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="group_size 48"):
        named("w4").nbytes(1, 1, 48)
    for name in ("f32", "w8"):
        with pytest.raises(RequestError, match="group_size 64"):
            named(name).nbytes(1, 1, 64)


def test_shapes_of_weights() -> None:
    assert Weight("w", Constant((3, 5))).matrix_shape == (3, 5)
    assert Weight("b", Constant((5,)), format=VECTOR.name).matrix_shape == (1, 5)
    assert Weight("b", Constant((17,)), format=VECTOR.name).nbytes == 128
