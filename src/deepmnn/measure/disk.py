"""How fast this machine reads files past its cache of them."""

from __future__ import annotations

import mmap
import os
import random
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from deepmnn.errors import StorageError
from deepmnn.measure.fresh_memory import fresh_room, touch

IN_FLIGHT = 3
"""Reads at a time, as streamed weights have them."""

SECONDS = 1.0
"""Of reading that is measured, at most."""

MOST_NBYTES = 2 << 30
"""Read at most."""

SCRATCH_NBYTES = 256 << 20
"""Of the file that is written where there is none to read."""

_PAGE = 4096
_LARGE_PAGE = 2 << 20


@dataclass(frozen=True)
class Disk:
    """What a disk gives.

    Attributes:
        bandwidth: bytes per second, several reads at a time.
        latency: seconds of one read of a page by itself.
        direct: whether the file system lets reads past its cache.
    """

    bandwidth: float
    latency: float
    direct: bool = True


def measure_disk(files: Sequence[Path], block: int, in_flight: int = IN_FLIGHT) -> Disk:
    """Reads blocks of so many bytes at random places of files, as experts are read, so many at a
    time.

    files: those of a model; those that are too small do not count, and where none is left a file
    of 256 MiB is written to the temporary directory, and removed.

    Raises StorageError when nothing can be read.
    """
    block = max(_PAGE, -(-block // _PAGE) * _PAGE)
    usable = [path for path in files if path.is_file() and path.stat().st_size >= 4 * block]
    try:
        if usable:
            return _measured(usable, block, in_flight)
        with tempfile.NamedTemporaryFile(prefix="deepmnn-disk-") as file:
            piece = os.urandom(1 << 20)
            for _ in range(max(SCRATCH_NBYTES, 4 * block) >> 20):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
            return _measured([Path(file.name)], block, in_flight)
    except OSError as error:
        raise StorageError(f"the disk cannot be measured: {error}") from error


def _measured(files: Sequence[Path], block: int, in_flight: int) -> Disk:
    opened = [_open(path) for path in files]
    direct = all(each[1] for each in opened)
    try:
        numbers = [number for number, _ in opened]
        latency = _latency(numbers[0])
        return Disk(_bandwidth(numbers, block, in_flight), latency, direct)
    finally:
        for number, _ in opened:
            os.close(number)


def _open(path: Path) -> tuple[int, bool]:
    """A file descriptor, and whether its reads go past the cache."""
    flag = getattr(os, "O_DIRECT", 0)
    if flag:
        with suppress(OSError):  # of a file system that refuses
            return os.open(path, os.O_RDONLY | flag), True
    return os.open(path, os.O_RDONLY), False


def _bandwidth(numbers: Sequence[int], block: int, in_flight: int) -> float:
    """Bytes per second of so many threads that read until the time is up.

    At other places each time: a host's cache gives what was read lately faster.
    """
    sizes = [os.fstat(number).st_size for number in numbers]
    places = [
        (number, offset)
        for number, size in zip(numbers, sizes, strict=True)
        for offset in range(0, size - block + 1, block)
    ]
    random.shuffle(places)
    most = min(len(places), max(in_flight, MOST_NBYTES // block))
    taken, rooms = count(), [_room(block) for _ in range(in_flight)]
    began = time.perf_counter()

    def read() -> int:
        room, done = rooms.pop(), 0
        while (index := next(taken)) < most and time.perf_counter() - began < SECONDS:
            number, offset = places[index]
            done += _read(number, room, offset, block)
        return done

    with ThreadPoolExecutor(in_flight) as pool:
        total = sum(pool.map(lambda _: read(), range(in_flight)))
    return total / max(time.perf_counter() - began, 1e-9)


def _latency(number: int, reads: int = 32) -> float:
    """Seconds of one read of a page: the middle one of some."""
    pages = max(1, os.fstat(number).st_size // _PAGE)
    room, times = _room(_PAGE), []
    for _ in range(reads):
        began = time.perf_counter()
        _read(number, room, random.randrange(pages) * _PAGE, _PAGE)
        times.append(time.perf_counter() - began)
    return sorted(times)[reads // 2]


def _room(nbytes: int) -> mmap.mmap:
    """Aligned to a page, and there already."""
    room = fresh_room(-(-nbytes // _LARGE_PAGE) * _LARGE_PAGE)
    touch(room)
    return room


def _read(number: int, room: mmap.mmap, offset: int, nbytes: int) -> int:
    """Bytes read into the room; nothing of them stays in the system's cache."""
    with memoryview(room) as view:
        done = os.preadv(number, [view[:nbytes]], offset)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(number, offset, nbytes, os.POSIX_FADV_DONTNEED)
    return done
