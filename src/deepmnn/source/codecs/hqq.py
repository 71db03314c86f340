"""HQQ weights as transformers saves them (HQQLinear.state_dict of the package hqq).

The weight of a Linear layer NAME is reshaped to a matrix of groups, [groups, group_size] for axis 1
or [group_size, groups] for axis 0, whose codes are packed along its rows: of k codes in a byte (ten
of 3 bits in an int32) the highest bits hold the first k-th of the rows, the lowest the last. Then

    NAME.W_q          packed codes, perhaps as floats of the same bytes
    NAME.scale, zero  one for each group; number = (code − zero) · scale
    NAME.shape        [rows, cols]
    NAME.packing      its name in letters ("4bit_u8"), NAME.group_size, NAME.axis: numbers
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from deepmnn.errors import CheckpointError
from deepmnn.graph.weights import F32
from deepmnn.source.codecs.checks import (
    RE_DOWNLOAD,
    check_dtype,
    check_part,
    finite,
    stored_shape,
    vector,
)
from deepmnn.source.codecs.coded import Coded, MatrixCodec, self_named
from deepmnn.source.codecs.packing import U8
from deepmnn.source.codecs.settings import refuse
from deepmnn.source.entry import FLOATS
from deepmnn.source.store import Store

_PACKINGS = {"8bit_u8": 8, "4bit_u8": 4, "3bit_32": 3, "2bit_u8": 2, "1bit_u8": 1}
"""Names of packings → bits of a code."""

_SETTINGS = (
    "nbits",
    "group_size",
    "shape",
    "axis",
    "packing",
    "unpack_view_dtype",
    "view_as_float",
    "quant_scale",
    "quant_zero",
    "compute_dtype",
    "offload_meta",
    "encoded_state_dict",
    "stores_quant_config",
    "channel_wise",
    "optimize",
    "round_zero",
)
_CODES = ".W_q"
_INTEGERS = ("I32", "I64", "U8")


class Hqq(MatrixCodec):
    """HQQ of 8, 4, 3, 2 and 1 bits, whether config.json speaks of it or not."""

    scheme = "hqq"

    def __init__(self, store: Store) -> None:
        self._store = store
        stems = [name.removesuffix(_CODES) for name in store.names() if name.endswith(_CODES)]
        self._parts = {
            f"{stem}.weight": tuple(
                f"{stem}.{part}"
                for part in ("W_q", "scale", "zero", *_SETTINGS)
                if f"{stem}.{part}" in store
            )
            for stem in stems
        }

    @classmethod
    def recognise(cls, quantization: Mapping[str, Any] | None, store: Store) -> Self | None:
        """By quant_method, or by the names of tensors."""
        return self_named(cls(store), quantization)

    def parts(self) -> dict[str, tuple[str, ...]]:
        """Every weight → W_q, scale and zero, and the layer's settings."""
        return self._parts

    def shape(self, name: str) -> tuple[int, ...]:
        """[rows, cols]. Raises as `read`."""
        return stored_shape(self._store, name.removesuffix("weight") + "shape")

    def read(self, name: str) -> F32:
        """What the codes stand for."""
        return super().read(name).reshape(self.shape(name))

    def coded(self, name: str) -> Coded:
        """The weight; or its matrix of groups, where rows are not made of whole ones.

        Raises TensorNotFoundError for a missing part, CheckpointError for parts that do not fit,
        UnsupportedModelError for a variant that is not read.
        """
        store, stem = self._store, name.removesuffix("weight")
        rows, cols = stored_shape(store, stem + "shape")
        size, axis = self._number(stem + "group_size"), self._number(stem + "axis")
        if axis not in (0, 1) or size < 1 or rows * cols % size:
            raise CheckpointError(
                f"{stem + 'axis'!r:.200} is {axis}, and group_size {size}",
                f"axis 0 or 1, and a size that divides {[rows, cols]}",
                RE_DOWNLOAD,
            )
        groups = rows * cols // size
        shape = (groups, size) if axis else (size, groups)
        bits = self._bits(stem + "packing")
        made = (rows, cols) if axis and cols % size == 0 else shape
        for part in ("scale", "zero"):
            check_part(store, stem + part, FLOATS, (groups, 1) if axis else (1, groups))
        scales = finite(stem + "scale", store.read(stem + "scale"))
        zeros = finite(stem + "zero", store.read(stem + "zero"))
        if made != shape:
            scales, zeros = (each.reshape(rows, -1) for each in (scales, zeros))
        return Coded(
            made,
            bits,
            lambda: self._codes(stem, shape, bits).reshape(made),
            scales,
            size if axis else 1,
            zeros,
        )

    def _codes(self, stem: str, shape: tuple[int, int], bits: int) -> U8:
        """Of the matrix of groups."""
        name = stem + "W_q"
        check_dtype(self._store, name, ("U8", "I32", *FLOATS))
        dtype, each = (np.dtype("<u4"), 10) if bits == 3 else (np.dtype(np.uint8), 8 // bits)
        height = -(-shape[0] // each)
        nbytes = height * shape[1] * dtype.itemsize
        stored: NDArray[Any] = self._store.stored(name).reshape(-1).view(np.uint8)
        if len(stored) != nbytes or (bits != 3 and shape[0] % each):
            raise CheckpointError(
                f"tensor {name!r:.200} has {len(stored)} bytes",
                f"{nbytes} for {list(shape)} codes of {bits} bits",
                RE_DOWNLOAD,
            )
        packed = stored.view(dtype).reshape(height, shape[1])
        codes = np.empty((each, height, shape[1]), np.uint8)
        mask = dtype.type((1 << bits) - 1)
        for part in range(each):
            codes[part] = packed >> dtype.type(bits * (each - 1 - part)) & mask
        return codes.reshape(each * height, shape[1])[: shape[0]]

    def _bits(self, name: str) -> int:
        if math.prod(self._store.shape(name)) > max(map(len, _PACKINGS)):
            packing = "?"
        else:
            vector(self._store, name, ("U8",))
            packing = self._store.stored(name).tobytes().decode("latin-1")
        if packing not in _PACKINGS:
            raise refuse(
                f"tensor {name!r:.200} names the packing {packing!r:.80}", ", ".join(_PACKINGS)
            )
        return _PACKINGS[packing]

    def _number(self, name: str) -> int:
        check_part(self._store, name, _INTEGERS, (), (1,))
        return int(self._store.stored(name).reshape(()))
