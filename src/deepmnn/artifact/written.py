"""What a writer put into a directory: the files that its manifest lists, as long as nobody changed
them. Only these may be replaced or removed; everything else there is the user's.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from deepmnn.artifact.manifest import FileRecord, file_crc, is_file_record, manifest_crc
from deepmnn.errors import ArtifactError, StorageError
from deepmnn.source.json_file import is_plain_name, read_object

Identity = tuple[int, int, int, int, int]
"""A file and its content: device, inode, size, and the times of the last changes."""

Checksums = dict[Identity, int]
"""CRC-32 of files that have been read: asked again, nothing is read twice."""

_MOVE = "Move it elsewhere, or choose another output directory."


class Written:
    """The files that one manifest lists, and the manifest.

    Args:
        manifest: its path; the files' names are relative to its directory.
        checksums: of files that have been read before; more are added.
        home: where messages say that the files are; by default, where they are.

    Raises StorageError when the manifest is damaged: then nobody can tell whose the files are.

    Attributes:
        records: name → size and CRC-32 of every file but the manifest.
    """

    def __init__(
        self, manifest: Path, checksums: Checksums | None = None, home: Path | None = None
    ) -> None:
        self.manifest = manifest
        self._home = home or manifest.parent
        self._checksums: Checksums = {} if checksums is None else checksums
        try:
            self.records = _read_records(manifest)
        except ArtifactError as fault:
            raise StorageError(
                f"{fault.found}, so nothing tells the files of a model from yours",
                f"{manifest.name} as it was written",
                "Choose another output directory, or remove this one yourself.",
            ) from None

    def check(self, entries: Iterable[Path] | None = None) -> None:
        """Raises StorageError when there is something else, or something was changed.

        entries: the files and directories to look at; all of the manifest's directory by default.
        """
        home = self.manifest.parent
        for path in _below(home.iterdir() if entries is None else entries):
            if path == self.manifest:
                continue
            name = path.relative_to(home).as_posix()
            if name not in self.records and not self._is_parent(name, path):
                raise StorageError(
                    f"{self._home / name} is in the way: no conversion or export wrote it",
                    "only the files that it would replace",
                    _MOVE,
                )
            if name in self.records and not self._is_unchanged(path, self.records[name]):
                raise StorageError(
                    f"{self._home / name} has been changed since it was written",
                    "the file as it was",
                    _MOVE,
                )

    def identities(self) -> dict[tuple[int, int], Path]:
        """Device and inode → path of every file that is there."""
        paths = [self.manifest, *(self.manifest.parent / name for name in self.records)]
        found = {}
        for path in paths:
            with contextlib.suppress(OSError):
                status = path.lstat()
                found[status.st_dev, status.st_ino] = path
        return found

    def remove(self, first: str = "") -> None:
        """Removes what is as it was written, and the directories left empty.

        The manifest comes last: until then it tells whose the rest is. first: begins with this.
        """
        home, folders = self.manifest.parent, set()
        for name in sorted(self.records, key=lambda name: name != first):
            record = self.records[name]
            path = home / name
            folders |= {home / parent for parent in PurePosixPath(name).parents}
            with contextlib.suppress(OSError):
                if self._is_unchanged(path, record):
                    path.unlink()
        with contextlib.suppress(OSError):
            for folder in sorted(folders - {home}, key=lambda path: -len(path.parts)):
                with contextlib.suppress(OSError):
                    folder.rmdir()
            self.manifest.unlink()

    def _is_parent(self, name: str, path: Path) -> bool:
        """Whether it is a directory, a real one, that a listed file lies in."""
        return stat.S_ISDIR(path.lstat().st_mode) and any(
            other.startswith(f"{name}/") for other in self.records
        )

    def _is_unchanged(self, path: Path, record: FileRecord) -> bool:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_size != record["nbytes"]:
            return False
        identity = identity_of(status)
        if identity not in self._checksums:
            self._checksums[identity] = file_crc(path)
        return self._checksums[identity] == record["crc32"]


def identity_of(status: os.stat_result) -> Identity:
    """What tells a file with other content from this one."""
    times = (status.st_mtime_ns, status.st_ctime_ns)
    return status.st_dev, status.st_ino, status.st_size, *times


def is_inside(name: str) -> bool:
    """Whether it is the path of a file here, or in a directory here, written plainly."""
    return all(map(is_plain_name, name.split("/")))


def _below(entries: Iterable[Path]) -> Iterator[Path]:
    """These, and all below. A link is a file, whatever it leads to."""
    for path in sorted(entries):
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _below(path.iterdir())


def _read_records(manifest: Path) -> dict[str, FileRecord]:
    """Of any kind and version of manifest. Raises ArtifactError."""
    fields = read_object(manifest, ArtifactError)
    if fields.get("crc32") != manifest_crc(fields):
        raise ArtifactError(f"{manifest} is damaged: its checksum is wrong")
    shards = fields.get("shards", [])
    listed = shards if isinstance(shards, list) else [shards]
    records: dict[str, Any] = {
        str(shard.get("file") if isinstance(shard, dict) else ""): shard for shard in listed
    }
    for table in (fields.get("files"), fields.get("settings", {})):
        records |= table if isinstance(table, dict) else {"": table}
    sound = all(is_inside(name) and is_file_record(record) for name, record in records.items())
    if not records or not sound:
        raise ArtifactError(f"{manifest} is damaged: it lists no files")
    return records
