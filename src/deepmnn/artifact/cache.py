"""The user's cache: models that are converted or exported once and found again.

    NAME/        a converted model, or a folder for MNN
    NAME.json    what it was made of; its time of change is that of the last use

Who writes or removes NAME holds a lock on NAME.json. Who has loaded it holds a shared lock on the
directory NAME itself for as long, so that it stays. Both are locks on open files (flock): a process
that is killed leaves none.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

from deepmnn.artifact.manifest import TEMP_MARK
from deepmnn.artifact.workspace import discard, remove_stale
from deepmnn.errors import ArtifactError, RequestError, StorageError
from deepmnn.source.json_file import read_object

LIMIT = "DEEPMNN_CACHE_LIMIT"
"""The environment variable: bytes, such as 50GB, or a share of the disk, such as 20%."""

DEFAULT_LIMIT = "20%"

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_HINT = "Set XDG_CACHE_HOME to a directory with room for it that you may write to."

log = logging.getLogger("deepmnn")


class Hold:
    """A directory that stays as long as this is not released; usable in a with statement.

    Args:
        path: the directory.
        descriptor: an open file with its lock; None for a directory outside the cache.
    """

    def __init__(self, path: Path, descriptor: int | None = None) -> None:
        self.path = path
        self._descriptor = descriptor

    def release(self) -> None:
        """Lets it go; once is enough."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


@dataclass(frozen=True)
class Entry:
    """What the cache has under a name.

    Attributes:
        path: the directory.
        facts: what it was made of: "source", "recipe" and whatever else its maker wrote.
        used: when it was last used, in seconds since the epoch.
    """

    path: Path
    facts: Mapping[str, str]
    used: float

    @cached_property
    def nbytes(self) -> int:
        """Bytes of its files."""
        files = (Path(folder) / name for folder, _, names in os.walk(self.path) for name in names)
        return sum(_size(file) for file in files)

    @property
    def is_used(self) -> bool:
        """Whether a process has it loaded."""
        descriptor = _lock(self.path, LOCK_EX | LOCK_NB)
        if descriptor is not None:
            os.close(descriptor)
        return descriptor is None and self.path.is_dir()


def cache_directory() -> Path:
    """All that is kept for this user: $XDG_CACHE_HOME/deepmnn or ~/.cache/deepmnn.

    Raises StorageError when there is neither.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "deepmnn"
    except RuntimeError as error:
        raise StorageError("this user has no home directory", "a cache", _HINT) from error


def models_directory() -> Path:
    """Where models are kept; nothing else is. Raises StorageError."""
    return cache_directory() / "models"


def keep(
    name: str,
    facts: Mapping[str, str],
    check: Callable[[Path], object],
    write: Callable[[Path], object],
) -> Hold:
    """The entry of that name. Writes it unless it is there and `check` raises no ArtifactError.

    A second process that asks for it waits until the first has written it.

    Args:
        name: of the directory; says what is in it, and changes with it.
        facts: for `entries`.
        check: opens the directory.
        write: makes it; calls `make_room` before.

    Raises StorageError when the cache cannot be written, and what `write` raises.
    """
    target = models_directory() / name
    with _storage_errors(target):
        _make_directory(target.parent)
        held = _sound(target, check)
        if held is None:
            with _writing(target, f"another process prepares {name}: waiting for it") as record:
                held = _sound(target, check)
                if held is None:
                    _discard(target)  # damaged, or of another format version
                    os.truncate(record, 0)
                    os.pwrite(record, json.dumps(dict(facts)).encode(), 0)
                    write(target)
                    held = _hold(target)
        return held or Hold(target)


def hold(path: Path) -> Hold:
    """Keeps a directory from being removed, if it is the cache's."""
    found = None
    with suppress(OSError, StorageError):
        if path.resolve().parent == models_directory().resolve():
            found = _hold(path)
    return found or Hold(path)


def entries() -> list[Entry]:
    """What is in the cache, the longest unused first."""
    _remove_leftovers()
    found = []
    for path in _listing():
        if path.name.startswith(".") or not path.is_dir():
            continue
        with suppress(OSError):  # another process has just removed it
            record = _record(path)
            used = (record if record.exists() else path).stat().st_mtime
            found.append(Entry(path, _read_facts(record), used))
    return sorted(found, key=lambda entry: entry.used)


def remove(entry: Entry) -> bool:
    """Removes an entry; False, and nothing is done, when a process uses it.

    Raises StorageError.
    """
    with _storage_errors(entry.path):
        record = _lock(_record(entry.path), LOCK_EX | LOCK_NB, create=True)
        if record is None:
            return False
        try:
            directory = _lock(entry.path, LOCK_EX | LOCK_NB)
            if directory is None:
                return not entry.path.exists()
            try:
                _discard(entry.path)
            finally:
                os.close(directory)
            _record(entry.path).unlink(missing_ok=True)
        finally:
            os.close(record)
    return True


def make_room(nbytes: int) -> None:
    """Removes what was unused for longest until so many bytes more are within the limit, and on the
    disk, or nothing is left that may go.

    Raises RequestError when the limit is none.
    """
    known, free = entries(), shutil.disk_usage(models_directory()).free
    over = max(sum(entry.nbytes for entry in known) + nbytes - limit(), nbytes - free)
    for entry in known:
        if over <= 0:
            break
        size = entry.nbytes
        if remove(entry):
            log.info("removed %s from the cache to make room", entry.path.name)
            over -= size


