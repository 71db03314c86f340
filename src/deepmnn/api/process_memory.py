"""What this process holds, as the kernel counts it."""

from __future__ import annotations

import ctypes
import gc
import re
from pathlib import Path

from deepmnn import _core

_FIELD = re.compile(rb"^(\w+): *(\d+) kB$", re.M)


def held_nbytes(root: str | Path = "/") -> int:
    """Bytes in memory that this process has: anonymous ones, and pages of libraries that it uses.

    Such pages may be shared; they count whole, for who shares them may go. 0 where the system does
    not tell. root: where /proc lies, for tests.
    """
    self = Path(root) / "proc" / "self"
    try:
        found = dict(_FIELD.findall((self / "smaps_rollup").read_bytes()))
        return 1024 * int(found[b"Rss"])
    except (OSError, KeyError):
        pass
    try:
        found = dict(_FIELD.findall(re.sub(rb"[\t ]+", b" ", (self / "status").read_bytes())))
        return 1024 * int(found[b"VmRSS"])
    except (OSError, KeyError):
        return 0


def give_back() -> None:
    """Returns what Python and the C library keep of memory that nobody uses."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc alone
    if trim is not None:
        trim(0)


def machine_nbytes(root: str | Path = "/") -> int:
    """Bytes that this process may hold in all: those that it has, and those that the machine and
    its control groups have left. root: as of `held_nbytes`.
    """
    left = _core.available_memory("" if str(root) == "/" else str(root))
    return held_nbytes(root) + left
