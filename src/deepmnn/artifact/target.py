"""The directory that a writer makes or replaces, and what must never be lost with it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from deepmnn.artifact.manifest import MANIFEST, TEMP_MARK
from deepmnn.artifact.renames import exchange, locked, sync_directory
from deepmnn.artifact.workspace import LONGEST_NAME, Workspace
from deepmnn.artifact.written import Checksums, Written
from deepmnn.errors import ArtifactError, StorageError, Words
from deepmnn.source.json_file import read_object

CHOOSE = "Choose another output directory."
OVERWRITE = Words("Replace it with overwrite=True.", "Replace it with --overwrite.")
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)


class Target:
    """A directory of its own.

    Args:
        path: the directory.
        format: what its manifest will say it is.
        overwrite: replaces one of the same format that is already there, if all in it is as it was
            written; without it, nothing is replaced.
        sources: the files and directories that are read meanwhile.

    Raises StorageError.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        format: str,
        overwrite: bool = False,
        sources: Sequence[Path] = (),
    ) -> None:
        self.path = real_path(path)
        self.format, self.overwrite, self.sources = format, overwrite, sources
        self._checksums: Checksums = {}

    def check(self) -> None:
        """Raises StorageError unless it may be written. Leaves the disk as it is."""
        if self.overwrite and self.path.parent.is_dir():
            with locked(self.path.parent):  # not while another writer takes the old one away
                self._check()
        else:
            self._check()

    def _check(self) -> None:
        check_name(self.path)
        check_apart(self.path, self.sources)
        if not os.path.lexists(self.path):
            return
        if self.path.is_mount():  # a directory can be renamed onto any other empty one
            raise StorageError(
                f"{self.path} is a mount point",
                "a directory inside it",
                f"Write to {self.path / 'model'}, for example.",
            )
        if self.path.is_dir() and not any(self.path.iterdir()):
            return
        if not (self.path / MANIFEST).is_file():
            raise StorageError(
                f"{self.path} already exists and is no converted model", "a new directory", CHOOSE
            )
        if not self.overwrite:
            raise StorageError(f"{self.path} already exists", "a new directory", OVERWRITE)
        self._check_written(self.path)

    def put(self, workspace: Workspace) -> None:
        """Makes the workspace's `new` the target: the one moment at which it appears."""
        sync_directory(workspace.new)
        with locked(self.path.parent):
            try:
                workspace.new.rename(self.path)  # where nothing is, or an empty directory
            except OSError as fault:
                if fault.errno not in _TAKEN:
                    raise
                self._check()  # somebody was quicker, or here is what is to be replaced
                self._swap(workspace)
        sync_directory(self.path.parent)

    def _swap(self, workspace: Workspace) -> None:
        """Looks once more when nobody who comes by the path can change anything."""
        new, swap, old = workspace.new, workspace.swap, workspace.old
        new.rename(swap)
        if exchange(swap, self.path):
            try:
                self._check_written(swap)
            except BaseException:
                exchange(swap, self.path)
                raise
            Written(swap / MANIFEST, self._checksums).remove()
            return
        self.path.rename(old)
        try:
            self._check_written(old)
            swap.rename(self.path)
        except BaseException:
            old.rename(self.path)
            raise
        Written(old / MANIFEST, self._checksums).remove()

    def _check_written(self, directory: Path) -> None:
        """Raises StorageError unless it is ours, as it was written, and not what is being read."""
        written = Written(directory / MANIFEST, self._checksums, self.path)
        found = found_format(directory / MANIFEST)
        if found != self.format:  # one made from it, perhaps, or it from that one
            raise StorageError(
                f"{self.path} has format {found!r:.40}",
                f"{self.format}, or a new directory",
                CHOOSE,
            )
        written.check()
        check_not_read(written, self.sources)


def real_path(path: str | os.PathLike[str]) -> Path:
    """Where it leads, links followed. Raises StorageError for what no file can be called."""
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError) as fault:
        raise StorageError(
            f"{os.fspath(path)!r:.200}: {fault}", "a name that a file can have"
        ) from None


def found_format(manifest: Path) -> object:
    """What a manifest says it is; None when it is too damaged to say."""
    try:
        return read_object(manifest, ArtifactError).get("format")
    except ArtifactError:
        return None


def check_name(path: Path) -> None:
    """Raises StorageError for a name that could not be loaded from, or not be written to."""
    for name in (path.name, path.parent.name):
        if TEMP_MARK in name:
            raise StorageError(
                f"{path}: a name with {TEMP_MARK!r} is that of an unfinished conversion",
                "another name",
                CHOOSE,
            )
    size = len(os.fsencode(path.name))
    if size > LONGEST_NAME:
        raise StorageError(
            f"the name {path.name[:20]}… has {size} bytes",
            f"at most {LONGEST_NAME}",
            "Choose a shorter name.",
        )


def check_apart(target: Path, sources: Iterable[Path]) -> None:
    """Raises StorageError when a source is the target or lies in it.

    By what directories are, not by how they are spelled. The target may lie in a source: nothing
    of the source is lost by it.
    """
    for source in sources:
        real = Path(os.path.realpath(source))
        above = _identities([real, *real.parents])
        if target.exists() and _identity(target) in above:
            what = "is" if _identity(target) == _identity(real) else "lies in"
            raise StorageError(
                f"the source {source} {what} {target}",
                "an output that holds nothing of the source",
                CHOOSE,
            )


def check_not_read(written: Written, sources: Iterable[Path]) -> None:
    """Raises StorageError when a file to be replaced is a source's too, by a link of any kind."""
    ours = written.identities()
    for source in sources:
        for path in sorted(source.iterdir()) if source.is_dir() else [source]:
            identity = _identity(path)
            if identity in ours:
                raise StorageError(
                    f"{ours[identity]} is the file of the source that {path} names",
                    "an output that holds nothing of the source",
                    CHOOSE,
                )


def _identities(paths: Iterable[Path]) -> set[tuple[int, int]]:
    return {found for path in paths if (found := _identity(path))}


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode; None for what does not exist."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