def limit() -> int:
    """Bytes that may be kept. Raises RequestError when $DEEPMNN_CACHE_LIMIT is none."""
    directory = models_directory()
    there = next(path for path in (directory, *directory.parents) if path.exists())
    return parse_limit(os.environ.get(LIMIT) or DEFAULT_LIMIT, shutil.disk_usage(there).total)


def parse_limit(text: str, disk: int) -> int:
    """Bytes of a limit such as "50GB", "1.5 TB", "50000000000" or "20%" of a disk of that size.

    Raises RequestError.
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)\s*(%|[KMGT]?B?)", text.strip().upper(), re.A)
    if match is None:
        raise RequestError(f"{LIMIT} is {text!r:.80}", "bytes such as 50GB, or a share such as 20%")
    number, unit = float(match[1]), match[2]
    return int(number * (disk / 100 if unit == "%" else _UNITS[unit.removesuffix("B")]))


# ---------------------------------------------------------------------------------- locks


def _lock(path: Path, operation: int, create: bool = False, waiting: str = "") -> int | None:
    """An open file with its lock; None where it is locked, or is not there.

    Raises OSError.
    """
    while True:
        descriptor = _open(path, create)
        if descriptor is None:
            return None
        try:
            if not _take(descriptor, operation, waiting):
                os.close(descriptor)
                return None
            if _is_at(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # it was removed while we waited


def _open(path: Path, create: bool) -> int | None:
    if create:
        with suppress(PermissionError):
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None


def _take(descriptor: int, operation: int, waiting: str) -> bool:
    """Locks; False when somebody else has it and there is no word for waiting."""
    try:
        flock(descriptor, operation | LOCK_NB)
    except BlockingIOError:
        if not waiting:
            return False
        log.info(waiting)
        flock(descriptor, operation)
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _hold(path: Path) -> Hold | None:
    """The directory, kept and marked as used now; None when it is not there or is being removed."""
    descriptor = _lock(path, LOCK_SH)
    if descriptor is None:
        return None
    with suppress(OSError):
        os.utime(_record(path))
    return Hold(path, descriptor)


def _sound(target: Path, check: Callable[[Path], object]) -> Hold | None:
    """The directory, kept, if it is there and passes the check."""
    if os.path.lexists(target):
        _check_owner(target)
    held = _hold(target)
    if held is not None:
        try:
            check(target)
            return held
        except ArtifactError:
            held.release()
        except BaseException:
            held.release()
            raise
    return None


@contextmanager
def _writing(target: Path, waiting: str) -> Iterator[int]:
    """The record of an entry, locked; removed when there is no entry in the end."""
    record = _lock(_record(target), LOCK_EX, create=True, waiting=waiting)
    if record is None:  # it was created
        raise OSError(f"{_record(target)} is gone")
    try:
        yield record
    finally:
        if not target.exists():
            _record(target).unlink(missing_ok=True)
        os.close(record)


# ---------------------------------------------------------------------------------- files


def _record(target: Path) -> Path:
    return target.with_name(f"{target.name}.json")


def _read_facts(record: Path) -> dict[str, str]:
    """What an entry was made of; nothing where that is unknown."""
    try:
        return {key: str(value) for key, value in read_object(record, ArtifactError).items()}
    except ArtifactError:
        return {}


def _listing() -> list[Path]:
    try:
        return list(models_directory().iterdir())
    except OSError:
        return []


def _size(file: Path) -> int:
    try:
        return file.lstat().st_size
    except OSError:
        return 0


def _make_directory(directory: Path) -> None:
    """The cache, for this user's eyes only."""
    directory.parent.parent.mkdir(parents=True, exist_ok=True)
    for path in (directory.parent, directory):
        path.mkdir(mode=0o700, exist_ok=True)
        _check_owner(path)
        if path.stat().st_mode & 0o077:
            with suppress(OSError):  # read-only, or root's
                path.chmod(0o700)


def _check_owner(path: Path) -> None:
    """Raises StorageError for what another user, not root, put there: it would be run unasked."""
    owner = path.stat().st_uid
    if owner not in (os.geteuid(), 0):
        raise StorageError(f"{path} belongs to user {owner}", f"user {os.geteuid()}, who runs this")


def _discard(target: Path) -> None:
    """Removes a directory; it disappears in one step. Who has its files open keeps them."""
    if target.is_dir() and not target.is_symlink():
        discard(target)
    else:
        target.unlink(missing_ok=True)


def _remove_leftovers() -> None:
    """Removes what killed processes left: unfinished directories, records of nothing."""
    for path in _listing():
        with suppress(OSError):
            name, mark, _ = path.name.removeprefix(".").partition(TEMP_MARK)
            if mark:
                remove_stale(path.with_name(name))
            elif path.suffix == ".json" and not path.with_suffix("").exists():
                record = _lock(path, LOCK_EX | LOCK_NB)
                if record is not None:
                    path.unlink(missing_ok=True)
                    os.close(record)


@contextmanager
def _storage_errors(target: Path) -> Iterator[None]:
    """What the system and the writer say becomes a StorageError that names the cache."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{target}: {error.strerror or error}", "a cache that can be written", _HINT
        ) from error
    except StorageError as error:
        expected = error.expected or "a cache that can be written"
        raise StorageError(error.found, expected, _HINT) from error
