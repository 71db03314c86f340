"""What machine this is, for the report."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

CPUINFO, CPUS = Path("/proc/cpuinfo"), Path("/sys/devices/system/cpu")
NOTABLE = (
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "asimddp",
    "i8mm",
)
"""Processor features by which engines choose their kernels, as Linux names them."""


@dataclass(frozen=True)
class Host:
    """A machine at a moment. features: those of NOTABLE that it has."""

    date: str
    processor: str
    features: tuple[str, ...]
    cores: int
    hardware_threads: int
    memory_nbytes: int
    system: str

    @staticmethod
    def now() -> Host:
        """This machine, now."""
        fields = _fields(CPUINFO)
        flags = (fields.get("flags") or fields.get("Features") or "").split()
        hardware_threads = os.cpu_count() or 1
        return Host(
            date=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            processor=fields.get("model name") or platform.processor() or platform.machine(),
            features=tuple(name for name in NOTABLE if name in flags),
            cores=_cores() or hardware_threads,
            hardware_threads=hardware_threads,
            memory_nbytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            system=f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        )


def _fields(path: Path) -> dict[str, str]:
    """The fields of the first processor."""
    try:
        lines = path.read_text().split("\n\n")[0].splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _cores() -> int:
    """The number of cores: hardware threads of one core list the same siblings."""
    try:
        files = CPUS.glob("cpu[0-9]*/topology/thread_siblings_list")
        return len({file.read_text() for file in files})
    except OSError:
        return 0
