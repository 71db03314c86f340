"""Weights into their stored bytes: from numbers, and from codes that somebody else made."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from deepmnn.errors import CheckpointError, RequestError
from deepmnn.formats import Codes
from deepmnn.graph.ir import Weight
from deepmnn.graph.weights import Constant
from deepmnn.quant.layout import unpack, unpack_codes
from deepmnn.quant.rotation import unrotate
from deepmnn.quant.rounding import round_to_nearest
from deepmnn.quant.store import store, store_codes, stored_values
from storage import NAMES, QUANTIZED_NAMES, any_codes, numpy_bytes

SHAPES = [(1, 1), (17, 65), (40, 200), (18, 256), (7, 700)]


def values(rows: int, cols: int) -> np.ndarray:
    return np.random.default_rng([rows, cols]).standard_normal((rows, cols), np.float32)


@pytest.mark.parametrize("format", NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_numbers_are_stored_as_numpy_stores_them(shape: tuple[int, int], format: str) -> None:
    weight, w = Weight("w", Constant(shape), format=format), values(*shape)
    stored = store(weight, w, threads=2)
    assert stored.nbytes == weight.nbytes
    np.testing.assert_array_equal(stored, numpy_bytes(w, format))
    unpacked = unpack(stored, format, *shape)
    np.testing.assert_array_equal(stored_values(weight, stored), unpacked)


def test_vectors_keep_their_shape() -> None:
    weight, w = Weight("b", Constant((65,)), "vector", "vector"), values(1, 65)[0]
    stored = store(weight, w)
    assert stored.nbytes == weight.nbytes
    np.testing.assert_array_equal(stored_values(weight, stored), w)


def test_numbers_must_be_finite() -> None:
    weight = Weight("w", Constant((2, 64)), format="w4")
    w = values(2, 64)
    assert store(weight, w).nbytes == weight.nbytes
    for bad in (np.nan, np.inf, -np.inf):
        w[1, 3] = bad
        with pytest.raises(CheckpointError, match="NaN"):
            store(weight, w)


@pytest.mark.parametrize("format", QUANTIZED_NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_codes_are_stored_as_they_are(shape: tuple[int, int], format: str) -> None:
    """Codes that no rounding to nearest would choose come back, number for number."""
    weight, codes = Weight("w", Constant(shape), format=format), any_codes(*shape, format)
    stored = store_codes(weight, codes, threads=2)
    assert stored.nbytes == weight.nbytes
    values = unrotate(codes.values())[:, : shape[1]]
    np.testing.assert_array_equal(stored_values(weight, stored), values)
    found = unpack_codes(stored, format, shape[1])
    np.testing.assert_array_equal(found.levels[: shape[0]], codes.levels)


@pytest.mark.parametrize("format", QUANTIZED_NAMES)
@pytest.mark.parametrize("size", [65600.0, -1e30, 3e38])
def test_numbers_too_large_for_a_scale_are_refused(format: str, size: float) -> None:
    w = values(3, 70)
    w[1, 2] = size
    weight = Weight("w", Constant((3, 70)), format=format)
    with pytest.raises(CheckpointError, match=r"'w' has numbers of .*at most 65504 in"):
        store(weight, w)
    largest = np.full((3, 70), np.copysign(65504, size), np.float32)
    found = stored_values(weight, store(weight, largest))
    np.testing.assert_allclose(found, largest, rtol=0.6)  # w3 is coarse


WEIGHT = Weight("w", Constant((3, 70)), format="w4")
CODES = round_to_nearest(values(3, 70), "w4")
W8 = Weight("w", Constant((3, 70)), format="w8")
W8_CODES = round_to_nearest(values(3, 70), "w8")


def changed(codes: Codes, field: str, at: tuple[int, int], number: float) -> Codes:
    array = getattr(codes, field).copy()
    array[at] = number
    return replace(codes, **{field: array})


@pytest.mark.parametrize(
    ("weight", "codes", "error", "match"),
    [
        (W8, CODES, RequestError, "codes of w4; expected w8"),
        (Weight("w", Constant((3, 70))), CODES, RequestError, "expected f32"),
        (
            Weight("w", Constant((3, 70)), format="bf16"),
            replace(CODES, format="bf16"),
            RequestError,
            "codes of bf16",
        ),
        (
            replace(WEIGHT, expr=Constant((4, 70))),
            CODES,
            CheckpointError,
            r"levels are int8 \[3, 96\]; expected int8 \[4, 96\]",
        ),
        (
            replace(WEIGHT, expr=Constant((3, 97))),
            CODES,
            CheckpointError,
            r"levels are int8 \[3, 96\]; expected int8 \[3, 128\]",
        ),
        (
            WEIGHT,
            replace(CODES, levels=CODES.levels.astype(np.int32)),
            CheckpointError,
            "levels are int32",
        ),
        (
            WEIGHT,
            replace(CODES, scales=CODES.scales.astype(np.float32)),
            CheckpointError,
            "scales are float32",
        ),
        (
            WEIGHT,
            replace(CODES, scales=CODES.scales[:, :0]),
            CheckpointError,
            r"scales are float16 \[3, 0\]",
        ),
        (WEIGHT, changed(CODES, "levels", (1, 2), 8), CheckpointError, "levels like 8; .*of w4"),
        (WEIGHT, changed(CODES, "levels", (1, 2), -128), CheckpointError, "levels like -128"),
        (WEIGHT, changed(CODES, "scales", (0, 0), np.nan), CheckpointError, "NaN"),
        (W8, changed(W8_CODES, "scales", (0, 0), np.inf), CheckpointError, "NaN or infinity"),
    ],
)
def test_codes_that_do_not_fit_are_typed_errors(
    weight: Weight, codes: Codes, error: Any, match: str
) -> None:
    with pytest.raises(error, match=match):
        store_codes(weight, codes)
