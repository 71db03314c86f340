"""Writes a directory: into a temporary one beside it, renamed when complete.

A writer that is killed leaves a directory `.NAME.deepmnn-tmp-HOST-PID-…`, which nothing loads and
the next writer to that target removes.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import re
import secrets
import shutil
import socket
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from deepmnn import __version__
from deepmnn.artifact.manifest import (
    FORMAT,
    MANIFEST,
    TEMP_MARK,
    FileRecord,
    file_crc,
    manifest_crc,
)
from deepmnn.errors import ArtifactError, StorageError, Words
from deepmnn.source.json_file import read_object

HINTS = {
    errno.ENOSPC: "Free some space, or choose another disk.",
    errno.EDQUOT: "Your quota on this disk is used up.",
    errno.EFBIG: "This disk or process may not write files of that size.",
    errno.EACCES: "Choose a directory that you may write to.",
    errno.EROFS: "The disk is read-only.",
    errno.EEXIST: "A file is in the way: choose another directory.",
    errno.ENOTDIR: "A file is in the way: choose another directory.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
}


OVERWRITE = Words("Replace it with overwrite=True.", "Replace it with --overwrite.")


class DirectoryWriter:
    """Context manager: `add_file` and the like, then `commit`.

    Leaving the context without `commit` removes everything that was written.

    Args:
        target: the directory; its manifest, deepmnn.json, tells what it is.
        overwrite: replaces a directory of the same format that is already there; anything else
            that exists is refused.

    Raises StorageError: the target exists, the disk is full, no permission, ...
    """

    manifest = MANIFEST
    format = FORMAT

    def __init__(self, target: str | os.PathLike[str], overwrite: bool = False) -> None:
        self.target = Path(os.path.realpath(target))
        self.overwrite = overwrite
        self._temp: Path | None = None
        self._file_records: dict[str, FileRecord] = {}

    def __enter__(self) -> Self:
        with storage_errors(self.target):
            self.check_target()
            self.target.parent.mkdir(parents=True, exist_ok=True)
            remove_stale(self.target)
            temp = self.target.parent / temp_name(self.target.name)
            temp.mkdir()
            self._temp = temp
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._temp is not None:
            _remove(self._temp)

    @property
    def temp(self) -> Path:
        """Where the files are until `commit`."""
        if self._temp is None:
            raise ArtifactError("the writer is not open", "use it in a with statement")
        return self._temp

    def open(self, name: str) -> Sink:
        """A file to stream into; `record` takes what its `finish` returns."""
        path = self.temp / name
        with storage_errors(path):
            path.parent.mkdir(exist_ok=True)
        return Sink(path)

    def record(self, name: str, record: FileRecord) -> None:
        """The file goes into the manifest."""
        self._file_records[name] = record

    @contextlib.contextmanager
    def stream(self, name: str, keep: bool = True) -> Iterator[Sink]:
        """A file to stream into; keep: it goes into the manifest."""
        sink = self.open(name)
        try:
            yield sink
        except BaseException:
            sink.abandon()
            raise
        record = sink.finish()
        if keep:
            self.record(name, record)

    def add_file(self, name: str, data: bytes) -> None:
        """Writes a small file. Raises StorageError."""
        with self.stream(name) as sink:
            sink.write(data)

    def adopt(self, name: str) -> None:
        """Puts a file into the manifest that somebody else wrote to `temp`. Raises StorageError."""
        path = self.temp / name
        with storage_errors(path), path.open("rb") as file:
            os.fsync(file.fileno())
            self.record(name, {"nbytes": path.stat().st_size, "crc32": file_crc(path)})

    def commit(self, description: Mapping[str, Any]) -> None:
        """Writes the manifest (`description` plus version and file table) and renames.

        Raises StorageError.
        """
        fields: dict[str, Any] = {
            "deepmnn_version": __version__,
            **description,
            "files": dict(self._file_records),
        }
        fields["crc32"] = manifest_crc(fields)
        self.add_file(self.manifest, json.dumps(fields, indent=1).encode())
        with storage_errors(self.target):
            self.replace_target()

    def check_space(self, nbytes: int) -> None:
        """Raises StorageError when the disk has not enough room."""
        with storage_errors(self.target):
            free = shutil.disk_usage(self.target.parent).free
        if free < nbytes:
            raise StorageError(
                f"{self.target.parent} has {free:,} bytes free",
                f"{nbytes:,} bytes for the weights",
                HINTS[errno.ENOSPC],
            )

    def replace_target(self) -> None:
        """The one moment at which the artifact appears."""
        temp = self.temp
        sync_directory(temp)
        try:
            temp.rename(self.target)
            self._temp = None
        except OSError:  # not empty: an artifact to replace, or another process was quicker
            if not (self.target / MANIFEST).exists():
                raise
            if not _exchange(temp, self.target):
                old = self.target.parent / temp_name(self.target.name)
                self.target.rename(old)
                temp.rename(self.target)
                self._temp = old
        sync_directory(self.target.parent)

    def check_target(self) -> None:
        """Raises StorageError unless the target may be written."""
        if not self.target.exists():
            return
        if self.target.is_mount():  # a directory can be renamed onto any other empty one
            raise StorageError(
                f"{self.target} is a mount point",
                "a directory inside it",
                f"Write to {self.target / 'model'}, for example.",
            )
        if self.target.is_dir() and not any(self.target.iterdir()):
            return
        if not (self.target / MANIFEST).is_file():
            raise StorageError(
                f"{self.target} already exists and is no converted model",
                "a new directory",
                "Choose another output directory.",
            )
        if not self.overwrite:
            raise StorageError(f"{self.target} already exists", "a new directory", OVERWRITE)
        found = found_format(self.target / MANIFEST)
        if found not in (None, self.format):  # one made from it, perhaps, or it from that one
            raise StorageError(
                f"{self.target} has format {found!r:.40}",
                f"{self.format}, or a new directory",
                "Choose another output directory.",
            )


class Sink:
    """One file being written: counts, checksums, and syncs when finished."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._crc = 0
        self._nbytes = 0
        with storage_errors(path):
            self._file = path.open("xb", buffering=0)

    def write(self, data: bytes | memoryview) -> None:
        """Appends."""
        view = memoryview(data).cast("B")
        self._crc = zlib.crc32(view, self._crc)
        self._nbytes += view.nbytes
        with storage_errors(self._path):
            while view.nbytes:
                view = view[self._file.write(view) :]

    def finish(self) -> FileRecord:
        """Syncs and closes."""
        with storage_errors(self._path), self._file:
            os.fsync(self._file.fileno())
        return {"nbytes": self._nbytes, "crc32": self._crc}

    def abandon(self) -> None:
        """Closes, whatever state the file is in."""
        with contextlib.suppress(OSError):
            self._file.close()


