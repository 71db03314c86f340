"""The numpy layouts against a byte-by-byte reading of docs/layouts.md, and the core's bytes."""

import ml_dtypes
import numpy as np
import pytest

from deepmnn import _core
from deepmnn.errors import RequestError
from deepmnn.formats import Codes, named
from deepmnn.quant.layout import pack, pack_floats, unpack, unpack_codes
from deepmnn.quant.rounding import round_to_nearest
from storage import MATRICES, QUANTIZED, any_codes, numpy_bytes

SHAPES = [(1, 1), (3, 7), (16, 64), (17, 65), (33, 31), (40, 200), (5, 129), (18, 256), (7, 700)]


def values(rows: int, cols: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, rows, cols]).standard_normal((rows, cols), np.float32)


def read_element(
    packed: bytes, dtype: str, cols: int, group_size: int, row: int, col: int
) -> float:
    """One element, located by the words of docs/layouts.md."""
    block, r = divmod(row, 16)
    if dtype == "f32":
        at = block * 16 * cols * 4 + (col * 16 + r) * 4
        return float(np.frombuffer(packed, "<f4", 1, at)[0])
    if dtype == "bf16":
        even = cols + cols % 2
        at = block * 16 * even * 2 + (col // 2) * 64 + r * 4 + (col % 2) * 2
        return float(np.frombuffer(packed, ml_dtypes.bfloat16, 1, at)[0])
    size = 32 if named(dtype).bits == 8 else group_size
    left = -(-cols // size) * size  # columns of the block's panels from here on
    at = block * nbytes_of_columns(dtype, left, group_size)
    while col >= 256:
        at += nbytes_of_columns(dtype, 256, group_size)
        left, col = left - 256, col - 256
    width = min(left, 256)
    end = at + nbytes_of_columns(dtype, width, group_size)
    scale = float(np.frombuffer(packed, "<f2", 1, end - 32 + 2 * r)[0])
    if named(dtype).bits == 8:
        return (packed[at + (col // 4) * 64 + 4 * r + col % 4] - 128) * scale
    byte = packed[at + (col // 8) * 64 + 4 * r + col % 4]
    code = byte >> 4 if col % 8 >= 4 else byte & 15
    group = at + width * 8 + col // group_size * 16
    multiplier = float(np.frombuffer(packed, "i1", 1, group + r)[0])
    return (code - (7 if multiplier < 0 else 8)) * abs(multiplier) * scale / 16


def nbytes_of_columns(dtype: str, columns: int, group_size: int) -> int:
    """Of 16 rows, whatever the panels they make."""
    scales = -(-columns // 256) * 32
    if named(dtype).bits == 8:
        return columns * 16 + scales
    return columns * 8 + columns // group_size * 16 + scales


@pytest.mark.parametrize(("format", "group_size"), MATRICES)
@pytest.mark.parametrize("shape", SHAPES)
def test_layout_is_the_documented_one(shape: tuple[int, int], format: str, group_size: int) -> None:
    rows, cols = shape
    stored = numpy_bytes(values(rows, cols), format, group_size)
    assert stored.nbytes == named(format).nbytes(rows, cols, group_size)
    assert stored.nbytes % 64 == 0
    if group_size:
        size = 32 if named(format).bits == 8 else group_size
        used = nbytes_of_columns(format, -(-cols // size) * size, group_size) * -(-rows // 16)
        assert 0 <= stored.nbytes - used < 64
    unpacked = unpack(stored, format, rows, cols, group_size)
    data = stored.tobytes()
    expected = [
        [read_element(data, format, cols, group_size, r, c) for c in range(cols)]
        for r in range(rows)
    ]
    np.testing.assert_array_equal(unpacked, np.array(expected, np.float32))


@pytest.mark.parametrize("shape", SHAPES)
def test_lossless_formats(shape: tuple[int, int]) -> None:
    w = values(*shape)
    np.testing.assert_array_equal(unpack(pack_floats(w, "f32"), "f32", *shape), w)
    rounded = w.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(unpack(pack_floats(w, "bf16"), "bf16", *shape), rounded)
    vector = unpack(pack_floats(w[0], "vector"), "vector", 1, shape[1])
    np.testing.assert_array_equal(vector, w[0])


@pytest.mark.parametrize(("format", "group_size"), QUANTIZED)
@pytest.mark.parametrize("shape", SHAPES)
def test_padding_is_zero(shape: tuple[int, int], format: str, group_size: int) -> None:
    rows, cols = shape
    stored = numpy_bytes(values(rows, cols), format, group_size)
    found = unpack_codes(stored, format, cols, group_size)
    stored_cols = named(format).stored_cols(cols, group_size)
    assert found.codes.shape == (-(-rows // 16) * 16, stored_cols)
    assert not found.codes[:, cols:].any()
    assert not found.codes[rows:].any()
    assert not found.scales[rows:].any()
    assert found.multipliers is None or not found.multipliers[rows:].any()


@pytest.mark.parametrize(("format", "group_size"), QUANTIZED)
@pytest.mark.parametrize("shape", SHAPES)
def test_codes_come_back(shape: tuple[int, int], format: str, group_size: int) -> None:
    """And stand for what is unpacked, a float of each group times a code."""
    rows, cols = shape
    rounded = round_to_nearest(values(rows, cols), format, group_size)
    for codes in (rounded, any_codes(rows, cols, format, group_size)):
        stored = pack(codes)
        found = unpack_codes(stored, format, cols, group_size)
        for want, got in zip(vars(codes).values(), vars(found).values(), strict=True):
            np.testing.assert_array_equal(got[:rows] if isinstance(got, np.ndarray) else got, want)
        scales = np.repeat(codes.group_scales(), group_size, axis=1)[:, :cols]
        unpacked = unpack(stored, format, rows, cols, group_size)
        np.testing.assert_array_equal(codes.codes[:, :cols] * scales, unpacked)


@pytest.mark.parametrize(("format", "group_size"), QUANTIZED)
@pytest.mark.parametrize("shape", SHAPES)
def test_unpacked_codes_pack_to_the_same_bytes(
    shape: tuple[int, int], format: str, group_size: int
) -> None:
    """Whoever rounded them: bytes of the core, and of codes that come from elsewhere."""
    rows, cols = shape
    rounded = _core.quantize_pack(values(rows, cols, seed=2), format, group_size)
    for stored in (rounded, pack(any_codes(rows, cols, format, group_size))):
        found = unpack_codes(stored, format, cols, group_size)
        np.testing.assert_array_equal(pack(found), stored)
        multipliers = None if found.multipliers is None else found.multipliers[:rows]
        only = Codes(format, found.codes[:rows], multipliers, found.scales[:rows], group_size)
        np.testing.assert_array_equal(pack(only), stored)


@pytest.mark.parametrize(("format", "group_size"), MATRICES)
@pytest.mark.parametrize("shape", SHAPES)
def test_native_packer_writes_the_same_bytes(
    shape: tuple[int, int], format: str, group_size: int
) -> None:
    w = values(*shape, seed=1)
    w[-1] = 0
    for matrix in (w, np.sign(w), w * 1e-7, w * 1e-12, w * 1e6, np.round(w * 4)):
        native = _core.quantize_pack(np.asarray(matrix, np.float32), format, group_size, 2)
        np.testing.assert_array_equal(native, numpy_bytes(matrix, format, group_size))
        unpacked = _core.unpack(native, format, *shape, group_size)
        np.testing.assert_array_equal(unpacked, unpack(native, format, *shape, group_size))


def test_bytes_of_another_length_are_a_request_error() -> None:
    with pytest.raises(RequestError, match="12 bytes"):
        unpack(np.zeros(12, np.uint8), "w8", 3, 3, 256)
