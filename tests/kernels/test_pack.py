"""quantize_pack, unpack and decode_row against the numpy definition in quant/pack.py."""

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
from deepmnn.quant import pack

FORMATS = [("f32", 0), ("bf16", 0), ("w8", 256), ("w4", 32), ("w4", 64), ("w4", 128)]
SHAPES = [(1, 1), (5, 2), (16, 64), (17, 65), (33, 31), (40, 129), (64, 300), (18, 256), (7, 705)]


@pytest.mark.parametrize(("dtype", "group_size"), FORMATS)
@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_bytes_equal_the_definition(isa, rng, unaligned, dtype, group_size, rows, cols):
    w = unaligned(rng.standard_normal((rows, cols)).astype(np.float32))
    packed = _core.quantize_pack(w, dtype, group_size, 1, isa)
    assert packed.nbytes == _core.packed_nbytes(dtype, rows, cols, group_size)
    assert packed.nbytes == named(dtype).nbytes(rows, cols, group_size)
    assert np.array_equal(packed, pack.pack(w, dtype, group_size))


def extremes(rng):
    yield np.zeros((16, 64), np.float32)
    yield np.full((17, 64), -0.0, np.float32)
    yield np.full((3, 70), 3.4e38, np.float32)
    yield (rng.standard_normal((16, 64)) * 1e30).astype(np.float32)
    yield (rng.standard_normal((16, 64)) * 1e-7).astype(np.float32)  # fp16 subnormal scales
    yield (rng.standard_normal((16, 64)) * 1e-40).astype(np.float32)
    yield rng.integers(-8, 8, (32, 128)).astype(np.float32)
    # Groups whose sizes differ from those of their panel: up to a multiplier of 0.
    yield (rng.standard_normal((16, 700)) * 10.0 ** rng.uniform(-3, 3, (16, 700))).astype(
        np.float32
    )
    scales = np.repeat(10.0 ** rng.uniform(-45, 35, (40, 24)), 32, axis=1)
    yield (rng.standard_normal((40, 768)) * scales).astype(np.float32)
    yield np.where(rng.random((16, 64)) < 0.5, -1, 1).astype(np.float32)  # ties in the maximum


@pytest.mark.parametrize(("dtype", "group_size"), FORMATS)
def test_bytes_equal_the_definition_at_the_extremes(isa, rng, dtype, group_size):
    for w in extremes(rng):
        packed = _core.quantize_pack(w, dtype, group_size, 1, isa)
        with np.errstate(over="ignore"):
            assert np.array_equal(packed, pack.pack(w, dtype, group_size))


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_threads_write_the_same_bytes(rng, threads):
    w = rng.standard_normal((100, 130)).astype(np.float32)
    one = _core.quantize_pack(w, "w4", 64)
    assert np.array_equal(one, _core.quantize_pack(w, "w4", 64, threads))


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
    _core.quantize_pack(w, "w4", 64, 1024)
except RequestError:
    print("refused")
"""


def test_more_threads_than_the_system_allows():
    """Memory for the result but not for a thread's stack, in a process of its own."""
    if _core.available_cores() < 2:
        pytest.skip("one processor: no thread is started")
    run = subprocess.run([sys.executable, "-c", CROWDED], capture_output=True, text=True)
    assert run.stdout == "refused\n", run.stderr


@pytest.mark.parametrize(("dtype", "group_size"), FORMATS)
@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_unpack_and_decode_row(isa, rng, dtype, group_size, rows, cols):
    packed = pack.pack(rng.standard_normal((rows, cols)).astype(np.float32), dtype, group_size)
    expected = pack.unpack(packed, dtype, rows, cols, group_size)
    assert np.array_equal(_core.unpack(packed, dtype, rows, cols, group_size), expected)
    for row in {0, rows // 2, rows - 1}:
        got = kernels.decode_row(packed, dtype, rows, cols, group_size, row, isa)
        assert np.array_equal(got, expected[row])


@pytest.mark.parametrize(("dtype", "group_size"), [("w8", 256), ("w4", 128)])
def test_every_fp16_scale_decodes(isa, rng, dtype, group_size):
    """All 65536 half floats, in 4096 panels of one block."""
    cols = 4096 * 256
    codes = np.ones((16, cols), np.int8)
    multipliers = rng.integers(-15, 16, (16, cols // group_size)).astype(np.int8)
    halves = np.arange(65536, dtype=np.uint16).reshape(16, 4096).view(np.float16)
    quantized = Codes(dtype, codes, multipliers if dtype == "w4" else None, halves, group_size)
    packed, expected = pack.pack_codes(quantized), quantized.group_scales()
    for row in range(16):
        got = kernels.decode_row(packed, dtype, 16, cols, group_size, row, isa)
        np.testing.assert_array_equal(got[::group_size], expected[row])


def test_vector_unpacks_to_itself():
    x = np.arange(5, dtype=np.float32)
    packed = pack.pack(x, "vector")
    assert np.array_equal(_core.unpack(packed, "vector", 1, 5), x)


def test_bf16_is_exact_for_bf16_values(rng):
    w = rng.standard_normal((20, 33)).astype(ml_dtypes.bfloat16).astype(np.float32)
    assert np.array_equal(_core.unpack(_core.quantize_pack(w, "bf16"), "bf16", 20, 33), w)


W = np.zeros((4, 4), np.float32)


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
        (lambda: _core.quantize_pack(W, "w4", 48), "group_size 48"),
        (lambda: _core.quantize_pack(W, "w4"), "group_size 0"),
        (lambda: _core.quantize_pack(W, "w4", 256), "group_size 256"),
        (lambda: _core.quantize_pack(W, "w8", 64), "group_size 64"),
        (lambda: _core.quantize_pack(W, "bf16", 64), "group_size 64"),
        (lambda: _core.quantize_pack(W, "f32", 0, 0), "threads 0"),
        (lambda: _core.quantize_pack(W, "f32", 0, 1, "mmx"), "instruction set 'mmx'"),
        (lambda: _core.packed_nbytes("f32", -1, 4), "-1 rows"),
        (lambda: _core.packed_nbytes("f32", 2**40, 2**40), "columns"),
        (lambda: _core.packed_nbytes("vector", 2, 4), "a vector of 2 rows"),
        (lambda: _core.unpack(np.zeros(64, np.uint8), "f32", 1, 4), "packed is uint8 "),
        (lambda: _core.unpack(np.zeros(64, np.int8), "f32", 0, 4), "packed is int8 "),
        (lambda: kernels.decode_row(np.zeros(256, np.uint8), "f32", 4, 4, 0, 4), "row 4"),
    ],
)
def test_bad_calls_raise_typed_errors(call, found):
    with pytest.raises(RequestError, match=r"expected") as caught:
        call()
    assert found in str(caught.value)