def found_format(manifest: Path) -> object:
    """What a manifest says it is; None when it is too damaged to say."""
    try:
        return read_object(manifest, ArtifactError).get("format")
    except ArtifactError:
        return None


def remove_stale(target: Path) -> None:
    """Removes what killed conversions to this target left, if their process is gone."""
    pattern = re.compile(re.escape(_temp_prefix(target.name)) + r"(\d+)-[0-9a-f]+")
    for entry in target.parent.iterdir():
        match = pattern.fullmatch(entry.name)
        if match and not _is_alive(int(match[1])):
            shutil.rmtree(entry, ignore_errors=True)


def _remove(directory: Path) -> None:
    """Removes all of it, however often Ctrl-C is pressed meanwhile."""
    try:
        shutil.rmtree(directory, ignore_errors=True)
    except KeyboardInterrupt:
        _remove(directory)
        raise


def _temp_prefix(name: str) -> str:
    """Host names tell apart machines (and containers) that share a disk but not process ids."""
    return f".{name}{TEMP_MARK}{socket.gethostname()}-"


def temp_name(name: str) -> str:
    """A new name for what will be called `name`; `remove_stale` knows it again."""
    return f"{_temp_prefix(name)}{os.getpid()}-{secrets.token_hex(4)}"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _exchange(a: Path, b: Path) -> bool:
    """Swaps two directories in one step where the system can (renameat2, RENAME_EXCHANGE)."""
    if sys.platform != "linux":
        return False
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    here, exchange = -100, 2
    return renameat2 is not None and not renameat2(
        here, os.fsencode(a), here, os.fsencode(b), exchange
    )


def sync_directory(path: Path) -> None:
    """Makes the directory's entries durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """OSError becomes StorageError."""
    try:
        yield
    except OSError as fault:
        hint = HINTS.get(fault.errno or 0, "")
        raise StorageError(f"{path} cannot be written: {fault.strerror}", "", hint) from None
