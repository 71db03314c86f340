"""safetensors files: a bounds-checked header and tensors decoded to float32.

The format (huggingface/safetensors, README): u64 header length, JSON header
{name: {dtype, shape, data_offsets: [begin, end)}}, then the data, which the tensors must cover
without holes or overlaps. numpy cannot name bf16 or FP8; ml_dtypes can.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from deepmnn.errors import CheckpointError, DeepmnnError, TensorNotFoundError
from deepmnn.graph.weights import F32
from deepmnn.source.json_file import MAX_JSON_BYTES, parse_object

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
MAX_DIMS = 8
SAMPLE_BYTES = 1024
FP8 = ("F8_E4M3", "F8_E5M2")
_RE_DOWNLOAD = "The file is damaged or incomplete; download it again."


@dataclass(frozen=True)
class Entry:
    """One tensor: its dtype name, shape, and bytes [begin, end) counted from the file's start."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in the file."""
        return self.end - self.begin


class SafetensorsFile:
    """One .safetensors file. Tensors are read on demand; nothing stays in memory but the header.

    Reads go through the file, not a mapping: memory stays that of one tensor, and a file that
    shrinks meanwhile is an error instead of a bus fault.

    Args:
        path: the file.
        error: the exception a malformed file raises (artifacts use the format too).
    """

    def __init__(self, path: Path, error: type[DeepmnnError] = CheckpointError) -> None:
        self.path = path
        self._error = error
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                header = _read_header(file.read(8), size, path, error)
                data = file.read(header)
        except OSError as fault:
            raise error(f"{path} cannot be read: {fault}") from None
        if len(data) != header:
            raise error(f"{path} ends inside its header", "", _RE_DOWNLOAD)
        self.entries = parse_header(data, size - 8 - header, str(path), error)

    def read(self, name: str) -> F32:
        """The tensor as float32. Raises TensorNotFoundError."""
        return to_float32(self.stored(name))

    def stored(self, name: str) -> NDArray[Any]:
        """The tensor in its stored type. Raises TensorNotFoundError."""
        entry = self._entry(name)
        raw = self._bytes(name, entry.begin, entry.nbytes)
        return raw.view(DTYPES[entry.dtype]).reshape(entry.shape)

    def sample(self, name: str) -> bytes:
        """A little of the tensor's bytes, at the same places in all tensors of one size."""
        entry = self._entry(name)
        nbytes = min(SAMPLE_BYTES, entry.nbytes)
        places = (0, (entry.nbytes - nbytes) // 2, entry.nbytes - nbytes)
        return b"".join(self._bytes(name, entry.begin + at, nbytes).tobytes() for at in places)

    def _bytes(self, name: str, begin: int, nbytes: int) -> NDArray[np.uint8]:
        try:
            data = np.fromfile(self.path, np.uint8, nbytes, offset=begin)
        except OSError as fault:
            raise self._error(f"{self.path} cannot be read: {fault}") from None
        if data.nbytes != nbytes:
            raise self._error(f"{self.path} ends inside tensor {name!r}", "", _RE_DOWNLOAD)
        return data

    def _entry(self, name: str) -> Entry:
        if name not in self.entries:
            raise TensorNotFoundError(f"{self.path} has no tensor {name!r}")
        return self.entries[name]


def to_float32(stored: NDArray[Any]) -> F32:
    """Decodes an array of any of the DTYPES; float32 as it is."""
    if stored.dtype == np.float32:
        return stored
    if stored.itemsize > 1:
        return stored.astype(np.float32)
    with np.errstate(invalid="ignore"):
        table = np.arange(256, dtype=np.uint8).view(stored.dtype).astype(np.float32)
    return table[stored.view(np.uint8)].reshape(stored.shape)


def parse_header(
    data: bytes, data_nbytes: int, what: str, error: type[DeepmnnError]
) -> dict[str, Entry]:
    """Checks a JSON header against the bytes that follow it.

    Args:
        data: the header's bytes.
        data_nbytes: bytes of the file after the header.
        what: the file's name in messages.
        error: the exception for every fault.
    """
    header = parse_object(data, f"the header of {what}", error)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise error(f"{what}: __metadata__ is {metadata!r:.80}", "an object of strings")
    start = 8 + len(data)
    entries = {name: _entry(name, item, start, what, error) for name, item in header.items()}
    position = start
    for name, entry in sorted(entries.items(), key=lambda pair: (pair[1].begin, pair[1].end)):
        if entry.begin != position:
            raise error(
                f"{what}: tensor {name!r} begins at byte {entry.begin - start} of the data",
                f"{position - start}, the end of the tensor before it",
                _RE_DOWNLOAD,
            )
        position = entry.end
    if position != start + data_nbytes:
        raise error(
            f"{what} has {data_nbytes} bytes of data",
            f"{position - start}, the end of its last tensor",
            _RE_DOWNLOAD,
        )
    return entries


def _read_header(prefix: bytes, size: int, path: Path, error: type[DeepmnnError]) -> int:
    """The header's length, checked against the file's size."""
    if len(prefix) < 8:
        raise error(f"{path} has {size} bytes", "a safetensors file", _RE_DOWNLOAD)
    length = int.from_bytes(prefix, "little")
    limit = min(MAX_JSON_BYTES, size - 8)
    if length > limit:
        raise error(
            f"{path} says that its header has {length} bytes",
            f"at most {limit}",
            "The file is incomplete or no safetensors file; download it again.",
        )
    return length


def _entry(name: str, item: object, start: int, what: str, error: type[DeepmnnError]) -> Entry:
    where = f"{what}: tensor {name!r}"
    if not isinstance(item, dict) or set(item) != {"dtype", "shape", "data_offsets"}:
        raise error(f"{where} is described by {item!r:.80}", "dtype, shape and data_offsets")
    dtype, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise error(f"{where} has dtype {dtype!r:.80}", f"one of {', '.join(DTYPES)}")
    if not _is_sizes(shape) or math.prod(filter(None, shape)) > 1 << 48:
        raise error(f"{where} has shape {shape!r:.80}", "a list of sizes")
    if not _is_sizes(offsets) or len(offsets) != 2:
        raise error(f"{where} has data_offsets {offsets!r:.80}", "[begin, end]")
    nbytes = math.prod(shape) * DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != nbytes:
        raise error(
            f"{where} has {offsets[1] - offsets[0]} bytes",
            f"{nbytes} for {dtype} {shape}",
            _RE_DOWNLOAD,
        )
    return Entry(dtype, tuple(shape), start + offsets[0], start + offsets[1])


def _is_sizes(value: object) -> bool:
    """Whether value is a short list of integers 0 … 2^48 (JSON's true is not a number here)."""
    return (
        isinstance(value, list)
        and len(value) <= MAX_DIMS
        and all(type(v) is int and 0 <= v <= 1 << 48 for v in value)
    )
