"""One tensor in a file: where its bytes are, and what they mean.

numpy cannot name bf16 or FP8; ml_dtypes can.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from deepmnn.graph.weights import F32
from deepmnn.source.regular_file import RegularFile

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
"""What is read, in safetensors' words."""

_UNREAD_BITS = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "C32": 32,
    "C64": 64,
    "C128": 128,
}
"""What may lie in a file beside the tensors that are read."""

BITS = {name: dtype.itemsize * 8 for name, dtype in DTYPES.items()} | _UNREAD_BITS
"""Bits of an element of every dtype that a file may have."""

FLOATS = ("F64", "F32", "F16", "BF16")
"""Dtypes whose numbers are weights as they are; others are codes of a quantised scheme."""

SAMPLE_BYTES = 1024


@dataclass(frozen=True)
class Entry:
    """One tensor. Element (i, j) lies at byte begin + itemsize · (i, j) · strides of the file.

    Attributes:
        file: that it is in.
        name: its name there.
        dtype: a name in BITS.
        shape, strides: in elements; by default row-major.
        begin: byte of the first element, from the file's start.
        storage: bytes [begin, end) that several tensors may share; by default the tensor's own.
    """

    file: RegularFile
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    strides: tuple[int, ...] | None = None
    storage: tuple[int, int] | None = None

    @property
    def span(self) -> int:
        """Elements from the first to the last as stored, both included."""
        if 0 in self.shape:
            return 0
        if self.strides is None:
            return math.prod(self.shape)
        return 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))

    @property
    def nbytes(self) -> int:
        """Bytes from the first element to the end of the last."""
        return self.span * BITS[self.dtype] // 8

    @property
    def end(self) -> int:
        """Byte after the last element, from the file's start."""
        return self.begin + self.nbytes

    @property
    def place(self) -> tuple[int, int]:
        """Bytes [begin, end) of the storage."""
        return self.storage or (self.begin, self.end)

    def part(self, index: int, start: int = 0, stop: int | None = None) -> Entry:
        """tensor[index, start:stop]: a part, without the first dimension."""
        strides = self.strides or row_major(self.shape)
        rows = len(range(*slice(start, stop).indices(self.shape[1])))
        offset = index * strides[0] + start * strides[1]
        return replace(
            self,
            shape=(rows, *self.shape[2:]),
            strides=strides[1:],
            begin=self.begin + offset * BITS[self.dtype] // 8,
            storage=self.place,
        )

    def stored(self) -> NDArray[Any]:
        """The numbers in their stored type. Raises the file's error."""
        if self.dtype not in DTYPES:
            raise self.file.error(
                f"tensor {self.name!r:.200} in {self.file.path} has dtype {self.dtype}",
                f"one of {', '.join(DTYPES)}",
            )
        raw, dtype = self._bytes(self.begin, self.nbytes), DTYPES[self.dtype]
        if 0 in self.shape or self.strides in (None, row_major(self.shape)):
            return raw.view(dtype).reshape(self.shape)
        strides = [dtype.itemsize * stride for stride in self.strides or ()]
        strided: NDArray[Any] = np.ndarray(self.shape, dtype, raw.data, strides=strides)
        return np.array(strided, order="C")

    def read(self) -> F32:
        """The numbers as float32."""
        return to_float32(self.stored())

    def sample(self) -> bytes:
        """A little of the stored bytes, at the same places in all tensors of one layout."""
        nbytes = min(SAMPLE_BYTES, self.nbytes)
        places = (0, (self.nbytes - nbytes) // 2, self.nbytes - nbytes)
        return b"".join(self._bytes(self.begin + at, nbytes).tobytes() for at in places)

    def _bytes(self, begin: int, nbytes: int) -> NDArray[np.uint8]:
        return self.file.read(begin, nbytes, f"tensor {self.name!r:.200}")


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a contiguous tensor, in elements."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def to_float32(stored: NDArray[Any]) -> F32:
    """Decodes an array of any of the DTYPES; float32 as it is."""
    if stored.dtype == np.float32:
        return stored
    if stored.itemsize > 1:
        return stored.astype(np.float32)
    with np.errstate(invalid="ignore"):
        table = np.arange(256, dtype=np.uint8).view(stored.dtype).astype(np.float32)
    return table[stored.view(np.uint8)].reshape(stored.shape)
