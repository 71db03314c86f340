"""The numpy layouts against a bit-by-bit reading of docs/layouts.md, and the core's bytes."""

import itertools

import ml_dtypes
import numpy as np
import pytest

from deepmnn import _core
from deepmnn.errors import RequestError
from deepmnn.formats import Codes, KeptCodes, named
from deepmnn.quant.layout import pack, pack_floats, unpack, unpack_codes
from deepmnn.quant.rotation import unrotate
from deepmnn.quant.rounding import round_to_nearest
from dense_rotation import dense_rotation
from storage import KEPT_NAMES, NAMES, QUANTIZED_NAMES, any_codes, any_kept_codes, numpy_bytes

SHAPES = [(1, 1), (3, 7), (16, 64), (17, 65), (33, 31), (40, 200), (5, 129), (18, 256), (7, 700)]
PLANES = {"w8": (8,), "w6": (4, 2), "w5": (4, 1), "w4": (4,), "w3": (2, 1)}
"""Bits of the planes of a part, in the order of their bytes."""


HALVES = {
    "w5": (2, 7, 12, 17, 22, 27, 33, 39, 45, 51, 58, 66, 75, 86, 100, 121),
    "w4": (2, 7, 12, 18, 24, 31, 40, 53),
    "w3": (6, 20, 36, 58),
}
"""The levels of docs/layouts.md."""


def values(rows: int, cols: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, rows, cols]).standard_normal((rows, cols), np.float32)


