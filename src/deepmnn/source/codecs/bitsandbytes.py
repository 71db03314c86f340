"""Weights that bitsandbytes quantised: LLM.int8() and the 4 bits of QLoRA.

8 bits: NAME.weight int8 [rows, cols] and NAME.SCB [rows], the largest number of each row:
weight = code · SCB / 127.

4 bits (nf4, fp4): NAME.weight holds the codes of the flattened matrix in pairs, the first of them
in the high nibble; blocks of `blocksize` codes share a scale, wherever rows end. Beside it lie

    NAME.weight.quant_map    [16], what the codes stand for
    NAME.weight.absmax       [blocks] scales
    NAME.weight.quant_state.bitsandbytes__nf4 (or fp4)   bytes of JSON: blocksize, shape, ...

With double quantisation absmax is bytes: scale = nested_quant_map[byte] · nested_absmax of its
block of nested_blocksize + nested_offset.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from deepmnn.errors import CheckpointError, shown
from deepmnn.graph.weights import F32
from deepmnn.source.codecs.checks import RE_DOWNLOAD, check_dtype, check_part, finite, matrix
from deepmnn.source.codecs.coded import Coded, MatrixCodec, self_named
from deepmnn.source.codecs.packing import U8, unpack_nibbles, unsigned
from deepmnn.source.codecs.settings import integer, refuse
from deepmnn.source.entry import DTYPES, FLOATS
from deepmnn.source.json_file import parse_object
from deepmnn.source.store import Store

_STATES = (".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4")
_PARTS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", *_STATES)
_SCB, _FORMAT = "SCB", "weight_format"

_ROW = 0
"""The only order of int8 codes that is still written: that of the matrix."""

_MOST_JSON = 1 << 12
_LARGE = 1e30


class Bitsandbytes(MatrixCodec):
    """bitsandbytes, 8 and 4 bits, whether config.json speaks of it or not."""

    scheme = "bitsandbytes"

    def __init__(self, store: Store) -> None:
        self._store = store
        self._parts: dict[str, tuple[str, ...]] = {}
        for name in store.names():
            stem = name.removesuffix("weight")
            if name + ".absmax" in store:
                found = [name + part for part in _PARTS]
            elif stem != name and stem + _SCB in store:
                found = [stem + _SCB, stem + _FORMAT]
            else:
                continue
            self._parts[name] = (name, *(part for part in found if part in store))

    @classmethod
    def recognise(cls, quantization: Mapping[str, Any] | None, store: Store) -> Self | None:
        """By quant_method, or by the names of tensors."""
        return self_named(cls(store), quantization)

    def parts(self) -> dict[str, tuple[str, ...]]:
        """Every quantised weight → itself, and its scales."""
        return self._parts

    def shape(self, name: str) -> tuple[int, ...]:
        """[rows, cols], if the parts fit each other. Raises as `read`."""
        return self._shape4(name) if self._is_4_bits(name) else self._shape8(name)

    def read(self, name: str) -> F32:
        """What the codes stand for."""
        values = super().read(name)
        return values.reshape(-1)[: math.prod(self.shape(name))].reshape(self.shape(name))

    def coded(self, name: str) -> Coded:
        """The matrix; or its blocks as rows, the last one filled up, where they do not divide its
        rows. Raises TensorNotFoundError for a missing part, CheckpointError for parts that do not
        fit, UnsupportedModelError for a variant that is not read.
        """
        rows, cols = self.shape(name)
        if not self._is_4_bits(name):
            scb = name.removesuffix("weight") + _SCB
            scales = finite(scb, self._store.read(scb)) / np.float32(127)
            return Coded(
                (rows, cols),
                8,
                lambda: unsigned(self._store.stored(name)),
                scales.reshape(-1, 1),
                cols,
                np.full((1, 1), 128, np.float32),
            )
        state = self._state(name)
        size = min(state["blocksize"], rows * cols)
        scales = self._scales(name, state)
        levels = finite(name + ".quant_map", self._store.read(name + ".quant_map"))
        made = (rows, cols) if cols % size == 0 else (len(scales), size)
        scales = scales.reshape(made[0], -1)
        return Coded(made, 4, lambda: self._codes4(name, made), scales, size, levels=levels)

    # ------------------------------------------------------------------------------- 8 bits

    def _shape8(self, name: str) -> tuple[int, int]:
        stem = name.removesuffix("weight")
        shape = matrix(self._store, name, ("I8",))
        check_part(self._store, stem + _SCB, FLOATS, (shape[0],))
        if stem + _FORMAT in self._store:
            check_part(self._store, stem + _FORMAT, ("U8", "I8", "I64"), (), (1,))
            if (order := int(self._store.stored(stem + _FORMAT).reshape(()))) != _ROW:
                raise refuse(
                    f"tensor {name!r:.200} has the codes of a GPU's order (weight_format {order})",
                    "row",
                    "Load and save it with a newer transformers and bitsandbytes, or convert from "
                    "the original checkpoint.",
                )
        return shape

    # ------------------------------------------------------------------------------- 4 bits

    def _is_4_bits(self, name: str) -> bool:
        return name + ".absmax" in self._parts[name]

    def _shape4(self, name: str) -> tuple[int, int]:
        state = self._state(name)
        shape = state["shape"]
        if (
            not isinstance(shape, list)
            or len(shape) != 2
            or not all(type(n) is int and 0 < n < 1 << 31 for n in shape)
        ):
            raise CheckpointError(
                f"the quant_state of {name!r:.200} has shape {shape!r:.80}", "two sizes"
            )
        rows, cols = shape
        check_dtype(self._store, name, ("U8", "I8", *FLOATS))
        nbytes = math.prod(self._store.shape(name)) * DTYPES[self._store.dtype(name)].itemsize
        if nbytes != -(-rows * cols // 2):
            raise CheckpointError(
                f"tensor {name!r:.200} has {nbytes} bytes",
                f"half a byte for each number of {[rows, cols]}",
                RE_DOWNLOAD,
            )
        blocks = -(-rows * cols // state["blocksize"])
        check_part(self._store, name + ".quant_map", FLOATS, (16,))
        if name + ".nested_absmax" not in self._store:
            check_part(self._store, name + ".absmax", FLOATS, (blocks,))
        else:
            check_part(self._store, name + ".absmax", ("U8",), (blocks,))
            check_part(self._store, name + ".nested_quant_map", FLOATS, (256,))
            nested = -(-blocks // integer(state, "nested_blocksize"))
            check_part(self._store, name + ".nested_absmax", FLOATS, (nested,))
        return rows, cols

    def _codes4(self, name: str, shape: tuple[int, int]) -> U8:
        """In that shape; the last row is filled up."""
        stored = self._store.stored(name).view(np.uint8).reshape(-1)
        codes = unpack_nibbles(stored, low_first=False)[: math.prod(shape)]
        made = np.zeros(shape, np.uint8)
        made.reshape(-1)[: len(codes)] = codes
        return made

    def _state(self, name: str) -> dict[str, Any]:
        """What is said of a weight in JSON."""
        found = [name + state for state in _STATES if name + state in self._store]
        tensor = found[0] if found else name + _STATES[0]
        check_dtype(self._store, tensor, ("U8", "I8"))
        if math.prod(self._store.shape(tensor)) > _MOST_JSON:
            raise CheckpointError(
                f"tensor {tensor!r:.200} has {math.prod(self._store.shape(tensor))} bytes",
                f"at most {_MOST_JSON} of JSON",
                RE_DOWNLOAD,
            )
        data = self._store.stored(tensor).tobytes()
        state = parse_object(data, f"tensor {tensor!r:.200}", CheckpointError)
        integer(state, "blocksize")
        return {"shape": None} | state

    def _scales(self, name: str, state: Mapping[str, Any]) -> F32:
        """One for each block."""
        absmax = name + ".absmax"
        nested = name + ".nested_absmax"
        if nested not in self._store:
            return finite(absmax, self._store.read(absmax))
        offset = state.get("nested_offset")
        if not isinstance(offset, float | int) or not abs(offset) < _LARGE:
            raise CheckpointError(
                f"the quant_state of {name!r:.200} has nested_offset {shown(offset)}",
                "a number",
                RE_DOWNLOAD,
            )
        codes = self._store.stored(absmax)
        scales = self._store.read(name + ".nested_quant_map")[codes]
        size = min(state["nested_blocksize"], len(codes))
        of_blocks = self._store.read(nested).repeat(size)[: len(codes)]
        with np.errstate(over="ignore", invalid="ignore"):
            return finite(nested, scales * of_blocks + np.float32(offset))
