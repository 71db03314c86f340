"""quantize, pack, quantize_pack, unpack and decode_row against the numpy definitions in quant/."""

from __future__ import annotations

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from deepmnn import _core
from deepmnn._core import kernels
from deepmnn.errors import RequestError
from deepmnn.formats import Codes, named
from deepmnn.quant.layout import pack, unpack
from deepmnn.quant.rotation import unrotate
from deepmnn.quant.rounding import round_to_nearest
from storage import NAMES, QUANTIZED_NAMES, any_codes, numpy_bytes

SHAPES = [(1, 1), (5, 2), (16, 64), (17, 65), (33, 31), (40, 129), (64, 300), (18, 256), (7, 705)]


@pytest.mark.parametrize("dtype", NAMES)
@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_bytes_equal_the_definition(isa, rng, unaligned, dtype, rows, cols):
    w = unaligned(rng.standard_normal((rows, cols)).astype(np.float32))
    packed = _core.quantize_pack(w, dtype, 1, isa)
    assert packed.nbytes == _core.packed_nbytes(dtype, rows, cols)
    assert packed.nbytes == named(dtype).nbytes(rows, cols)
    assert np.array_equal(packed, numpy_bytes(w, dtype))


def extremes(rng):
    yield np.zeros((16, 64), np.float32)
    yield np.full((17, 64), -0.0, np.float32)
    yield np.full((3, 70), 1e37, np.float32)  # scales are at most 65504
    yield (rng.standard_normal((16, 64)) * 1e30).astype(np.float32)
    yield (rng.standard_normal((16, 64)) * 1e-7).astype(np.float32)  # fp16 subnormal scales
    yield (rng.standard_normal((16, 64)) * 1e-40).astype(np.float32)
    yield rng.integers(-8, 8, (32, 128)).astype(np.float32)
    yield (rng.standard_normal((16, 700)) * 10.0 ** rng.uniform(-3, 3, (16, 700))).astype(
        np.float32
    )
    scales = np.repeat(10.0 ** rng.uniform(-45, 35, (40, 24)), 32, axis=1)
    yield (rng.standard_normal((40, 768)) * scales).astype(np.float32)
    yield np.eye(16, 64, dtype=np.float32)  # rotated: ties in the maximum, of both signs


@pytest.mark.parametrize("dtype", NAMES)
def test_bytes_equal_the_definition_at_the_extremes(isa, rng, dtype):
    for w in extremes(rng):
        packed = _core.quantize_pack(w, dtype, 1, isa)
        with np.errstate(over="ignore"):
            assert np.array_equal(packed, numpy_bytes(w, dtype))


def quantize(w, format, threads=1, isa=""):
    return Codes(format, *_core.quantize(w, format, threads, isa))


def pack_in_core(codes, threads=1, isa=""):
    return _core.pack(codes.levels, codes.scales, codes.format, threads, isa)


def same_codes(got, want):
    for name in ("levels", "scales"):
        ours, theirs = getattr(got, name), getattr(want, name)
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        assert ours.tobytes() == theirs.tobytes(), name


@pytest.mark.parametrize("dtype", QUANTIZED_NAMES)
@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_codes_equal_the_definition(isa, rng, unaligned, dtype, rows, cols):
    w = unaligned(rng.standard_normal((rows, cols)).astype(np.float32))
    want = round_to_nearest(w, dtype)
    same_codes(quantize(w, dtype, 1, isa), want)
    assert np.array_equal(pack_in_core(want, 1, isa), _core.quantize_pack(w, dtype))


@pytest.mark.parametrize("dtype", QUANTIZED_NAMES)
def test_codes_equal_the_definition_at_the_extremes(isa, rng, dtype):
    for w in extremes(rng):
        with np.errstate(over="ignore"):
            want = round_to_nearest(w, dtype)
        same_codes(quantize(w, dtype, 1, isa), want)


@pytest.mark.parametrize("dtype", QUANTIZED_NAMES)
@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_any_codes_are_packed_as_numpy_packs_them(isa, dtype, rows, cols):
    codes = any_codes(rows, cols, dtype)
    assert np.array_equal(pack_in_core(codes, 1, isa), pack(codes))


@pytest.mark.parametrize("threads", [2, 3, 8])
@pytest.mark.parametrize("dtype", QUANTIZED_NAMES)
def test_threads_write_the_same_bytes(rng, dtype, threads):
    w = rng.standard_normal((100, 130)).astype(np.float32)
    one = _core.quantize_pack(w, dtype)
    assert np.array_equal(one, _core.quantize_pack(w, dtype, threads))
    codes = quantize(w, dtype)
    same_codes(quantize(w, dtype, threads), codes)
    assert np.array_equal(pack_in_core(codes, threads), one)


CROWDED = """
import resource
import numpy as np
from deepmnn import _core
from deepmnn.errors import RequestError
from deepmnn.formats import Codes, named
w = np.ones((4096, 4096), np.float32)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (14 << 20),) * 2)
try:
    _core.quantize_pack(w, "w4", 1024)
except RequestError:
    print("refused")
"""


def test_more_threads_than_the_system_allows():
    """Memory for the result but not for a thread's stack, in a process of its own."""
    if _core.available_cores() < 2:
        pytest.skip("one processor: no thread is started")
    run = subprocess.run([sys.executable, "-c", CROWDED], capture_output=True, text=True)
    assert run.stdout == "refused\n", run.stderr


