"""Blocks of the KV cache on disk: rows that made room for others, until they are wanted again.

One file without a name, so that nothing stays of it when the process ends, however it ends. It is
written and read past the page cache (O_DIRECT), or dropped from it at once where the file system
knows no such thing. What comes back is checked against what was written: a block that is damaged,
or cannot be read, is as if it had never been there, and its tokens are run again.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import tempfile
import time
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Callable
from fcntl import F_GETFL, F_SETFL, fcntl
from heapq import heappop, heappush
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deepmnn.backends.base import Cache
from deepmnn.errors import RequestError, StorageError, Words, argument
from deepmnn.source.sizes import file_size

_ALIGNMENT = 4096
"""Of places, lengths and memory, as direct input and output wants them."""

_PAUSE = 10.0
"""Seconds without a write after one that failed: the disk may have room later."""

_HINT = Words(
    "kv_directory names a directory on a disk with room for it; kv_disk=0 does without.",
    "--kv-directory names a directory on a disk with room for it; --kv-disk 0 does without.",
)

log = logging.getLogger("deepmnn")


class Slot(NamedTuple):
    """Where a block lies in the file, in blocks, and the checksum of its rows."""

    place: int
    checksum: int


class KvDisk:
    """Keeps blocks of one cache under names.

    What nobody holds (`hold`) is overwritten when the space is needed, the least recently used
    first. Not thread-safe: the engine's.

    Args:
        cache: whose blocks.
        nbytes: the most the file may grow to.
        directory: where the file is; made if it is missing.

    Attributes:
        capacity: blocks that fit.
        written, read: blocks so far.
        lost: those that were damaged or could not be read.
        unwritten: those that were forgotten, because the disk failed or has no place for them.

    Raises RequestError when not even one block fits, StorageError when no file can be made.
    """

    def __init__(self, cache: Cache, nbytes: int, directory: Path) -> None:
        self._cache, self._directory = cache, directory
        check_room(nbytes, cache.block_nbytes)
        self._slot_nbytes = _aligned(cache.block_nbytes)
        self.capacity = nbytes // self._slot_nbytes
        self.written = self.read = self.lost = self.unwritten = 0
        # Aligned, and the only memory that this takes.
        self._buffer = memoryview(mmap.mmap(-1, self._slot_nbytes))
        self._rows = np.frombuffer(self._buffer, np.uint8)[: cache.block_nbytes]
        self._holders: dict[bytes, int] = {}
        self._held: dict[bytes, Slot] = {}
        self._loose: OrderedDict[bytes, Slot] = OrderedDict()
        self._writes_from, self._failing = 0.0, False
        try:
            self._begin()
        except OSError as error:
            raise _unusable(directory, error) from error

    def __contains__(self, name: bytes) -> bool:
        return name in self._held or name in self._loose

    def __len__(self) -> int:
        """Blocks that are there."""
        return len(self._held) + len(self._loose)

    def line(self) -> str:
        """Where the file is and how large it may grow, on one line."""
        most = file_size(self.capacity * self._slot_nbytes)
        return (
            "KV cache rows that make room are written to a file in "
            f"{self._directory.absolute()}, at most {most}"
        )

    def hold(self, name: bytes) -> bool:
        """Has a block stay once it is there, or has room for it when it comes; False without room.

        Once for each who needs it.
        """
        if name not in self._holders:
            if len(self._holders) >= self.capacity:
                return False
            if name in self._loose:
                self._held[name] = self._loose.pop(name)
        self._holders[name] = self._holders.get(name, 0) + 1
        return True

    def let_go(self, name: bytes) -> None:
        """Ends one `hold`."""
        self._holders[name] -= 1
        if not self._holders[name]:
            del self._holders[name]
            if name in self._held:
                self._loose[name] = self._held.pop(name)

    def is_held(self, name: bytes) -> bool:
        """Whether anybody needs it."""
        return name in self._holders

    def save(self, name: bytes, block: int) -> bool:
        """Writes a block of the cache, unless it is there. False where that is impossible."""
        self._check_process()
        if name in self:
            self.touch(name)
            return True
        place = self._new_place()
        if place is None:
            self.unwritten += 1
            return False
        self._cache.read_block(block, self._rows)
        try:
            self._transfer(os.pwritev, place)
        except OSError as error:
            heappush(self._places, place)
            self.unwritten += 1
            self._warn(error)
            return False
        self._failing = False
        self.written += 1
        kept = self._held if name in self._holders else self._loose
        kept[name] = Slot(place, self._checksum(place))
        return True

    def load(self, name: bytes, block: int) -> bool:
        """Reads it into a block of the cache. False when it is not there, or no more."""
        self._check_process()
        slot = self._held.get(name) or self._loose.get(name)
        if slot is None:
            return False
        try:
            self._transfer(os.preadv, slot.place)
            whole = self._checksum(slot.place) == slot.checksum
        except OSError as error:
            log.warning("a block of the KV cache cannot be read: %s", error.strerror or error)
            whole = False
        if not whole:  # and its place is not used again
            self.lost += 1
            self._remove(name)
            return False
        self.read += 1
        self.touch(name)
        self._cache.write_block(block, self._rows)
        return True

    def touch(self, name: bytes) -> None:
        """Says that a block is wanted: others are overwritten before it."""
        if name in self._loose:
            self._loose.move_to_end(name)

    def discard(self, name: bytes) -> None:
        """Forgets a block, if it is there."""
        slot = self._remove(name)
        if slot is not None:
            heappush(self._places, slot.place)

    def _begin(self) -> None:
        """An empty file. Raises OSError."""
        self._process = os.getpid()
        self._held.clear()
        self._loose.clear()
        self._places: list[int] = []
        self._grown = 0
        self._file = -1
        self._file = _anonymous(self._directory)
        self._closing = weakref.finalize(self, os.close, self._file)
        self._direct = _make_direct(self._file)

    def _check_process(self) -> None:
        """A forked child has a file of its own: what is in its parent's is not there any more."""
        if self._process == os.getpid():
            return
        self._closing()
        try:
            self._begin()
        except OSError as error:
            self._warn(error)

    def _new_place(self) -> int | None:
        """Where a block may be written."""
        if time.monotonic() < self._writes_from or self._file < 0:
            return None
        if self._places:
            return heappop(self._places)
        if self._grown < self.capacity:
            self._grown += 1
            return self._grown - 1
        return self._loose.popitem(last=False)[1].place if self._loose else None

    def _remove(self, name: bytes) -> Slot | None:
        return self._held.pop(name, None) or self._loose.pop(name, None)

    def _transfer(self, call: Callable[[int, list[memoryview], int], int], place: int) -> None:
        """Moves the buffer from or to the file, all of it. Raises OSError."""
        offset, done = place * self._slot_nbytes, 0
        while done < self._slot_nbytes:
            try:
                moved = call(self._file, [self._buffer[done:]], offset + done)
            except OSError as error:
                if not self._direct or error.errno != errno.EINVAL:
                    raise
                self._direct = not _make_buffered(self._file)  # it had promised too much
                continue
            if not moved:
                raise OSError(errno.EIO, "the file ends in the middle of a block")
            done += moved
        if not self._direct:
            if call is os.pwritev:
                os.fdatasync(self._file)  # only what is on disk can be dropped
            os.posix_fadvise(self._file, offset, self._slot_nbytes, os.POSIX_FADV_DONTNEED)

    def _checksum(self, place: int) -> int:
        return zlib.crc32(self._buffer[: self._cache.block_nbytes], place)

    def _warn(self, error: OSError) -> None:
        """Told once, until a write succeeds."""
        self._writes_from = time.monotonic() + _PAUSE
        if not self._failing:
            self._failing = True
            said = StorageError(
                f"blocks of the KV cache cannot be written to {self._directory}: "
                f"{error.strerror or error}",
                "room for them; they are forgotten, and their tokens run again",
                _HINT,
            )
            log.warning("%s", said)


