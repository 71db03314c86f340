"""Codes of other schemes that are kept as they are: which, in what format, and to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

from deepmnn.errors import CheckpointError
from deepmnn.formats import F32, KeptCodes
from deepmnn.source.codecs.coded import Coded
from deepmnn.source.codecs.packing import E2M1
from deepmnn.source.open import open_source
from deepmnn.source.source import Source
from source.compressed import compress, config_of, scheme_of, write
from source.test_compressed_tensors import CASES, of_layer, weight_of
from source.test_damaged_codes import damaged
from source.test_made_elsewhere import cases, checkpoint

KEPT = {
    "auto_round: 2 bits": "int4_g32",
    "auto_round: 3 bits": "int4_g32",
    "auto_round: 4 bits": "int4_g32",
    "auto_round: 5 bits": "int8_g32",
    "auto_round: 6 bits": "int8_g32",
    "auto_round: 7 bits": "int8_g32",
    "auto_round: 8 bits": "int8_g32",
    "auto_round: 4 bits, rows": "int4",
    "auto_round: 4 bits, groups of 64": "int4_g64",
    "auto_round: 4 bits, asymmetric": "int4_g32",
    "auto_round: 3 bits, asymmetric": "int4_g32",
    "auto_round: 4 bits, g_idx": "int4_g32",
    "auto_round: awq": "int4_g32",
    "auto_round: awq, asymmetric": "int4",
    "auto_round: 8 bits, 4 elsewhere": "int8_g64",
    "awq: groups of 32": "int4_g32",
    "awq: groups of 96": "int4",  # a row
    "awq: groups of -1": "int4",
    "bitsandbytes: int8": "int8",
    "gptq: 4 bits, groups of 32": "int4_g32",
    "gptq: 4 bits, asymmetric, v2": "int4_g32",
    "gptq: 4 bits, asymmetric": "int4_g32",
    "gptq: 4 bits, rows, asymmetric, act-order, v2": "int4",
    "gptq: 2 bits": "int4_g32",
    "gptq: 2 bits, asymmetric": "int4_g32",
    "gptq: 3 bits, v2": "int4_g32",
    "gptq: 3 bits": "int4_g32",
    "gptq: 8 bits": "int8_g64",
    "modelopt: MXFP4": "mxfp4",
}
"""Of the libraries' fixtures. Others have groups in another order, other levels, or zero points
between the codes.
"""

COMPRESSED = {
    "int4, groups of 32": "int4_g32",
    "int4, groups of 128": "int4_g128",
    "int4, groups, asymmetric": "int4_g32",
    "int4, rows": "int4",
    "int4, rows, asymmetric": "int4",
    "int4, tensor": "int4",
    "int4, tensor, asymmetric": "int4",
    "int8, groups, asymmetric": "int8_g32",
    "int2, rows": "int4",
    "int3, rows": "int4",
    "int5, rows": "int8",
    "int6, rows": "int8",
    "int7, rows": "int8",
    "W8A8": "int8",
    "W8A8, asymmetric": "int8",
    "W8A8, tensor": "int8",
    "W8A8, groups": "int8_g32",
    "MXFP4": "mxfp4",
}


def kept(source: Source, name: str) -> tuple[KeptCodes | None, F32]:
    """A tensor's codes, in the format that was announced, and its numbers."""
    codes = source.codes(name)
    assert source.kept_format(name) == (None if codes is None else codes.format)
    if codes is not None:
        for field, expected in codes.fields(*source.shape(name)).items():
            array = getattr(codes, field)
            assert (array.dtype, array.shape) == (expected.dtype, expected.shape), field
    return codes, source.read(name)


def numbers(codes: KeptCodes, like: F32) -> F32:
    return codes.values()[:, : like.shape[1]]


