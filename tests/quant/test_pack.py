"""The numpy layouts against a byte-by-byte reading of docs/layouts.md, and the C++ packer."""

import ml_dtypes
import numpy as np
import pytest

from deepmnn import _core
from deepmnn.errors import CheckpointError, RequestError
from deepmnn.formats import named
from deepmnn.graph.ir import Weight
from deepmnn.graph.weights import Constant
from deepmnn.quant import pack as packing

SHAPES = [(1, 1), (3, 7), (16, 64), (17, 65), (33, 31), (40, 200), (5, 129), (18, 256), (7, 700)]
QUANTISED = [("w8", 256), ("w4", 32), ("w4", 64), ("w4", 128)]
FORMATS = [("f32", 0), ("bf16", 0), *QUANTISED]


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
    size = 32 if dtype == "w8" else group_size
    left = -(-cols // size) * size  # columns of the block's panels from here on
    at = block * nbytes_of_columns(dtype, left, group_size)
    while col >= 256:
        at += nbytes_of_columns(dtype, 256, group_size)
        left, col = left - 256, col - 256
    width = min(left, 256)
    end = at + nbytes_of_columns(dtype, width, group_size)
    scale = float(np.frombuffer(packed, "<f2", 1, end - 32 + 2 * r)[0])
    if dtype == "w8":
        return (packed[at + (col // 4) * 64 + 4 * r + col % 4] - 128) * scale
    byte = packed[at + (col // 8) * 64 + 4 * r + col % 4]
    code = byte >> 4 if col % 8 >= 4 else byte & 15
    group = at + width * 8 + col // group_size * 16
    multiplier = float(np.frombuffer(packed, "i1", 1, group + r)[0])
    return (code - (7 if multiplier < 0 else 8)) * abs(multiplier) * scale / 16


def nbytes_of_columns(dtype: str, columns: int, group_size: int) -> int:
    """Of 16 rows, whatever the panels they make."""
    scales = -(-columns // 256) * 32
    if dtype == "w8":
        return columns * 16 + scales
    return columns * 8 + columns // group_size * 16 + scales


@pytest.mark.parametrize(("dtype", "group_size"), FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_layout_is_the_documented_one(shape: tuple[int, int], dtype: str, group_size: int) -> None:
    rows, cols = shape
    packed = packing.pack(values(rows, cols), dtype, group_size)
    assert packed.nbytes == named(dtype).nbytes(rows, cols, group_size)
    assert packed.nbytes % 64 == 0
    if group_size:
        size = 32 if dtype == "w8" else group_size
        used = nbytes_of_columns(dtype, -(-cols // size) * size, group_size) * -(-rows // 16)
        assert 0 <= packed.nbytes - used < 64
    unpacked = packing.unpack(packed, dtype, rows, cols, group_size)
    data = packed.tobytes()
    expected = [
        [read_element(data, dtype, cols, group_size, r, c) for c in range(cols)]
        for r in range(rows)
    ]
    np.testing.assert_array_equal(unpacked, np.array(expected, np.float32))


@pytest.mark.parametrize("shape", SHAPES)
def test_lossless_formats(shape: tuple[int, int]) -> None:
    w = values(*shape)
    np.testing.assert_array_equal(packing.unpack(packing.pack(w, "f32"), "f32", *shape), w)
    rounded = w.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(packing.unpack(packing.pack(w, "bf16"), "bf16", *shape), rounded)
    vector = packing.unpack(packing.pack(w[0], "vector"), "vector", 1, shape[1])
    np.testing.assert_array_equal(vector, w[0])


@pytest.mark.parametrize(("dtype", "group_size"), QUANTISED)
@pytest.mark.parametrize("shape", SHAPES)
def test_padding_is_zero(shape: tuple[int, int], dtype: str, group_size: int) -> None:
    rows, cols = shape
    packed = packing.pack(values(rows, cols), dtype, group_size)
    found = packing.unpack_codes(packed, dtype, cols, group_size)
    assert found.codes.shape == (-(-rows // 16) * 16, named(dtype).stored_cols(cols, group_size))
    assert not found.codes[:, cols:].any()
    assert not found.codes[rows:].any()
    assert not found.scales[rows:].any()
    assert found.multipliers is None or not found.multipliers[rows:].any()


@pytest.mark.parametrize(("dtype", "group_size"), QUANTISED)
@pytest.mark.parametrize("shape", SHAPES)
def test_codes_come_back(shape: tuple[int, int], dtype: str, group_size: int) -> None:
    """And stand for what is unpacked, a float of each group times a code."""
    rows, cols = shape
    quantized = packing.quantize(values(rows, cols), dtype, group_size)
    packed = packing.pack(values(rows, cols), dtype, group_size)
    found = packing.unpack_codes(packed, dtype, cols, group_size)
    for want, got in zip(vars(quantized).values(), vars(found).values(), strict=True):
        np.testing.assert_array_equal(got[:rows] if isinstance(got, np.ndarray) else got, want)
    scales = np.repeat(quantized.group_scales(), group_size, axis=1)[:, :cols]
    np.testing.assert_array_equal(
        quantized.codes[:, :cols] * scales, packing.unpack(packed, dtype, rows, cols, group_size)
    )


@pytest.mark.parametrize(("dtype", "group_size"), QUANTISED)
def test_quantising_is_near_the_best_scale(dtype: str, group_size: int) -> None:
    """Of each group, against a dense search over 400 scales of both signs."""
    w = values(20, 512, seed=3) * np.repeat(10 ** values(20, 512 // group_size), group_size, axis=1)
    quantized = packing.quantize(w, dtype, group_size)
    half = named(dtype).offset
    assert quantized.codes.min() >= -half
    assert quantized.codes.max() <= half - 1
    assert dtype == "w8" or np.abs(quantized.multipliers).max() <= 15
    best = np.full((20, 512 // group_size), np.inf)
    groups = w.reshape(20, -1, group_size)
    largest = np.abs(groups).max(2, keepdims=True)
    for step in np.outer((-1, 1), np.linspace(0.5, 1.2, 400)).reshape(-1) / half:
        trial = np.clip(np.rint(groups / (step * largest)), -half, half - 1) * step * largest
        best = np.minimum(best, ((groups - trial) ** 2).sum(2))
    error = ((groups - quantized.values().reshape(groups.shape)) ** 2).sum(2)
    assert error.sum() <= 1.2 * best.sum()
    plain = np.rint(groups / largest * (half - 1)) * largest / (half - 1)
    assert error.sum() < ((groups - plain) ** 2).sum()


@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_groups_of_a_panel_differ(group_size: int) -> None:
    """A small group beside ones 4 times as large is little worse off than by itself."""
    w = values(30, 256)
    w[:, :group_size] /= 4
    alone = packing.quantize(w[:, :group_size], "w4", group_size).values()
    beside = packing.quantize(w, "w4", group_size).values()[:, :group_size]
    errors = [((v - w[:, :group_size]) ** 2).sum() for v in (alone, beside)]
    assert errors[1] < 1.3 * errors[0]


@pytest.mark.parametrize(("dtype", "group_size"), QUANTISED)
def test_extreme_values(dtype: str, group_size: int) -> None:
    """Zeros stay zero; values too small or too large for an fp16 scale do not become NaN."""
    w = np.zeros((4, 64), np.float32)
    w[1], w[2], w[3] = 1e-12, 3e38, -3e38
    decoded = packing.unpack(packing.pack(w, dtype, group_size), dtype, 4, 64, group_size)
    assert np.isfinite(decoded).all()
    assert not decoded[0].any()
    assert np.abs(decoded[1]).max() < 1e-6
    assert (np.sign(decoded[2]) == 1).all()
    assert (np.sign(decoded[3]) == -1).all()


@pytest.mark.parametrize(("dtype", "group_size"), QUANTISED)
def test_representable_weights_are_exact(dtype: str, group_size: int) -> None:
    """Every group's codes begin at the long end; the first group has the largest multiplier."""
    rng, half = np.random.default_rng(5), named(dtype).offset
    codes = rng.integers(-half, half, (20, 600)).astype(np.float32)
    codes[:, ::group_size] = -half
    w = codes * np.float32(2**-6)
    if dtype == "w4":
        multipliers = rng.choice([-15, -14, -9, -1, 0, 1, 2, 13, 15], (20, -(-600 // group_size)))
        multipliers[:, :: 256 // group_size] = 15
        w *= np.repeat(multipliers, group_size, axis=1)[:, :600].astype(np.float32)
    packed = packing.pack(w, dtype, group_size)
    np.testing.assert_array_equal(packing.unpack(packed, dtype, 20, 600, group_size), w)


@pytest.mark.parametrize(("dtype", "group_size"), FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_native_packer_writes_the_same_bytes(
    shape: tuple[int, int], dtype: str, group_size: int
) -> None:
    w = values(*shape, seed=1)
    w[-1] = 0
    for matrix in (w, np.sign(w), w * 1e-7, w * 1e-12, w * 1e6, np.round(w * 4)):
        native = _core.quantize_pack(np.asarray(matrix, np.float32), dtype, group_size, 2)
        np.testing.assert_array_equal(native, packing.pack(matrix, dtype, group_size))
        unpacked = _core.unpack(native, dtype, *shape, group_size)
        np.testing.assert_array_equal(unpacked, packing.unpack(native, dtype, *shape, group_size))


def test_bad_formats_are_request_errors() -> None:
    with pytest.raises(RequestError, match="12 bytes"):
        packing.unpack(np.zeros(12, np.uint8), "w8", 3, 3, 256)


def test_pack_weight_refuses_nan() -> None:
    weight = Weight("w", Constant((2, 64)), format="w4", group_size=64)
    w = values(2, 64)
    assert packing.pack_weight(weight, w).nbytes == weight.nbytes
    for bad in (np.nan, np.inf, -np.inf):
        w[1, 3] = bad
        with pytest.raises(CheckpointError, match="NaN"):
            packing.pack_weight(weight, w)
