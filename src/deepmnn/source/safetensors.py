"""safetensors files: a bounds-checked header.

The format (huggingface/safetensors, README): u64 header length, JSON header
{name: {dtype, shape, data_offsets: [begin, end)}}, then the data, which the tensors must cover
without holes or overlaps.
"""

from __future__ import annotations

import math
from pathlib import Path

from deepmnn.errors import CheckpointError, DeepmnnError
from deepmnn.source.entry import BITS, Entry
from deepmnn.source.json_file import MAX_JSON_BYTES, parse_object
from deepmnn.source.regular_file import RE_DOWNLOAD, RegularFile

MAX_DIMS = 8

_SPARE_NBYTES, _TIMES = 64 << 20, 4
"""Memory that reading a header may take: so many bytes, and so many times those of the file."""

_MARK_NBYTES, _LETTER_NBYTES, _WIDE_NBYTES = 120, 3, 6
"""What is taken for each comma, colon and bracket; for each byte of a header in ASCII; and for each
byte of another, of which one letter may make Python take four bytes for all.
"""


class SafetensorsFile:
    """One .safetensors file: its tensors by name. Nothing stays in memory but the header.

    Args:
        path: the file.
        error: the exception a malformed file raises (artifacts use the format too).
    """

    def __init__(self, path: Path, error: type[DeepmnnError] = CheckpointError) -> None:
        self.path = path
        self.entries = read_safetensors(path, error)


def read_safetensors(path: Path, error: type[DeepmnnError] = CheckpointError) -> dict[str, Entry]:
    """The tensors of a file by name, in its order. Raises `error` for every fault."""
    file = RegularFile(path, error)
    length = _header_length(file)
    return parse_header(file.read(8, length, "its header").tobytes(), file)


def parse_header(data: bytes, file: RegularFile) -> dict[str, Entry]:
    """Checks a JSON header against the bytes that follow it. Raises the file's error."""
    what, error = file.path, file.error
    _check_memory(data, file)
    header = parse_object(data, f"the header of {what}", error)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise error(f"{what}: __metadata__ is {metadata!r:.80}", "an object of strings")
    start = 8 + len(data)
    data_nbytes = file.size - start
    entries = {name: _entry(name, item, start, file) for name, item in header.items()}
    position = start
    for name, entry in sorted(entries.items(), key=lambda pair: (pair[1].begin, pair[1].end)):
        if entry.begin != position:
            raise error(
                f"{what}: tensor {name!r} begins at byte {entry.begin - start} of the data",
                f"{position - start}, the end of the tensor before it",
                RE_DOWNLOAD,
            )
        position = entry.end
    if position != start + data_nbytes:
        raise error(
            f"{what} has {data_nbytes} bytes of data",
            f"{position - start}, the end of its last tensor",
            RE_DOWNLOAD,
        )
    return entries


def _check_memory(data: bytes, file: RegularFile) -> None:
    """A header without the numbers that it promises is refused before it fills the memory."""
    marks = sum(data.count(mark) for mark in (b",", b":", b"[", b"{"))
    letter = _LETTER_NBYTES if data.isascii() else _WIDE_NBYTES
    needed, room = marks * _MARK_NBYTES + len(data) * letter, _SPARE_NBYTES + _TIMES * file.size
    if needed > room:
        raise file.error(
            f"the header of {file.path} would take {needed:,} bytes of memory",
            f"at most {room:,} for a file of {file.size:,} bytes",
            RE_DOWNLOAD,
        )


def _header_length(file: RegularFile) -> int:
    """The header's length, checked against the file's size."""
    if file.size < 8:
        raise file.error(f"{file.path} has {file.size} bytes", "a safetensors file", RE_DOWNLOAD)
    length = int.from_bytes(file.read(0, 8).tobytes(), "little")
    limit = min(MAX_JSON_BYTES, file.size - 8)
    if length > limit:
        raise file.error(
            f"{file.path} says that its header has {length} bytes",
            f"at most {limit}",
            "The file is incomplete or no safetensors file; download it again.",
        )
    return length


def _entry(name: str, item: object, start: int, file: RegularFile) -> Entry:
    where, error = f"{file.path}: tensor {name!r:.200}", file.error
    if not isinstance(item, dict) or set(item) != {"dtype", "shape", "data_offsets"}:
        raise error(f"{where} is described by {item!r:.80}", "dtype, shape and data_offsets")
    dtype, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise error(f"{where} has dtype {dtype!r:.80}", f"one of {', '.join(BITS)}")
    if not _is_sizes(shape) or math.prod(filter(None, shape)) > 1 << 48:
        raise error(f"{where} has shape {shape!r:.80}", "a list of sizes")
    if not _is_sizes(offsets) or len(offsets) != 2:
        raise error(f"{where} has data_offsets {offsets!r:.80}", "[begin, end]")
    nbytes, rest = divmod(math.prod(shape) * BITS[dtype], 8)
    if offsets[1] - offsets[0] != nbytes or rest:
        raise error(
            f"{where} has {offsets[1] - offsets[0]} bytes",
            f"{nbytes} for {dtype} {shape}",
            RE_DOWNLOAD,
        )
    return Entry(file, name, dtype, tuple(shape), start + offsets[0])


def _is_sizes(value: object) -> bool:
    """Whether value is a short list of integers 0 … 2^48 (JSON's true is not a number here)."""
    return (
        isinstance(value, list)
        and len(value) <= MAX_DIMS
        and all(type(v) is int and 0 <= v <= 1 << 48 for v in value)
    )
