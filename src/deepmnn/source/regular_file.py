"""Files that come from outside: read in pieces, and nothing but files.

A name may stand for a FIFO, a socket or a device, where opening or reading never ends; for a
pointer that Git LFS leaves in a file's place; for a file that somebody cuts or replaces meanwhile.
Each of them is an error in words. Nothing is mapped: a mapping of a file that shrinks is a bus
fault.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from deepmnn.errors import CheckpointError, DeepmnnError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RE_DOWNLOAD = "The file is damaged or incomplete; download it again."

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class RegularFile:
    """A file that exists, and stays the same from now on.

    Args:
        path: the file.
        error: raised for every fault.

    Attributes:
        path: the same.
        size: its bytes.
    """

    def __init__(self, path: Path, error: type[DeepmnnError] = CheckpointError) -> None:
        self.path = path
        self.error = error
        with self._opened() as descriptor:
            found = os.fstat(descriptor)
            begin = os.pread(descriptor, len(_LFS_POINTER), 0)
        if begin == _LFS_POINTER:
            raise error(
                f"{path} is a pointer of Git LFS",
                "the file that it stands for",
                f"Run `git lfs pull` in {path.parent}, or download the file itself.",
            )
        self.size = found.st_size
        self._state = _state(found)

    def read(self, begin: int, nbytes: int, what: str = "") -> NDArray[np.uint8]:
        """Bytes [begin, begin + nbytes). `what` names them in the error when they are not there."""
        with self._opened_again() as descriptor:
            return self._piece(descriptor, begin, nbytes, what)

    def read_each(self, begins: Iterable[int], nbytes: int, what: str) -> list[bytes]:
        """Short pieces of the same length."""
        with self._opened_again() as descriptor:
            return [self._piece(descriptor, begin, nbytes, what).tobytes() for begin in begins]

    def read_all(self) -> bytes:
        """The whole file."""
        return self.read(0, self.size).tobytes()

    def _piece(self, descriptor: int, begin: int, nbytes: int, what: str) -> NDArray[np.uint8]:
        import numpy as np  # most readers of small files do without

        data = np.empty(min(nbytes, max(self.size - begin, 0)), np.uint8)
        if _read_into(descriptor, data, begin) < nbytes:
            raise self.error(f"{self.path} ends inside {what or 'its data'}", "", RE_DOWNLOAD)
        return data

    @contextmanager
    def _opened_again(self) -> Iterator[int]:
        with self._opened() as descriptor:
            self._check_same(descriptor)
            yield descriptor
            self._check_same(descriptor)

    @contextmanager
    def _opened(self) -> Iterator[int]:
        try:
            self._check_kind(os.stat(self.path))
            # Between the check and here it may have become a FIFO: then this does not wait.
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                self._check_kind(os.fstat(descriptor))
                yield descriptor
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            raise self.error(*_missing(self.path)) from None
        except (OSError, ValueError) as fault:  # ValueError: a name with a zero byte
            raise self.error(f"{self.path} cannot be read: {fault}") from None

    def _check_kind(self, found: os.stat_result) -> None:
        if not stat.S_ISREG(found.st_mode):
            kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
            raise self.error(f"{self.path} is {kind}", "a file")

    def _check_same(self, descriptor: int) -> None:
        if _state(os.fstat(descriptor)) != self._state:
            raise self.error(
                f"{self.path} changed while it was read",
                "the same file from beginning to end",
                "Wait until nothing writes to it, and start again.",
            )


def kind_of(path: Path) -> str:
    """What a name stands for, in words, when it is no file that can be read; "" when it is one."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        is_link = os.path.islink(path)
        return f"a link to {os.readlink(path)}, which is missing" if is_link else ""
    return "" if stat.S_ISREG(found.st_mode) else _KINDS.get(stat.S_IFMT(found.st_mode), "no file")


def _missing(path: Path) -> tuple[str, str, str]:
    if not os.path.islink(path):
        return f"{path} is missing", "", ""
    return (
        f"{path} is a link to {os.readlink(path)}, which is missing",
        "the file itself",
        "Download it again.",
    )


def _state(found: os.stat_result) -> tuple[int, int, int, int]:
    """What changes when a file is written to, or another takes its name."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _read_into(descriptor: int, data: NDArray[np.uint8], begin: int) -> int:
    """Fills data from the file's byte `begin` on; returns how many bytes there were."""
    done = 0
    while done < data.nbytes:
        count = os.preadv(descriptor, [data[done:].data], begin + done)
        if not count:
            break
        done += count
    return done