@pytest.mark.parametrize("dtype", NAMES)
@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_unpack_and_decode_row(isa, rng, dtype, rows, cols):
    packed = numpy_bytes(rng.standard_normal((rows, cols)).astype(np.float32), dtype)
    expected = unpack(packed, dtype, rows, cols)
    assert np.array_equal(_core.unpack(packed, dtype, rows, cols), expected)
    for row in {0, rows // 2, rows - 1}:
        got = kernels.decode_row(packed, dtype, rows, cols, row, isa)
        assert np.array_equal(got, expected[row])


@pytest.mark.parametrize("dtype", ["w8", "w3"])
def test_every_fp16_scale_decodes(isa, dtype):
    """All 65536 half floats, in 4096 panels of one block."""
    cols = 4096 * 256
    levels = np.resize(np.array(named(dtype).levels, np.int8), (16, cols))
    halves = np.arange(65536, dtype=np.uint16).reshape(16, 4096).view(np.float16)
    codes = Codes(dtype, levels, halves)
    packed = pack(codes)
    with np.errstate(invalid="ignore", over="ignore"):
        expected = unrotate(codes.values())
    for row in range(16):
        got = kernels.decode_row(packed, dtype, 16, cols, row, isa)
        np.testing.assert_array_equal(got, expected[row])


def test_vector_unpacks_to_itself():
    x = np.arange(5, dtype=np.float32)
    packed = numpy_bytes(x, "vector")
    assert np.array_equal(_core.unpack(packed, "vector", 1, 5), x)


def test_bf16_is_exact_for_bf16_values(rng):
    w = rng.standard_normal((20, 33)).astype(ml_dtypes.bfloat16).astype(np.float32)
    assert np.array_equal(_core.unpack(_core.quantize_pack(w, "bf16"), "bf16", 20, 33), w)


W = np.zeros((4, 4), np.float32)
C, S = np.zeros((3, 320), np.int8), np.zeros((3, 2), np.float16)


@pytest.mark.parametrize(
    ("call", "found"),
    [
        (lambda: _core.quantize_pack(W.astype(np.float64), "f32"), "w is float64 "),
        (lambda: _core.quantize_pack(W[0], "f32"), "w is float32 "),
        (lambda: _core.quantize_pack(W[:, ::2], "f32"), "contiguous"),
        (lambda: _core.quantize_pack(W[:, :2], "f32"), "contiguous"),
        (lambda: _core.quantize_pack(W.T[1:], "f32"), "contiguous"),
        (lambda: _core.quantize_pack(W, "q3"), "weight format 'q3'"),
        (lambda: _core.quantize_pack(W[:1], "vector"), "weight format 'vector'"),
        (lambda: _core.quantize_pack(W, "f32", 0), "threads 0"),
        (lambda: _core.quantize_pack(W, "f32", 1, "mmx"), "instruction set 'mmx'"),
        (lambda: _core.rotate(W.astype(np.float64)), "x is float64 "),
        (lambda: _core.rotate(W[0]), "x is float32 "),
        (lambda: _core.rotate(W[:, ::2]), "contiguous"),
        (lambda: _core.rotate(W, 0), "threads 0"),
        (lambda: _core.rotate(W, 1, "mmx"), "instruction set 'mmx'"),
        (lambda: _core.quantize(W, "bf16"), "weight format 'bf16'"),
        (lambda: _core.quantize(W[:, :2], "w4"), "contiguous"),
        (lambda: _core.quantize(W, "w4", 1025), "threads 1025"),
        (lambda: _core.pack(C, S, "f32"), "weight format 'f32'"),
        (lambda: _core.pack(C[:, :300], S, "w4"), "levels is int8 [3, 300]"),
        (lambda: _core.pack(C[:, ::2], S, "w4"), "contiguous"),
        (lambda: _core.pack(C[0], S, "w4"), "two dimensions"),
        (lambda: _core.pack(C.view(np.uint8), S, "w4"), "levels is uint8 "),
        (lambda: _core.pack(C, S[:, :1], "w4"), "scales is float16 [3, 1]"),
        (lambda: _core.pack(C, S.astype(np.float32), "w4"), "scales is float32 "),
        (lambda: _core.pack(C, S.view(np.int16), "w4"), "expected float16"),
        (lambda: _core.pack(C, S, "w4", 0), "threads 0"),
        (lambda: _core.pack(C, S, "w4", 1, "mmx"), "instruction set 'mmx'"),
        (lambda: _core.packed_nbytes("f32", -1, 4), "-1 rows"),
        (lambda: _core.packed_nbytes("f32", 2**40, 2**40), "columns"),
        (lambda: _core.packed_nbytes("vector", 2, 4), "a vector of 2 rows"),
        (lambda: _core.unpack(np.zeros(64, np.uint8), "f32", 1, 4), "packed is uint8 "),
        (lambda: _core.unpack(np.zeros(64, np.int8), "f32", 0, 4), "packed is int8 "),
        (lambda: kernels.decode_row(np.zeros(256, np.uint8), "f32", 4, 4, 4), "row 4"),
    ],
)
def test_bad_calls_raise_typed_errors(call, found):
    with pytest.raises(RequestError, match=r"expected") as caught:
        call()
    assert found in str(caught.value)
