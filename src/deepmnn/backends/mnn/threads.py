"""How many threads MNN is given: the C++ core's own rule (native/runtime/machine.cc)."""

from __future__ import annotations

import os
from pathlib import Path

_SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
_QUOTA = "/sys/fs/cgroup/cpu.max"


def available_cores() -> int:
    """Physical cores this process may run on (its CPU affinity and group quota), at least 1."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    # The hardware threads of a core share this line.
    cores = {_read(_SIBLINGS.format(cpu)) or str(cpu) for cpu in os.sched_getaffinity(0)}
    quota, _, period = _read(_QUOTA).partition(" ")
    allowed = int(quota) // int(period) if quota.isdigit() and period.isdigit() else len(cores)
    return max(1, min(len(cores), allowed))


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
