"""A GGUF file being written: header first, then tensors, then it gets its name at once.

The first key of a file of ours is deepmnn.crc32, the checksum of the whole file but for these four
bytes. It lies at a fixed place, and tells that deepmnn wrote the file and nobody changed it since.
Only such a file is ever replaced.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from deepmnn.artifact.directory import DirectoryWriter, Sink, storage_errors
from deepmnn.artifact.renames import locked, rename_new, sync_directory
from deepmnn.artifact.target import CHOOSE, OVERWRITE, check_apart, check_name, real_path
from deepmnn.artifact.workspace import Workspace
from deepmnn.errors import ArtifactError, StorageError
from deepmnn.exporters.gguf.types import library

SUFFIX = ".gguf"
CHECKSUM = "deepmnn.crc32"

_UINT32 = 4
_MARK = struct.pack("<Q", len(CHECKSUM)) + CHECKSUM.encode() + struct.pack("<I", _UINT32)
_HEADER = 24
"""Bytes before the first key: magic, version, tensors, keys."""

_AT = _HEADER + len(_MARK)
"""Where the checksum lies."""

_CHUNK = 8 << 20


class GgufPlace:
    """The file, in the end.

    Args: those of artifact.target.Target.
    """

    def __init__(
        self, path: str | os.PathLike[str], overwrite: bool = False, sources: Sequence[Path] = ()
    ) -> None:
        self.path = real_path(path)
        self.overwrite, self.sources = overwrite, sources

    def check(self) -> None:
        """Raises StorageError unless it may be written. Leaves the disk as it is."""
        check_name(self.path)
        if self.path.suffix != SUFFIX:
            raise StorageError(f"the name {self.path.name!r:.80}", f"one that ends in {SUFFIX}")
        check_apart(self.path, self.sources)
        if not os.path.lexists(self.path):
            return
        found = _stored_checksum(self.path)
        if found is None:
            raise StorageError(
                f"{self.path} already exists and is no GGUF file of ours",
                "a new file",
                CHOOSE,
            )
        if not self.overwrite:
            raise StorageError(f"{self.path} already exists", "a new file", OVERWRITE)
        if found != _checksum(self.path):
            raise StorageError(
                f"{self.path} has been changed since it was written", "the file as it was", CHOOSE
            )

    def put(self, workspace: Workspace) -> None:
        """Gives what was written its name."""
        sync_directory(workspace.new)
        with locked(self.path.parent):
            self.check()  # somebody was quicker, perhaps
            made = workspace.new / self.path.name
            if os.path.lexists(self.path):
                made.replace(self.path)
            else:
                rename_new(made, self.path)
        sync_directory(self.path.parent)


class GgufFile(DirectoryWriter):
    """Context manager: `begin`, `write` for every tensor's bytes in order, then `finish`.

    Leaving the context without `finish` removes what was written.
    """

    def __init__(self, place: GgufPlace) -> None:
        super().__init__(place)
        self._name = place.path.name
        self._sink: Sink | None = None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._sink is not None:
            self._sink.abandon()
        super().__exit__(kind, value, trace)

    @property
    def _open_sink(self) -> Sink:
        if self._sink is None:
            raise ArtifactError("the file has no header yet", "begin, before its tensors")
        return self._sink

    def begin(self, writer: Any, nbytes: int) -> None:
        """Writes the header.

        Args:
            writer: a gguf.GGUFWriter with all keys, and the infos of all tensors.
            nbytes: of all tensors.

        Raises StorageError when the disk has not enough room.
        """
        header = _header(writer)
        self.check_space(len(header) + nbytes)
        self._sink = self.open(self._name)
        self._open_sink.write(header)

    def write(self, data: bytes | memoryview) -> None:
        """Appends bytes of a tensor. Raises StorageError."""
        self._open_sink.write(data)

    def pad(self, nbytes: int) -> None:
        """Fills up a tensor of so many bytes."""
        self._open_sink.write(bytes(-nbytes % library().GGUF_DEFAULT_ALIGNMENT))

    def finish(self) -> None:
        """Writes the checksum, and the file gets its name. Raises StorageError."""
        crc = self._open_sink.finish()["crc32"]
        path = self.temp / self._name
        with storage_errors(path), path.open("r+b") as file:
            file.seek(_AT)
            file.write(struct.pack("<I", crc))
            file.flush()
            os.fsync(file.fileno())
        with storage_errors(self.place.path):
            self.place.put(self._open_workspace)


def _header(writer: Any) -> bytes:
    """All before the first tensor, our checksum first among the keys, and zero."""
    gguf = library()
    writer.add_uint32(CHECKSUM, 0)
    keys = writer.kv_data[0]
    writer.kv_data[0] = {CHECKSUM: keys.pop(CHECKSUM), **keys}
    buffer = io.BytesIO()
    writer.fout, writer.state = [buffer], gguf.gguf_writer.WriterState.EMPTY
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    header = buffer.getvalue()
    return header + bytes(-len(header) % gguf.GGUF_DEFAULT_ALIGNMENT)


def _stored_checksum(path: Path) -> int | None:
    """What a file of ours says; None of any other."""
    if not path.is_file() or path.is_symlink():
        return None
    with path.open("rb") as file:
        begin = file.read(_AT + 4)
    if len(begin) < _AT + 4 or begin[:4] != b"GGUF" or begin[_HEADER:_AT] != _MARK:
        return None
    return int(struct.unpack_from("<I", begin, _AT)[0])


def _checksum(path: Path) -> int:
    """CRC-32 of a file of ours, as it was before it had one."""
    with path.open("rb") as file:
        crc = zlib.crc32(bytes(4), zlib.crc32(file.read(_AT)))
        file.seek(_AT + 4)
        while chunk := file.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc
