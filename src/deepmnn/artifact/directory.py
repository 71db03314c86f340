"""Writes a directory: into a temporary one beside it, renamed when complete."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from deepmnn import __version__
from deepmnn.artifact.crc import joined
from deepmnn.artifact.manifest import MANIFEST, FileRecord, file_crc, manifest_crc
from deepmnn.artifact.workspace import Workspace, remove_stale
from deepmnn.errors import ArtifactError, StorageError

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


class Place(Protocol):
    """Where the files go in the end, and what must not be lost there."""

    path: Path

    def check(self) -> None:
        """Raises StorageError unless it may be written. Leaves the disk as it is."""

    def put(self, workspace: Workspace) -> None:
        """Moves what the workspace's `new` holds into place. Raises StorageError or OSError."""


class DirectoryWriter:
    """Context manager: `add_file` and the like, then `commit`.

    Leaving the context without `commit` removes everything that was written. A writer that is
    killed leaves its workspace (workspace.py), which nothing loads and the next writer to that
    place removes.

    Args:
        place: where the files go in the end.
        manifest: the manifest's name.

    Raises StorageError: the place is taken, the disk is full, no permission, ...
    """

    def __init__(self, place: Place, manifest: str = MANIFEST) -> None:
        self.place, self.manifest = place, manifest
        self._workspace: Workspace | None = None
        self._file_records: dict[str, FileRecord] = {}

    def __enter__(self) -> Self:
        target = self.place.path
        with storage_errors(target):
            if target.parent.is_dir():
                remove_stale(target)
            self.place.check()
            target.parent.mkdir(parents=True, exist_ok=True)
            self._workspace = Workspace(target).__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._workspace is not None:
            self._workspace.__exit__(kind, value, trace)

    @property
    def temp(self) -> Path:
        """Where the files are until `commit`."""
        return self._open_workspace.new

    @property
    def _open_workspace(self) -> Workspace:
        if self._workspace is None:
            raise ArtifactError("the writer is not open", "use it in a with statement")
        return self._workspace

    def open(self, name: str) -> Sink:
        """A file to stream into; `record` takes what its `finish` returns."""
        path = self.temp / name
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
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

    def write_file(self, name: str, data: bytes) -> FileRecord:
        """Writes a small file that `record` may put into the manifest. Raises StorageError."""
        sink = self.open(name)
        try:
            sink.write(data)
            return sink.finish()
        except BaseException:
            sink.abandon()
            raise

    def add_file(self, name: str, data: bytes) -> None:
        """Writes a small file. Raises StorageError."""
        self.record(name, self.write_file(name, data))

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
        self.write_file(self.manifest, json.dumps(fields, indent=1).encode())
        with storage_errors(self.place.path):
            self.place.put(self._open_workspace)

    def check_space(self, nbytes: int) -> None:
        """Raises StorageError when the disk has not enough room."""
        home = self.place.path.parent
        with storage_errors(self.place.path):
            free = shutil.disk_usage(home).free
        if free < nbytes:
            raise StorageError(
                f"{home} has {free:,} bytes free",
                f"{nbytes:,} bytes for the weights",
                HINTS[errno.ENOSPC],
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

    def skip(self, nbytes: int) -> None:
        """Leaves room at the beginning for a head that is known last: `finish` takes it."""
        with storage_errors(self._path):
            self._file.seek(nbytes)

    def finish(self, head: bytes = b"") -> FileRecord:
        """Syncs and closes."""
        with storage_errors(self._path), self._file:
            if head:
                os.pwrite(self._file.fileno(), head, 0)
            os.fsync(self._file.fileno())
        crc = joined(zlib.crc32(head), self._crc, self._nbytes)
        return {"nbytes": len(head) + self._nbytes, "crc32": crc}

    def abandon(self) -> None:
        """Closes, whatever state the file is in."""
        with contextlib.suppress(OSError):
            self._file.close()


@contextlib.contextmanager
def storage_errors(path: Path, doing: str = "written") -> Iterator[None]:
    """OSError becomes StorageError."""
    try:
        yield
    except OSError as fault:
        hint = HINTS.get(fault.errno or 0, "")
        reason = fault.strerror or fault  # numpy gives no number when a disk is full
        raise StorageError(f"{path} cannot be {doing}: {reason}", "", hint) from None
