"""What a process may still use: the system's memory, or what its control group leaves."""

from pathlib import Path

import pytest

from deepmnn import _core

UNKNOWN = 2**63 - 1
MEMINFO = "MemTotal:       65536 kB\nMemFree:          100 kB\nMemAvailable:   40960 kB\n"
V2 = ("memory.max", "memory.current", "memory.stat")
V1 = ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat")
MIB = 1 << 20


def system(root: Path) -> None:
    (root / "proc").mkdir()
    (root / "proc/meminfo").write_text(MEMINFO)


def group(root: Path, files: tuple[str, ...], limit: object, used: int, stat: str = "") -> None:
    for name, text in zip(files, (limit, used, stat), strict=True):
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


def test_this_machine() -> None:
    assert 0 < _core.available_memory() < UNKNOWN


def test_nothing_is_known(tmp_path: Path) -> None:
    assert _core.available_memory(str(tmp_path)) == UNKNOWN


def test_the_system(tmp_path: Path) -> None:
    system(tmp_path)
    assert _core.available_memory(str(tmp_path)) == 40 * MIB


@pytest.mark.parametrize(("files", "key"), [(V2, "inactive_file"), (V1, "total_inactive_file")])
@pytest.mark.parametrize(
    ("limit", "used", "cached", "left"),
    [
        (30 * MIB, 10 * MIB, 0, 20 * MIB),
        (30 * MIB, 10 * MIB, 4 * MIB, 24 * MIB),  # clean file pages go when memory is needed
        (30 * MIB, 31 * MIB, 0, 0),
        (90 * MIB, 10 * MIB, 0, 40 * MIB),  # the system has less
        ("max", 10 * MIB, 0, 40 * MIB),
    ],
)
def test_a_control_group(
    tmp_path: Path,
    files: tuple[str, ...],
    key: str,
    limit: object,
    used: int,
    cached: int,
    left: int,
) -> None:
    system(tmp_path)
    group(tmp_path, files, limit, used, f"anon 5\n{key} {cached}\nslab 9")
    assert _core.available_memory(str(tmp_path)) == left
