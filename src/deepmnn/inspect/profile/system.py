"""What the operating system says of this process: memory, page faults, context switches."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from deepmnn.inspect.profile.result import System

_PROC = Path("/proc/self")


def system() -> System:
    """What it has counted so far."""
    import resource  # Windows has none, nor the core's threads

    usage = resource.getrusage(resource.RUSAGE_SELF)
    return System(
        usage.ru_minflt,
        usage.ru_majflt,
        usage.ru_nvcsw,
        usage.ru_nivcsw,
        usage.ru_utime,
        usage.ru_stime,
    )


def since(before: System, now: System) -> System:
    """What has come since then."""
    pairs = zip(_fields(now), _fields(before), strict=True)
    return System(*(a - b for a, b in pairs))  # type: ignore[arg-type]


def total(found: list[System]) -> System:
    """Of several spans of time."""
    return System(*map(sum, zip(*map(_fields, found), strict=True)))


def _fields(system: System) -> tuple[float, ...]:
    return (
        system.minor_faults,
        system.major_faults,
        system.voluntary,
        system.involuntary,
        system.user,
        system.system,
    )


def resident() -> tuple[int, int]:
    """Bytes of this process in memory, now and at most since `forget_peak`; 0: it is not told."""
    try:
        status = (_PROC / "status").read_text()
    except OSError:
        return 0, 0
    found = dict(re.findall(r"^(VmRSS|VmHWM):\s*(\d+) kB", status, re.M))
    return int(found.get("VmRSS", 0)) * 1024, int(found.get("VmHWM", 0)) * 1024


def forget_peak() -> None:
    """The peak begins anew, where the system can do that."""
    with suppress(OSError):
        (_PROC / "clear_refs").write_text("5")


def mapped(directory: Path) -> int:
    """Bytes of the files in a directory that this process has mapped and touched."""
    try:
        maps = (_PROC / "smaps").read_text(errors="surrogateescape")
    except OSError:
        return 0
    inside, nbytes = f"{directory.resolve()}/", 0
    ours = False
    for line in maps.splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            ours = inside in line
        elif ours and line.startswith("Rss:"):
            nbytes += int(line.split()[1]) * 1024
    return nbytes