def check_room(nbytes: int, block_nbytes: int) -> None:
    """Raises RequestError unless a block of so many bytes fits into nbytes."""
    if nbytes < _aligned(block_nbytes):
        raise RequestError(
            argument("kv_disk", f" is {nbytes:,} bytes"),
            f"{_aligned(block_nbytes):,} or more, which one block of the KV cache takes",
            Words("kv_disk=0 does without.", "--kv-disk 0 does without."),
        )


def check_directory(directory: Path, *, budget: bool) -> None:
    """Raises StorageError unless a file can be made there.

    budget: memory has one, and a file in memory would break it.
    """
    try:
        file = _anonymous(directory)
    except OSError as error:
        raise _unusable(directory, error) from error
    device = os.fstat(file).st_dev
    os.close(file)
    if budget and _is_memory(device):
        raise StorageError(
            f"{directory} is in memory (tmpfs), which has a budget",
            "a directory on a disk to keep KV blocks in",
            _HINT,
        )


def _is_memory(device: int) -> bool:
    """Whether a file system that is mounted keeps its files in memory; False where none tells."""
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text(errors="replace")
    except OSError:
        return False
    for line in mounts.splitlines():  # see proc_pid_mountinfo(5)
        place, _, kind = line.partition(" - ")
        if place.split()[2] == number:
            return kind.split()[0] in ("tmpfs", "ramfs")
    return False


def _unusable(directory: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{directory}: {error.strerror or error}", "a directory to keep KV blocks in", _HINT
    )


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


def _anonymous(directory: Path) -> int:
    """An open file that nobody can find by a name. Raises OSError."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
    file, name = tempfile.mkstemp(prefix="kv-", dir=directory)
    os.unlink(name)
    return file


def _make_direct(file: int) -> bool:
    """Whether the file system takes direct input and output."""
    try:
        fcntl(file, F_SETFL, fcntl(file, F_GETFL) | os.O_DIRECT)
    except OSError:
        return False
    return True


def _make_buffered(file: int) -> bool:
    fcntl(file, F_SETFL, fcntl(file, F_GETFL) & ~os.O_DIRECT)
    return True
