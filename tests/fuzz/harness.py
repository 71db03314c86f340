"""What every fuzz target shares: how one input is tried, and what it may cost.

A target writes an input to files and reads them as deepmnn does. Whatever the bytes are, it ends
well or with an error of `deepmnn.errors`, in at most 10 seconds of processor time and 64 MB and
four times the input, reads nothing that lies elsewhere and writes to its output alone.
"""

from __future__ import annotations

import faulthandler
import os
import resource
import signal
import sys
import sysconfig
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from deepmnn.errors import DeepmnnError
from fuzz.mutations import mutate_bytes, rewrite

SECONDS = 10
SPARE_NBYTES = 64 << 20
TIMES = 4

ADDRESSES = 2 << 30
"""Address space beyond what a process has when its target is made: more fails at once."""

CORPUS = Path(__file__).with_name("corpus")
"""A folder for each target: inputs that were mishandled once, or that nothing here makes."""

_ENDLESS = 3 * SECONDS
"""Seconds of processor time after which a process ends itself with a traceback."""


class Target(ABC):
    """A reader, and what to give it.

    Args:
        folder: an empty directory that is the target's own. Inputs go to `model`; `out`, `tmp` and
            `home` are what may be written to.

    Attributes:
        seeds: sound inputs.
        spare: bytes of memory that something besides the reader takes.
    """

    spare = 0

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model, self.out, tmp, home = (folder / n for n in ("model", "out", "tmp", "home"))
        for path in (self.model, self.out, tmp, home):
            path.mkdir()
        os.environ.update({"TMPDIR": str(tmp), "XDG_CACHE_HOME": str(home), "HF_HOME": str(home)})
        os.environ["RUST_BACKTRACE"] = "0"
        sys.dont_write_bytecode = True
        self.seeds: list[bytes] = []

    @abstractmethod
    def put(self, data: bytes) -> None:
        """Makes files of an input."""

    @abstractmethod
    def use(self) -> None:
        """Reads them. Raises DeepmnnError."""

    def mutate(self, rng: np.random.Generator, data: bytes) -> bytes:
        """Something like it."""
        return mutate_bytes(rng, data)

    def nbytes(self, data: bytes) -> int:
        """Bytes of the files."""
        return len(data)


class FileTarget(Target):
    """One whose inputs are single files, called `file`."""

    file: str

    def put(self, data: bytes) -> None:
        rewrite(self.path, data)

    @property
    def path(self) -> Path:
        """The file."""
        return self.model / self.file


def limit_process() -> None:
    """What this process may take from now on: addresses, and no core files."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + ADDRESSES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class Trial:
    """Tries inputs of one target, one after another, and counts.

    Attributes:
        done: inputs tried.
        accepted: those that were read without an error.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self.done = self.accepted = 0
        self._watch = _Watch(target)
        faulthandler.register(signal.SIGPROF, chain=True)
        for data in target.seeds[:1]:  # it imports what every other input needs, too
            target.put(data)
            with suppress(DeepmnnError):
                target.use()

    def attempt(self, data: bytes) -> bool:
        """Whether the input was read without an error.

        Raises AssertionError, or what the reader raised, for one that is mishandled.
        """
        self.done += 1
        signal.setitimer(signal.ITIMER_PROF, _ENDLESS)
        self.target.put(data)
        before, began = _memory(), _processor_time()
        self._watch.on = True
        try:
            with np.errstate(all="ignore"):
                self.target.use()
            accepted = True
        except DeepmnnError:
            accepted = False
        finally:
            self._watch.on = False
        seconds, nbytes = _processor_time() - began, _resident(b"VmHWM:") - before
        most = SPARE_NBYTES + TIMES * self.target.nbytes(data) + self.target.spare
        assert not self._watch.strays, self._watch.strays
        assert seconds <= SECONDS, f"{seconds:.1f} s"
        assert nbytes <= most, f"{nbytes:,} bytes of memory for {self.target.nbytes(data):,}"
        self.accepted += accepted
        return accepted


# ------------------------------------------------------------------------------ time and memory


def _processor_time() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _memory() -> int:
    """Bytes resident now; forgets an earlier peak that would hide the next one."""
    now = _resident(b"VmRSS:")
    if _resident(b"VmHWM:") - now > SPARE_NBYTES // 4:
        with open("/proc/self/clear_refs", "wb") as file:
            file.write(b"5")
    return now


def _resident(what: bytes) -> int:
    """A line of /proc/self/status in bytes. getrusage has the peak of what ran before, too."""
    with open("/proc/self/status", "rb", buffering=0) as file:
        found = file.read(8192)
    at = found.index(what) + len(what)
    return int(found[at : found.index(b"kB", at)]) << 10


# ------------------------------------------------------------------------------ files elsewhere

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {
    "os.mkdir": ((0, 2),),
    "os.rmdir": ((0, 1),),
    "os.remove": ((0, 1),),
    "os.truncate": ((0, 0),),
    "os.chmod": ((0, 2),),
    "os.utime": ((0, 3),),
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((0, 2), (1, 3)),
    "os.symlink": ((1, 2),),
}
"""Events that change the disk → which arguments are paths, and open directories they start from."""

_CODE = [
    *(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    sys.prefix,
    sys.base_prefix,
    *filter(None, sys.path),
    str(Path(__file__).parents[2]),
    "/proc",
    "/sys",
    "/dev",
    "/etc/localtime",
    "/usr/share/zoneinfo",
]
"""What Python and its packages read."""


class _Watch:
    """Sees what Python opens and changes while it is `on`."""

    def __init__(self, target: Target) -> None:
        self.on = False
        self.strays: list[str] = []
        self._writable = [str(target.folder / name) for name in ("out", "tmp", "home")]
        self._readable = [str(target.folder), *map(os.path.realpath, _CODE), *_CODE]
        sys.addaudithook(self._see)

    def _see(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            path, _, flags = args
            self._check(event, path, self._writable if flags & _WRITES else self._readable)
        elif event in _CHANGES:
            for path, home in _CHANGES[event]:
                self._check(event, _placed(args[path], args[home]), self._writable)

    def _check(self, event: str, path: Any, allowed: list[str]) -> None:
        if isinstance(path, int):
            return
        found = os.path.abspath(os.fsdecode(path))
        if found == os.devnull or any(found == p or found.startswith(p + os.sep) for p in allowed):
            return
        self.strays.append(f"{event} {found!r}")


def _placed(path: Any, home: Any) -> Any:
    """A path in an open directory, -1 for none."""
    if isinstance(path, int) or not isinstance(home, int) or home < 0:
        return path
    return os.path.join(os.readlink(f"/proc/self/fd/{home}"), os.fsdecode(path))
