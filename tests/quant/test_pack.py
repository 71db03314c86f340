"""The numpy layouts against a byte-by-byte reading of docs/layouts.md, and the C++ packer."""

import math

import ml_dtypes
import numpy as np
import pytest

from deepmnn import _core
from deepmnn.errors import CheckpointError, RequestError
from deepmnn.graph.ir import Weight
from deepmnn.graph.weights import Constant
from deepmnn.quant import pack as packing

SHAPES = [(1, 1), (3, 7), (16, 64), (17, 65), (33, 31), (40, 200), (5, 129)]
FORMATS = [("f32", 0), ("bf16", 0)] + [(d, g) for d in ("w8", "w4") for g in (32, 64, 128)]


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
    codes = 16 * group_size // (1 if dtype == "w8" else 2)
    group, k = divmod(col, group_size)
    start = block * math.ceil(cols / group_size) * (codes + 32) + group * (codes + 32)
    scale = float(np.frombuffer(packed, "<f2", 1, start + codes + 2 * r)[0])
    if dtype == "w8":
        return (packed[start + (k // 4) * 64 + 4 * r + k % 4] - 128) * scale
    byte = packed[start + (k // 8) * 64 + 4 * r + k % 4]
    return ((byte >> 4 if k % 8 >= 4 else byte & 15) - 8) * scale


@pytest.mark.parametrize(("dtype", "group_size"), FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_layout_is_the_documented_one(shape: tuple[int, int], dtype: str, group_size: int) -> None:
    rows, cols = shape
    packed = packing.pack(values(rows, cols), dtype, group_size)
    assert packed.nbytes == packing.packed_nbytes(dtype, rows, cols, group_size)
    assert packed.nbytes % 64 == 0
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


def test_padding_is_zero() -> None:
    for dtype in ("w8", "w4"):
        rows, cols, group = 17, 65, 64
        packed = packing.pack(values(rows, cols), dtype, group)
        data = packed.tobytes()
        right = [(r, c) for r in range(17) for c in (65, 127)]
        below = [(r, c) for r in (17, 31) for c in range(65)]
        assert not any(read_element(data, dtype, cols, group, r, c) for r, c in right + below)


@pytest.mark.parametrize(("dtype", "levels"), [("w8", 256), ("w4", 16)])
def test_quantising_is_near_the_best_scale(dtype: str, levels: int) -> None:
    """Against a dense search over 400 scales of both signs; and every code within half a step."""
    w = values(50, 64, seed=3)
    quantized = packing.quantize(w, dtype, 64)
    scales = quantized.scales.astype(np.float32)
    codes = quantized.codes.astype(np.float32)
    error = ((w - codes * scales) ** 2).sum()
    low, high = -levels // 2, levels // 2 - 1
    assert codes.min() >= low
    assert codes.max() <= high
    best = np.full(50, np.inf)
    for factor in np.linspace(0.5, 1.2, 400):
        for sign in (-1, 1):
            step = sign * factor * np.abs(w).max(1, keepdims=True) / (levels / 2)
            trial = np.clip(np.rint(w / step), low, high)
            best = np.minimum(best, ((w - trial * step) ** 2).sum(1))
    assert error <= 1.2 * best.sum()
    assert error < ((w - plain_rtn(w, high)) ** 2).sum()


def plain_rtn(w: np.ndarray, high: int) -> np.ndarray:
    step = np.abs(w).max(1, keepdims=True) / high
    return np.rint(w / step) * step


@pytest.mark.parametrize("dtype", ["w8", "w4"])
def test_extreme_values(dtype: str) -> None:
    """Zeros stay zero; values too small or too large for an fp16 scale do not become NaN."""
    w = np.zeros((4, 64), np.float32)
    w[1], w[2], w[3] = 1e-12, 3e38, -3e38
    decoded = packing.unpack(packing.pack(w, dtype, 64), dtype, 4, 64, 64)
    assert np.isfinite(decoded).all()
    assert not decoded[0].any()
    assert np.abs(decoded[1]).max() < 1e-6
    assert (np.sign(decoded[2]) == 1).all()
    assert (np.sign(decoded[3]) == -1).all()


def test_representable_weights_are_exact() -> None:
    codes = np.random.default_rng(5).integers(-8, 8, (20, 64)).astype(np.float32)
    codes[:, 0] = -8
    w = codes * np.float32(0.25)
    np.testing.assert_array_equal(packing.unpack(packing.pack(w, "w4", 64), "w4", 20, 64, 64), w)


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
    with pytest.raises(RequestError, match="w5"):
        packing.packed_nbytes("w5", 1, 1)
    with pytest.raises(RequestError, match="group_size 48"):
        packing.packed_nbytes("w4", 1, 1, 48)
    with pytest.raises(RequestError, match="group_size 64"):
        packing.packed_nbytes("f32", 1, 1, 64)
    with pytest.raises(RequestError, match="12 bytes"):
        packing.unpack(np.zeros(12, np.uint8), "w8", 3, 3, 32)


def test_pack_weight_refuses_nan() -> None:
    weight = Weight("w", Constant((2, 64)), dtype="w4", group_size=64)
    w = values(2, 64)
    assert packing.pack_weight(weight, w).nbytes == packing.weight_nbytes(weight)
    for bad in (np.nan, np.inf, -np.inf):
        w[1, 3] = bad
        with pytest.raises(CheckpointError, match="NaN"):
            packing.pack_weight(weight, w)
