"""A weight of a graph ↔ its stored bytes, through the core where there is work to do."""

from __future__ import annotations

import numpy as np

from deepmnn import _core
from deepmnn.errors import CheckpointError, RequestError
from deepmnn.formats import F32, U8, Codes, KeptCodes, named
from deepmnn.graph.ir import Weight
from deepmnn.quant.layout import pack, pack_floats, unpack

_LARGEST = 65504.0
"""Of the numbers of a quantised matrix: no rotation of a panel of them needs too large a scale."""

_DAMAGED = "The checkpoint is damaged; download it again."


def store(weight: Weight, array: F32, threads: int = 1) -> U8:
    """Stored bytes of a weight whose values are `array`, rounded to nearest where it has codes.

    Raises CheckpointError when a value is not a finite number, or too large for codes, RequestError
    for a kept format: nothing is rounded to these.
    """
    format = named(weight.format)
    if format.is_kept:
        raise RequestError(
            f"weight {weight.name!r} as {format.name}, which keeps the codes of a checkpoint",
            "a format that numbers are rounded to",
        )
    low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
    if not (np.isfinite(low) and np.isfinite(high)):
        raise CheckpointError(
            f"weight {weight.name!r} contains NaN or infinity", "finite numbers", _DAMAGED
        )
    if format.is_quantized and max(-low, high) > _LARGEST:
        raise CheckpointError(
            f"weight {weight.name!r} has numbers of {max(-low, high):.3g}",
            f"at most {_LARGEST:g} in {format.name}, whose scales are float16",
            "Keep it in bf16 by a recipe of your own, if it is meant.",
        )
    if not format.is_matrix:
        return pack_floats(array, weight.format)
    matrix = np.ascontiguousarray(array, np.float32)
    return _core.quantize_pack(matrix, weight.format, threads)


def store_codes(weight: Weight, codes: Codes | KeptCodes, threads: int = 1) -> U8:
    """Stored bytes of a weight that somebody else rounded: the codes as they are.

    Raises RequestError when they are not in the weight's format, CheckpointError when they do not
    have its shape or break the bounds of the format.
    """
    format = named(weight.format)
    if codes.format != weight.format or not (format.is_quantized or format.is_kept):
        raise RequestError(
            f"weight {weight.name!r}: codes of {codes.format}",
            weight.format,
            "Store it in the format that its codes are in.",
        )
    _check_fields(weight, codes)
    if isinstance(codes, KeptCodes):
        _check_kept(weight, codes)
        return pack(codes)
    _check_levels(weight, codes)
    return _core.pack(
        np.ascontiguousarray(codes.levels),
        np.ascontiguousarray(codes.scales),
        codes.format,
        threads,
    )


def stored_values(weight: Weight, packed: U8) -> F32:
    """The float32 values of a stored weight, in the weight's own shape."""
    values = unpack(packed, weight.format, *weight.matrix_shape)
    return values.reshape(weight.shape)


def _check_fields(weight: Weight, codes: Codes | KeptCodes) -> None:
    for name, field in codes.fields(*weight.matrix_shape).items():
        array = getattr(codes, name)
        if array.dtype != field.dtype or array.shape != field.shape:
            raise CheckpointError(
                f"weight {weight.name!r}: {name} are {array.dtype} {list(array.shape)}",
                f"{field.dtype} {list(field.shape)}",
            )


def _check_kept(weight: Weight, codes: KeptCodes) -> None:
    bits = named(codes.format).bits
    if codes.codes.size and int(codes.codes.max()) >> bits:
        raise CheckpointError(
            f"weight {weight.name!r}: codes of {int(codes.codes.max())}",
            f"{bits} bits in {weight.format}",
            _DAMAGED,
        )
    with np.errstate(over="ignore", invalid="ignore"):  # a power of two may be finite by itself
        largest = codes.group_scales() * np.float32(max(map(abs, named(codes.format).levels)))
    if not (np.isfinite(largest).all() and np.isfinite(codes.group_shifts()).all()):
        raise CheckpointError(
            f"weight {weight.name!r}: scales with NaN or infinity", "finite numbers", _DAMAGED
        )


def _check_levels(weight: Weight, codes: Codes) -> None:
    known = np.zeros(256, bool)  # by level, as a byte
    known[np.array(named(weight.format).levels, np.int8).view(np.uint8)] = True
    found = codes.levels[~known[codes.levels.view(np.uint8)]]
    if found.size:
        raise CheckpointError(
            f"weight {weight.name!r}: levels like {found.flat[0]}",
            f"those of {weight.format}",
            _DAMAGED,
        )
    if not np.isfinite(codes.scales).all():
        raise CheckpointError(
            f"weight {weight.name!r}: scales with NaN or infinity", "finite numbers", _DAMAGED
        )
