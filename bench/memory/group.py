"""A control group with a memory limit, in version 1 or 2 of Linux's control groups."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

MOUNT = Path("/sys/fs/cgroup")
WAIT = 5.0
"""Most seconds until an emptied group can be removed."""


class GroupError(Exception):
    """No such group can be made here; the message says why, in one line."""


@dataclass(frozen=True)
class Names:
    """A version's files in a group. swap: one that forbids swap with `no_swap`, where it exists."""

    limit: str
    peak: str
    swap: str
    no_swap: str
    events: str


V1 = Names(
    "memory.limit_in_bytes",
    "memory.max_usage_in_bytes",
    "memory.swappiness",
    "0",
    "memory.oom_control",
)
V2 = Names("memory.max", "memory.peak", "memory.swap.max", "0", "memory.events")


class Group:
    """An empty group whose processes take at most `limit` bytes, page cache included; 0: any.

    Makes it on entry; removes it on exit, when its processes have ended. Raises GroupError.
    """

    def __init__(self, limit: int, mount: Path = MOUNT) -> None:
        self.limit = limit
        self._names, base = find(mount)
        self.path = base / f"deepmnn-bench-{os.getpid()}"

    def __enter__(self) -> Group:
        names = self._names
        try:
            self.path.mkdir(exist_ok=True)
            if (swap := self.path / names.swap).exists():
                swap.write_text(names.no_swap)
            if self.limit:
                (self.path / names.limit).write_text(str(self.limit))
                self._check(int((self.path / names.limit).read_text()))
        except OSError as error:
            self._remove()
            raise GroupError(f"{error.filename}: {error.strerror}") from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._remove()

    def join(self) -> None:
        """Moves the calling process into the group; for a child, before it runs its program."""
        with open(self.path / "cgroup.procs", "w") as file:
            file.write(str(os.getpid()))

    @property
    def peak(self) -> int:
        """The most bytes that the group has held."""
        return int((self.path / self._names.peak).read_text())

    @property
    def kills(self) -> int:
        """Processes of the group that were killed because it was full."""
        lines = (self.path / self._names.events).read_text().splitlines()
        fields = dict(line.split() for line in lines)
        return int(fields.get("oom_kill", 0))

    def _check(self, held: int) -> None:
        """Raises GroupError unless the kernel took the limit as it is: it rounds to pages."""
        if held != self.limit:
            self._remove()
            raise GroupError(f"{self.path} holds {held} bytes instead of {self.limit}")

    def _remove(self) -> None:
        until = time.monotonic() + WAIT
        while self.path.exists() and time.monotonic() < until:
            with suppress(OSError):
                self.path.rmdir()
                return
            time.sleep(0.05)


def find(mount: Path = MOUNT) -> tuple[Names, Path]:
    """The version's names, and the folder to make groups in. Raises GroupError."""
    if (mount / "memory" / "cgroup.procs").exists():
        return V1, mount / "memory"
    control = mount / "cgroup.subtree_control"
    if not control.exists():
        raise GroupError(f"{mount} has no control groups")
    try:
        if "memory" not in control.read_text().split():
            control.write_text("+memory")
    except OSError as error:
        raise GroupError(f"{control}: {error.strerror}") from error
    return V2, mount
