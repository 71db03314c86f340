"""A temporary directory beside what is being written, which says whose it is.

    .NAME.deepmnn-tmp-0123abcd/
        deepmnn.lock    an empty file, locked as long as its writer lives
        new/            what is being written
        swap/           the same when it is complete, and then, swapped, what NAME was
        old/            what NAME was, where the disk cannot swap directories

A writer that is killed leaves it. Nothing loads from it, and the next writer to NAME removes what
is in it: `new` whole, and of `swap` and `old` the files that their manifest lists.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import stat
from pathlib import Path
from types import TracebackType
from typing import Self

from deepmnn.artifact.manifest import MANIFEST, TEMP_MARK
from deepmnn.artifact.written import Written
from deepmnn.errors import StorageError

LOCK = "deepmnn.lock"
_SUFFIX = re.compile(r"[0-9a-f]{8}")
LONGEST_NAME = 255 - len(os.fsencode(f".{TEMP_MARK}")) - 8
"""Bytes of a name that its workspace still can be named after."""


class Workspace:
    """Context manager. Leaving it removes what is left in it.

    Args:
        target: what the directory `new` is to become.

    Raises OSError.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self._lock = -1

    def __enter__(self) -> Self:
        remove_stale(self.target)
        while self._lock < 0:
            self.path = self.target.parent / temp_name(self.target.name)
            self.path.mkdir()
            with contextlib.suppress(FileNotFoundError):  # taken for what a dead writer left
                self._lock = _new_lock(self.path / LOCK)
        self.new, self.swap, self.old = (self.path / name for name in ("new", "swap", "old"))
        try:
            self.new.mkdir()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._remove()
        finally:
            os.close(self._lock)

    def _remove(self) -> None:
        """However often Ctrl-C is pressed meanwhile."""
        try:
            _clear(self.path, self.target)
        except KeyboardInterrupt:
            self._remove()
            raise


def temp_name(name: str) -> str:
    """A new name for a workspace of `name`; `remove_stale` knows it again."""
    return f".{name}{TEMP_MARK}{secrets.token_hex(4)}"


def remove_stale(target: Path) -> None:
    """Removes what killed writers to this target left.

    Another directory of such a name has no lock of ours in it, and is left alone.
    """
    prefix = f".{target.name}{TEMP_MARK}"
    for path in target.parent.iterdir():
        rest = path.name.removeprefix(prefix)
        if path.name.startswith(prefix) and _SUFFIX.fullmatch(rest) and not path.is_symlink():
            with contextlib.suppress(OSError):
                _remove_if_dead(path, target)


def discard(directory: Path) -> None:
    """Removes a directory that is all ours, at once for everybody who looks. Raises OSError."""
    with Workspace(directory) as workspace:
        directory.rename(workspace.new / "discarded")


def _remove_if_dead(path: Path, target: Path) -> None:
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        lock = os.open(path / LOCK, flags)
    except FileNotFoundError:
        path.rmdir()  # killed before it had a lock: it is empty, or somebody else's
        return
    try:
        status = os.fstat(lock)
        if stat.S_ISREG(status.st_mode) and not status.st_size and _try_lock(lock):
            _clear(path, target)
    finally:
        os.close(lock)


def _clear(path: Path, target: Path) -> None:
    """Removes a workspace whose lock is held, but for files that are somebody else's."""
    new, swap, old = path / "new", path / "swap", path / "old"
    if old.is_dir() and not target.exists():  # killed between two renames
        old.rename(target)
    shutil.rmtree(new, ignore_errors=True)
    for directory in (swap, old):
        _remove_written(directory)
    with contextlib.suppress(OSError):
        if {entry.name for entry in path.iterdir()} <= {LOCK}:
            (path / LOCK).unlink()
            path.rmdir()


def _remove_written(directory: Path) -> None:
    """What once was the target, as far as its manifest says."""
    with contextlib.suppress(StorageError, OSError):
        if (directory / MANIFEST).exists():
            Written(directory / MANIFEST).remove()
    with contextlib.suppress(OSError):
        directory.rmdir()


def _new_lock(path: Path) -> int:
    """Makes a file and locks it, where the disk has locks; → its descriptor.

    Raises FileNotFoundError when the directory, still empty, was removed meanwhile.
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    _try_lock(lock)
    try:
        if os.path.samestat(os.fstat(lock), path.stat()):
            return lock
        raise FileNotFoundError(path)
    except BaseException:
        os.close(lock)
        raise


def _try_lock(descriptor: int) -> bool:
    """Whether the lock is ours now; never where the disk has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