def read_element(packed: bytes, dtype: str, cols: int, row: int, col: int) -> float:
    """One element of a matrix of floats, located by the words of docs/layouts.md."""
    block, r = divmod(row, 16)
    if dtype == "f32":
        at = block * 16 * cols * 4 + (col * 16 + r) * 4
        return float(np.frombuffer(packed, "<f4", 1, at)[0])
    even = cols + cols % 2
    at = block * 16 * even * 2 + (col // 2) * 64 + r * 4 + (col % 2) * 2
    return float(np.frombuffer(packed, ml_dtypes.bfloat16, 1, at)[0])


def read_code(packed: bytes, dtype: str, cols: int, row: int, col: int) -> tuple[int, float]:
    """(level, scale) of a column that is stored of a quantised matrix, likewise."""
    bits = sum(PLANES[dtype])
    stored = -(-cols // 32) * 32
    block, r = divmod(row, 16)
    panel, k = divmod(col, 256)
    at = block * block_nbytes(dtype, stored) + panel * block_nbytes(dtype, 256)
    width = min(256, stored - 256 * panel)
    scale = float(np.frombuffer(packed, "<f2", 1, at + width * 2 * bits + 2 * r)[0])
    part, column = divmod(k, 32)
    at += part * 64 * bits
    code = shift = 0
    for plane in PLANES[dtype]:
        per_byte = 8 // plane  # columns 4 apart share a byte
        piece, within = divmod(column, 4 * per_byte)
        byte = packed[at + piece * 64 + 4 * r + within % 4]
        code += (byte >> (within // 4 * plane) & ((1 << plane) - 1)) << shift
        at, shift = at + 64 * plane, shift + plane
    if dtype in HALVES:  # the top bit turns the level of the others into -1 - level
        turned, rest = divmod(code, len(HALVES[dtype]))
        return (-1 - HALVES[dtype][rest] if turned else HALVES[dtype][rest]), scale
    return code - (1 << bits - 1), scale


def block_nbytes(dtype: str, stored: int) -> int:
    """Of 16 rows and so many stored columns, whatever the panels they make."""
    return stored * 2 * sum(PLANES[dtype]) + -(-stored // 256) * 32


def test_planes_are_listed_for_every_format() -> None:
    """docs/layouts.md says how a format's bits are cut; a new one adds its line above."""
    assert {name: tuple(b for b, _ in named(name).planes()) for name in QUANTIZED_NAMES} == PLANES


@pytest.mark.parametrize("format", QUANTIZED_NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_layout_is_the_documented_one(shape: tuple[int, int], format: str) -> None:
    rows, cols = shape
    stored = numpy_bytes(values(rows, cols), format)
    assert stored.nbytes == named(format).nbytes(rows, cols)
    assert stored.nbytes % 64 == 0
    columns = -(-cols // 32) * 32
    assert 0 <= stored.nbytes - block_nbytes(format, columns) * -(-rows // 16) < 64
    data = stored.tobytes()
    read = [[read_code(data, format, cols, r, c) for c in range(columns)] for r in range(rows)]
    codes, scales = np.moveaxis(np.array(read), 2, 0)
    found = unpack_codes(stored, format, cols)
    np.testing.assert_array_equal(found.levels[:rows], codes)
    np.testing.assert_array_equal(np.repeat(found.scales[:rows], 256, 1)[:, :columns], scales)
    rotated = (codes * scales).astype(np.float32)
    unpacked = unpack(stored, format, rows, cols)
    np.testing.assert_array_equal(unpacked, unrotate(rotated)[:, :cols])
    dense = rotated.astype(np.float64) @ dense_rotation(cols)
    np.testing.assert_allclose(unpacked, dense[:, :cols], rtol=0, atol=3e-6)


@pytest.mark.parametrize("format", [name for name in NAMES if name not in QUANTIZED_NAMES])
@pytest.mark.parametrize("shape", SHAPES)
def test_layout_of_floats_is_the_documented_one(shape: tuple[int, int], format: str) -> None:
    rows, cols = shape
    stored = numpy_bytes(values(rows, cols), format)
    assert stored.nbytes == named(format).nbytes(rows, cols)
    data = stored.tobytes()
    expected = [[read_element(data, format, cols, r, c) for c in range(cols)] for r in range(rows)]
    unpacked = unpack(stored, format, rows, cols)
    np.testing.assert_array_equal(unpacked, np.array(expected, np.float32))


@pytest.mark.parametrize("shape", SHAPES)
def test_lossless_formats(shape: tuple[int, int]) -> None:
    w = values(*shape)
    np.testing.assert_array_equal(unpack(pack_floats(w, "f32"), "f32", *shape), w)
    rounded = w.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(unpack(pack_floats(w, "bf16"), "bf16", *shape), rounded)
    vector = unpack(pack_floats(w[0], "vector"), "vector", 1, shape[1])
    np.testing.assert_array_equal(vector, w[0])


@pytest.mark.parametrize("format", QUANTIZED_NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_of_padding_are_zero(shape: tuple[int, int], format: str) -> None:
    rows, cols = shape
    found = unpack_codes(numpy_bytes(values(rows, cols), format), format, cols)
    assert found.levels.shape == (-(-rows // 16) * 16, named(format).stored_cols(cols))
    assert (found.levels[rows:] == named(format).zero_level).all()
    assert not found.scales[rows:].any()


@pytest.mark.parametrize("format", QUANTIZED_NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_codes_come_back(shape: tuple[int, int], format: str) -> None:
    """And what is unpacked are the numbers that they stand for, rotated back."""
    rows, cols = shape
    for codes in (round_to_nearest(values(rows, cols), format), any_codes(rows, cols, format)):
        stored = pack(codes)
        found = unpack_codes(stored, format, cols)
        assert found.format == format
        np.testing.assert_array_equal(found.levels[:rows], codes.levels)
        np.testing.assert_array_equal(found.scales[:rows], codes.scales)
        scales = np.repeat(codes.scales.astype(np.float32), 256, axis=1)
        numbers = codes.levels * scales[:, : codes.levels.shape[1]]
        np.testing.assert_array_equal(codes.values(), numbers)
        unpacked = unpack(stored, format, rows, cols)
        np.testing.assert_array_equal(unpacked, unrotate(numbers)[:, :cols])


@pytest.mark.parametrize("format", QUANTIZED_NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_unpacked_codes_pack_to_the_same_bytes(shape: tuple[int, int], format: str) -> None:
    """Whoever rounded them: bytes of the core, and of codes that come from elsewhere."""
    rows, cols = shape
    rounded = _core.quantize_pack(values(rows, cols, seed=2), format)
    for stored in (rounded, pack(any_codes(rows, cols, format))):
        found = unpack_codes(stored, format, cols)
        np.testing.assert_array_equal(pack(found), stored)
        only = Codes(format, found.levels[:rows], found.scales[:rows])
        np.testing.assert_array_equal(pack(only), stored)


@pytest.mark.parametrize("format", NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_native_packer_writes_the_same_bytes(shape: tuple[int, int], format: str) -> None:
    w = values(*shape, seed=1)
    w[-1] = 0
    for matrix in (w, np.sign(w), w * 1e-7, w * 1e-12, w * 1e6, np.round(w * 4)):
        native = _core.quantize_pack(np.asarray(matrix, np.float32), format, 2)
        np.testing.assert_array_equal(native, numpy_bytes(matrix, format))
        unpacked = _core.unpack(native, format, *shape)
        np.testing.assert_array_equal(unpacked, unpack(native, format, *shape))


def test_bytes_of_another_length_are_a_request_error() -> None:
    with pytest.raises(RequestError, match="12 bytes"):
        unpack(np.zeros(12, np.uint8), "w8", 3, 3)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("format", KEPT_NAMES)
def test_kept_codes_come_back(shape: tuple[int, int], format: str) -> None:
    rows, cols = shape
    codes = any_kept_codes(format, rows, cols)
    stored = pack(codes)
    assert stored.nbytes == named(format).nbytes(rows, cols)
    found = unpack_codes(stored, format, cols)
    for name in codes.fields(rows, cols):
        ours, theirs = getattr(codes, name), getattr(found, name)
        np.testing.assert_array_equal(theirs[:rows], ours)
        assert theirs.dtype == ours.dtype
        assert not theirs[rows:].any()
    np.testing.assert_array_equal(unpack(stored, format, rows, cols), codes.values()[:, :cols])


def test_a_panel_of_q4_k_is_the_documented_one() -> None:
    """16 rows of 288 columns: whole panels first, then one of 32 columns."""
    codes = any_kept_codes("q4_k", 16, 288)
    data = pack(codes).tobytes()
    whole = 16 * (128 + 4 + 16)
    for row, (panel, group) in itertools.product(range(16), [(0, 0), (0, 7), (1, 0)]):
        at, groups = panel * whole + 16 * (16 if panel else 128), 1 if panel else 8
        factor, minimum = (np.frombuffer(data, "<f2", 1, at + 32 * i + 2 * row)[0] for i in (0, 1))
        assert [factor, minimum] == codes.factors[row, 2 * panel : 2 * panel + 2].tolist()
        scale = at + 64 + 16 * group + row
        column = 8 * panel + group
        assert data[scale] == codes.scales[row, column]
        assert data[scale + 16 * groups] == codes.shifts[row, column]


@pytest.mark.parametrize(
    ("format", "kind"),
    [("q8_0", "Q8_0"), ("q4_0", "Q4_0"), ("q4_1", "Q4_1"), ("q5_0", "Q5_0"), ("q5_1", "Q5_1")],
)
def test_numbers_are_those_of_the_gguf_package(format: str, kind: str) -> None:
    """Blocks of GGUF, taken apart, stand for what its own package decodes."""
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType[kind]
    w = values(24, 320)
    data = gguf.quants.quantize(w, kind)
    blocks = data.reshape(24, 10, -1)
    wide = blocks.shape[2]
    heads = 4 if format.endswith("1") else 2
    numbers = np.ascontiguousarray(blocks[:, :, :heads]).view(np.float16)
    if format == "q8_0":
        codes = blocks[:, :, 2:].view(np.int8).astype(np.int16) + 128
    else:
        low = blocks[:, :, wide - 16 :]
        codes = np.concatenate([low & 15, low >> 4], axis=2)
        if named(format).bits == 5:
            bits = np.unpackbits(blocks[:, :, heads : heads + 4], axis=2, bitorder="little")
            codes = codes | bits << 4
    kept = KeptCodes.of(
        format,
        codes.reshape(24, 320),
        numbers[:, :, 0],
        numbers[:, :, 1] if heads == 4 else None,
    )
    stored = pack(kept)
    np.testing.assert_array_equal(
        unpack(stored, format, 24, 320), gguf.quants.dequantize(data, kind)
    )
    np.testing.assert_array_equal(
        _core.unpack(stored, format, 24, 320), gguf.quants.dequantize(data, kind)
    )


def test_numbers_of_super_blocks_are_those_of_the_gguf_package() -> None:
    """Q4_K, of random bytes: 6-bit scales and minima, times two factors of a panel."""
    gguf = pytest.importorskip("gguf")
    rows, panels = 20, 3
    data = np.random.default_rng(0).integers(0, 256, (rows, panels, 144), np.uint8)
    data[:, :, 1] &= 0x3F  # factors that are numbers
    data[:, :, 3] &= 0x3F
    scales, minima = gguf.quants.Q4_K.get_scale_min(data[:, :, 4:16].reshape(-1, 12))
    nibbles = data[:, :, 16:].reshape(rows, panels, 4, 1, 32)
    codes = np.concatenate([nibbles & 15, nibbles >> 4], axis=3).reshape(rows, 256 * panels)
    factors = np.ascontiguousarray(data[:, :, :4]).view(np.float16) * np.float16([1, -1])
    kept = KeptCodes.of(
        "q4_k",
        codes,
        scales.reshape(rows, -1).astype(np.uint8),
        minima.reshape(rows, -1).astype(np.uint8),
        factors.reshape(rows, -1),
    )
    wanted = gguf.quants.dequantize(data.reshape(rows, -1), gguf.GGMLQuantizationType.Q4_K)
    np.testing.assert_array_equal(_core.unpack(pack(kept), "q4_k", *codes.shape), wanted)


def test_numbers_of_mxfp4_are_those_of_the_gguf_package() -> None:
    gguf = pytest.importorskip("gguf")
    data = np.random.default_rng(0).integers(0, 256, (24, 10, 17), np.uint8)
    data[:, :, 0] %= 250  # 255 is no number, and so is 12 times the largest
    codes = np.concatenate([data[:, :, 1:] & 15, data[:, :, 1:] >> 4], axis=2).reshape(24, 320)
    kept = KeptCodes.of("mxfp4", codes, data[:, :, 0])
    wanted = gguf.quants.dequantize(data.reshape(24, -1), gguf.GGMLQuantizationType.MXFP4)
    np.testing.assert_array_equal(_core.unpack(pack(kept), "mxfp4", 24, 320), wanted)
    np.testing.assert_array_equal(kept.values(), wanted)