@pytest.mark.parametrize(("file", "case"), cases(), ids=lambda value: getattr(value, "stem", value))
def test_what_libraries_made(tmp_path: Path, file: Path, case: str) -> None:
    checkpoint(tmp_path, file, case)
    codes, want = kept(open_source(tmp_path), "layer.weight")
    assert (None if codes is None else codes.format) == KEPT.get(f"{file.stem}: {case}")
    if codes is not None and file.stem == "bitsandbytes":  # its scales are float32 / 127
        np.testing.assert_allclose(numbers(codes, want), want, rtol=2**-11, atol=0)
    elif codes is not None:
        np.testing.assert_array_equal(numbers(codes, want), want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_what_compressed_tensors_makes(tmp_path: Path, case: str, dtype: torch.dtype) -> None:
    form, shape, args = CASES[case]
    scheme = scheme_of(form, **args)
    parts, _ = compress(weight_of(shape), scheme)
    if parts["weight_scale"].dtype == torch.float32:
        parts["weight_scale"] = parts["weight_scale"].to(dtype)
    source = open_source(write(tmp_path / "hf", of_layer(parts), config_of(scheme)))
    codes, want = kept(source, "w.weight")
    assert (None if codes is None else codes.format) == COMPRESSED.get(case)
    if codes is None:
        return
    if dtype == torch.float32:
        np.testing.assert_allclose(numbers(codes, want), want, rtol=2**-11, atol=0)
    else:
        np.testing.assert_array_equal(numbers(codes, want), want)
    if args["type"] == "int":
        packed = parts.get("weight_packed")
        bits = args["num_bits"]
        own = parts["weight"] if packed is None else unpack_from_int32(packed, bits, shape)
        found = codes.codes[:, : shape[1]].astype(int)
        np.testing.assert_array_equal(found - (1 << (bits - 1)), own.numpy())


# ------------------------------------------------------------------------- what can be kept

ROWS = 3


def coded(cols: int, bits: int, scales: Any, size: int, **fields: Any) -> Coded:
    def unpack() -> np.ndarray[Any, np.dtype[np.uint8]]:
        drawn = np.random.default_rng(cols).integers(0, 1 << bits, (ROWS, cols))
        return drawn.astype(np.uint8)

    return Coded((ROWS, cols), bits, unpack, np.array(scales, np.float32), size, **fields)


def groups(cols: int, size: int) -> F32:
    """Scales that float16 holds, all of them different."""
    count = ROWS * -(-cols // size)
    return np.arange(1, count + 1, dtype=np.float32).reshape(ROWS, -1) / 256


@pytest.mark.parametrize(
    ("cols", "size", "format"),
    [
        (96, 32, "int4_g32"),
        (1000, 32, "int4_g32"),
        (96, 64, "int4_g64"),
        (300, 128, "int4_g128"),
        (1000, 256, "int4"),
        (1000, 512, "int4"),
        (1000, 384, "int4_g128"),
        (1000, 160, "int4_g32"),
        (1000, 1000, "int4"),
        (77, 77, "int4"),
        (96, 16, None),
        (96, 48, None),
    ],
)
def test_sizes_of_groups(cols: int, size: int, format: str | None) -> None:
    """The widest group that divides the scheme's; a row's scale is one for each panel."""
    zeros = groups(cols, size) * 256 % 16
    matrix = coded(cols, 4, groups(cols, size), size, zeros=zeros)
    assert matrix.kept_format() == format
    if (found := matrix.kept()) is not None:
        np.testing.assert_array_equal(numbers(found, matrix.values()), matrix.values())
    else:
        assert format is None


@pytest.mark.parametrize("shape", [(1, 1), (ROWS, 1), (1, 3)])
def test_scales_that_rows_or_columns_share(shape: tuple[int, int]) -> None:
    shared = np.arange(1, 1 + shape[0] * shape[1], dtype=np.float32).reshape(shape) / 64
    for zeros in (None, shared * 64, np.full((1, 1), 8, np.float32)):
        matrix = coded(90, 4, shared, 32, zeros=zeros)
        found = matrix.kept()
        assert found is not None
        np.testing.assert_array_equal(numbers(found, matrix.values()), matrix.values())


@pytest.mark.parametrize("zero", [0, 8, 16, 255])
def test_zero_points_that_a_byte_holds(zero: float) -> None:
    matrix = coded(96, 8, groups(96, 32), 32, zeros=np.full((ROWS, 3), zero, np.float32))
    found = matrix.kept()
    assert found is not None
    np.testing.assert_array_equal(numbers(found, matrix.values()), matrix.values())


@pytest.mark.parametrize("zero", [-1, 0.5, 256, np.nan, np.inf, -0.25])
def test_zero_points_that_none_holds(zero: float) -> None:
    zeros = np.full((ROWS, 3), 8, np.float32)
    zeros[1, 2] = zero
    assert coded(96, 4, groups(96, 32), 32, zeros=zeros).kept_format() is None


@pytest.mark.parametrize(
    ("scale", "is_kept"),
    [
        (0.0, True),
        (-0.5, True),
        (65504, True),
        (66000, False),
        (1e30, False),
        (2.0**-24, True),
        (2.0**-17 * 1.9921875, True),  # a bfloat16
        (1.1 * 2.0**-14, True),
        (1.1 * 2.0**-20, False),
        (1e-9, False),
    ],
)
def test_scales_that_float16_holds(scale: float, is_kept: bool) -> None:
    """Or nearly: within 2^-11. A single other one, and nothing is kept."""
    scales = groups(96, 32)
    scales[2, 1] = scale
    matrix = coded(96, 4, scales, 32)
    found = matrix.kept()
    assert (found is not None) == is_kept
    if found is not None:
        want = matrix.values()
        np.testing.assert_allclose(numbers(found, want), want, rtol=2**-11, atol=0)


@pytest.mark.parametrize(
    ("scale", "is_kept"),
    [
        (2.0**-127, True),
        (2.0**-128, False),
        (1.0, True),
        (2.0**127, True),
        (1.5, False),
        (0.0, False),
        (-1.0, False),
    ],
)
def test_exponents_of_mxfp4(scale: float, is_kept: bool) -> None:
    scales = np.ones((ROWS, 3), np.float32)
    scales[0, 1] = scale
    matrix = coded(90, 4, scales, 32, levels=E2M1)
    found = matrix.kept()
    assert (found is not None) == is_kept
    if found is not None:
        assert found.format == "mxfp4"
        np.testing.assert_array_equal(numbers(found, matrix.values()), matrix.values())


def test_other_levels_and_orders_are_not_kept() -> None:
    levels = np.linspace(-1, 1, 16, dtype=np.float32)
    assert coded(96, 4, groups(96, 32), 32, levels=levels).kept() is None
    order = np.arange(96)[::-1] // 32
    assert coded(96, 4, groups(96, 32), 32, order=order).kept() is None


def test_a_format_is_known_without_the_codes() -> None:
    def unpack() -> Any:
        raise AssertionError("codes are read")

    assert Coded((ROWS, 96), 4, unpack, groups(96, 32), 32).kept_format() == "int4_g32"


# ------------------------------------------------------------------------------- whole files


@pytest.mark.parametrize(("case", "format"), [("4 bits", "int4_g32"), ("8 bits", "int8")])
def test_hqq_with_whole_zero_points(tmp_path: Path, case: str, format: str) -> None:
    """As round_zero makes them; without it they lie between the codes."""
    change: Any = {"zero": np.round, "scale": lambda s: s.astype(np.float16)}
    before = open_source(damaged(tmp_path, "hqq", case, {}))
    assert kept(before, "layer.weight")[0] is None
    source = open_source(damaged(tmp_path, "hqq", case, change))
    codes, want = kept(source, "layer.weight")
    assert codes is not None
    assert codes.format == format
    np.testing.assert_array_equal(numbers(codes, want), want)


def test_one_scale_that_float16_does_not_hold(tmp_path: Path) -> None:
    """The numbers are read as before."""
    form, shape, args = CASES["W8A8"]
    scheme = scheme_of(form, **args)
    parts, _ = compress(weight_of(shape), scheme)
    parts["weight_scale"][3] = 1e-9
    source = open_source(write(tmp_path / "hf", of_layer(parts), config_of(scheme)))
    codes, got = kept(source, "w.weight")
    assert codes is None
    want = parts["weight"].float() * parts["weight_scale"]
    np.testing.assert_array_equal(got, want.numpy())


def test_sparse_numbers_are_not_codes(tmp_path: Path) -> None:
    weight = torch.tensor([[0, 1.5, 0, -2]] * 3)
    state = {
        "w.compressed": weight[weight != 0],
        "w.bitmask": torch.full((3, 1), 0b1010, dtype=torch.uint8),
        "w.shape": torch.tensor([3, 4]),
        "norm": torch.ones(3),
    }
    config = {"quant_method": "compressed-tensors", "config_groups": {}}
    source = open_source(write(tmp_path / "hf", state, config))
    codes, got = kept(source, "w.weight")
    assert codes is None
    np.testing.assert_array_equal(got, weight.numpy())
    assert source.kept_format("norm") is None


def test_zero_points_of_floats_that_are_damaged(tmp_path: Path) -> None:
    source = open_source(damaged(tmp_path, "hqq", "4 bits", {"zero": lambda z: z * np.nan}))
    with pytest.raises(CheckpointError, match="NaN"):
        source.kept_format("layer.weight")
