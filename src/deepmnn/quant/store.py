"""A weight of a graph ↔ its stored bytes, through the core where there is work to do."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from deepmnn import _core
from deepmnn.errors import CheckpointError, RequestError
from deepmnn.formats import F32, MULTIPLIER_MAX, PANEL_COLS, U8, Codes, named, round_up
from deepmnn.graph.ir import Weight
from deepmnn.quant.layout import pack_floats, unpack

_DAMAGED = "The checkpoint is damaged; download it again."


def store(weight: Weight, array: F32, threads: int = 1) -> U8:
    """Stored bytes of a weight whose values are `array`, rounded to nearest where it has codes.

    Raises CheckpointError when a value is not a finite number.
    """
    if array.size and not (np.isfinite(array.min()) and np.isfinite(array.max())):
        raise CheckpointError(
            f"weight {weight.name!r} contains NaN or infinity", "finite numbers", _DAMAGED
        )
    if not named(weight.format).is_matrix:
        return pack_floats(array, weight.format)
    matrix = np.ascontiguousarray(array, np.float32)
    return _core.quantize_pack(matrix, weight.format, weight.group_size, threads)


def store_codes(weight: Weight, codes: Codes, threads: int = 1) -> U8:
    """Stored bytes of a weight that somebody else rounded: the codes as they are.

    Raises RequestError when they are not in the weight's format, CheckpointError when they do not
    have its shape or break the bounds of the format.
    """
    _check_format(weight, codes)
    _check_shapes(weight, codes)
    _check_bounds(weight, codes)
    return _core.pack(
        np.ascontiguousarray(codes.codes),
        None if codes.multipliers is None else np.ascontiguousarray(codes.multipliers),
        np.ascontiguousarray(codes.scales),
        *(codes.format, codes.group_size, threads),
    )


def stored_values(weight: Weight, packed: U8) -> F32:
    """The float32 values of a stored weight, in the weight's own shape."""
    values = unpack(packed, weight.format, *weight.matrix_shape, weight.group_size)
    return values.reshape(weight.shape)


def _check_format(weight: Weight, codes: Codes) -> None:
    given, wanted = ((x.format, x.group_size) for x in (codes, weight))
    named(weight.format).check_group_size(weight.group_size)
    if given != wanted or not named(weight.format).is_quantized:
        raise RequestError(
            f"weight {weight.name!r}: codes of {given[0]} in groups of {given[1]}",
            f"{wanted[0]} in groups of {wanted[1]}",
            "Store it in the format that its codes are in.",
        )


def _check_shapes(weight: Weight, codes: Codes) -> None:
    format, (rows, cols) = named(weight.format), weight.matrix_shape
    stored = format.stored_cols(cols, weight.group_size)
    groups = (rows, stored // weight.group_size)
    panels = (rows, round_up(stored, PANEL_COLS) // PANEL_COLS)
    _check_array(weight, "codes", codes.codes, np.int8, (rows, stored))
    _check_array(weight, "scales", codes.scales, np.float16, panels)
    if (codes.multipliers is not None) != format.multipliers:
        having = "multipliers" if format.multipliers else "no multipliers"
        raise CheckpointError(f"weight {weight.name!r} of {format.name}", having)
    if codes.multipliers is not None:
        _check_array(weight, "multipliers", codes.multipliers, np.int8, groups)


def _check_array(
    weight: Weight, what: str, array: np.ndarray, dtype: DTypeLike, shape: tuple[int, int]
) -> None:
    if array.dtype != dtype or array.shape != shape:
        raise CheckpointError(
            f"weight {weight.name!r}: {what} are {array.dtype} {list(array.shape)}",
            f"{np.dtype(dtype)} {list(shape)}",
        )


def _check_bounds(weight: Weight, codes: Codes) -> None:
    offset, cols = named(weight.format).offset, weight.shape[1]
    bounds = [("codes", codes.codes, -offset, offset - 1), ("padding", codes.codes[:, cols:], 0, 0)]
    if codes.multipliers is not None:
        bounds.append(("multipliers", codes.multipliers, -MULTIPLIER_MAX, MULTIPLIER_MAX))
    for what, array, low, high in bounds:
        if array.size and not low <= array.min() <= array.max() <= high:
            raise CheckpointError(
                f"weight {weight.name!r}: {what} from {array.min()} to {array.max()}",
                f"{low} to {high}",
                _DAMAGED,
            )
    if not np.isfinite(codes.scales).all():
        raise CheckpointError(
            f"weight {weight.name!r}: scales with NaN or infinity", "finite numbers", _DAMAGED
        )
