"""The zip archive that torch.save writes: which bytes of the file are its records.

A record lies uncompressed behind a local header of 30 bytes, its name and padding.
"""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

from deepmnn.errors import CheckpointError

RE_DOWNLOAD = "The file is damaged or incomplete; copy or download it again."

_LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"
"""How files of torch before 1.6 begin: a pickled magic number."""

_DAMAGED = (zipfile.BadZipFile, RuntimeError, ValueError, OverflowError, EOFError, struct.error)
"""What Python's zip reader raises on damaged archives."""


def read_records(path: Path) -> dict[int, int]:
    """First byte → last byte + 1 of every record of the archive. Raises CheckpointError."""
    try:
        with path.open("rb") as file:
            _check_magic(file, path)
            with zipfile.ZipFile(file) as archive:
                _check_archive(archive, path)
                begins = [_data_begin(file, info) for info in archive.infolist()]
                sizes = [info.file_size for info in archive.infolist()]
    except OSError as fault:
        raise CheckpointError(f"{path} cannot be read: {fault}") from None
    except _DAMAGED as fault:
        reason = str(fault) or type(fault).__name__
        raise CheckpointError(
            f"{path} is no whole zip archive: {reason}", "a file written by torch.save", RE_DOWNLOAD
        ) from None
    return {begin: begin + size for begin, size in zip(begins, sizes, strict=True)}


def _check_magic(file: BinaryIO, path: Path) -> None:
    magic = file.read(len(_LEGACY_MAGIC))
    if magic == _LEGACY_MAGIC:
        raise CheckpointError(
            f"{path} has the file format of torch before 1.6",
            "the zip format that torch.save writes since then",
            f"Save it again: torch.save(torch.load({path.name!r}, weights_only=True), PATH)",
        )
    if not magic.startswith(b"PK"):
        what = f"begins with {magic!r}" if magic else "is empty"
        raise CheckpointError(f"{path} {what}", "a file written by torch.save", RE_DOWNLOAD)


def _check_archive(archive: zipfile.ZipFile, path: Path) -> None:
    """Refuses archives that are no state dict, or whose records cannot be read in place."""
    records = {info.filename.rpartition("/")[2]: info for info in archive.infolist()}
    if "constants.pkl" in records:
        raise CheckpointError(
            f"{path} is a TorchScript program",
            "a state dict",
            f"Save its weights: torch.save(torch.jit.load({path.name!r}).state_dict(), PATH)",
        )
    for info in archive.infolist():
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise CheckpointError(
                f"{path} is compressed or encrypted ({info.filename!r})",
                "the uncompressed records that torch.save writes",
                f"Save it again: torch.save(torch.load({path.name!r}, weights_only=True), PATH)",
            )
    if "byteorder" in records and archive.read(records["byteorder"]) == b"big":
        raise CheckpointError(f"{path} was saved on a big-endian machine", "little-endian numbers")


def _data_begin(file: BinaryIO, info: zipfile.ZipInfo) -> int:
    """Where a record's data begins: its local header has a length of its own."""
    file.seek(info.header_offset)
    name, extra = struct.unpack("<26xHH", file.read(30))
    return info.header_offset + 30 + int(name) + int(extra)
