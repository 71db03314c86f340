"""How much the kernel reads beyond a fault of a mapped file: a setting of the disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BDI = Path("/sys/class/bdi")
USUAL_KIB = 128
"""What Linux sets for most disks."""


class ReadAheadError(Exception):
    """The setting cannot be changed here; the message says why, in one line."""


def setting_of(path: Path, bdi: Path = BDI) -> Path:
    """The file of the setting, in KiB, for the disk that holds a path."""
    device = path.stat().st_dev
    return bdi / f"{os.major(device)}:{os.minor(device)}" / "read_ahead_kb"


def read_ahead(path: Path, bdi: Path = BDI) -> int | None:
    """The setting of a path's disk, in KiB; None where it is unknown."""
    try:
        return int(setting_of(path, bdi).read_text())
    except (OSError, ValueError):
        return None


@contextmanager
def set_read_ahead(path: Path, kib: int | None, bdi: Path = BDI) -> Iterator[None]:
    """Sets a path's disk to `kib`, and back at the end; None changes nothing.

    Raises ReadAheadError where that is not allowed.
    """
    before = read_ahead(path, bdi)
    if kib is None or kib == before:
        yield
        return
    file = setting_of(path, bdi)
    try:
        if before is None:
            raise ReadAheadError(f"{file} cannot be read")
        file.write_text(str(kib))
        if (found := read_ahead(path, bdi)) != kib:
            raise ReadAheadError(f"{file} holds {found} instead of {kib}")
    except OSError as error:
        raise ReadAheadError(f"{file}: {error.strerror}") from error
    try:
        yield
    finally:
        file.write_text(str(before))
