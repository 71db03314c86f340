"""Cold starts: drops a model's files from the page cache, and times the disk reading them.

It imports only the standard library: it runs under any engine's interpreter.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

MOST_RESIDENT = 0.01
"""A start is cold while at most this share of the files is in the page cache."""

CHUNK = 8 << 20
"""Bytes of one read from the disk."""

READERS = 4
"""Reads at the same time: enough to keep a disk busy."""


def files_of(model: Path) -> list[Path]:
    """A model's files: itself, or all in its directory."""
    return [model] if model.is_file() else sorted(p for p in model.rglob("*") if p.is_file())


def nbytes(files: Sequence[Path]) -> int:
    """Their size in all."""
    return sum(path.stat().st_size for path in files)


def drop(files: Sequence[Path]) -> str:
    """Drops files from the page cache; returns why they are still there, or ""."""
    if not hasattr(os, "posix_fadvise"):
        return "this system cannot drop files from its page cache"
    for path in files:
        with path.open("rb") as file:
            os.fsync(file)  # what is not on the disk yet cannot be dropped
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        share = resident(files)
    except OSError as error:
        return f"the page cache cannot be inspected: {error.strerror}"
    return f"{share:.0%} of its files stay in the page cache" if share > MOST_RESIDENT else ""


def resident(files: Sequence[Path]) -> float:
    """The share of the files' pages that the page cache holds. Raises OSError."""
    held = pages = 0
    for path in files:
        size = path.stat().st_size
        if size:
            flags = _mincore(path, size)
            held += sum(flag & 1 for flag in flags)
            pages += len(flags)
    return held / pages if pages else 0.0


def _mincore(path: Path, size: int) -> bytes:
    """A byte for each page, odd if it is in memory; mapping a file reads nothing of it."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *3 * [ctypes.c_int], ctypes.c_long)
    libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    flags = ctypes.create_string_buffer(-(-size // mmap.PAGESIZE))
    with path.open("rb") as file:
        address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
        if address == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        failed = libc.mincore(address, size, flags)
        number = ctypes.get_errno()
        libc.munmap(address, size)
    if failed:
        raise OSError(number, os.strerror(number))
    return flags.raw


def read_seconds(files: Sequence[Path]) -> float | None:
    """Wall time of reading the files once, past the page cache; None where that is not possible."""
    chunks = [(path, offset) for path in files for offset in range(0, path.stat().st_size, CHUNK)]
    try:
        began = perf_counter()
        with ThreadPoolExecutor(READERS) as pool:
            for _ in pool.map(_read_direct, chunks):
                pass
        return perf_counter() - began
    except (OSError, AttributeError):  # a file system or a system without O_DIRECT
        return None


def _read_direct(chunk: tuple[Path, int]) -> None:
    """Reads one chunk into memory of whole pages, as O_DIRECT wants it."""
    path, offset = chunk
    with mmap.mmap(-1, CHUNK) as memory:
        file = os.open(path, os.O_RDONLY | os.O_DIRECT)
        try:
            os.preadv(file, [memory], offset)
        finally:
            os.close(file)
