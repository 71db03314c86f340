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


UNLIMITED = 9223372036854771712  # what version 1 calls no limit
LIMITS = [
    # (files of one or several groups, what is left of 40 MiB)
    ({"memory.max": "max", "memory.high": 20 * MIB, "memory.current": 5 * MIB}, 15),
    ({"memory.max": 30 * MIB, "memory.high": 20 * MIB, "memory.current": 5 * MIB}, 15),
    ({"memory.max": 10 * MIB, "memory.high": 20 * MIB, "memory.current": 5 * MIB}, 5),
    ({"memory.max": 30 * MIB}, 30),  # whatever is in use
    ({"memory.max": "-1", "memory.high": "1e6", "memory.current": 1}, 40),
    ({"memory.max": "99999999999999999999", "memory.current": 1}, 40),
    ({"memory.max": "12 MiB", "memory.current": "x", "memory.stat": "inactive_file -3"}, 40),
    ({"memory/memory.limit_in_bytes": UNLIMITED, "memory/memory.usage_in_bytes": 9 * MIB}, 40),
    (  # a limit of a group above that cannot be seen
        {
            "memory/memory.limit_in_bytes": UNLIMITED,
            "memory/memory.usage_in_bytes": 9 * MIB,
            "memory/memory.stat": f"cache 7\nhierarchical_memory_limit {30 * MIB}\ntotal_x 1",
        },
        21,
    ),
    ({"a/b/memory.max": 30 * MIB, "a/b/memory.current": 10 * MIB}, 20),
    ({"a/memory.max": 30 * MIB, "a/memory.current": 11 * MIB, "a/b/memory.max": "max"}, 19),
    ({"a/c/memory.max": MIB, "b/memory.max": MIB, "memory/a/memory.limit_in_bytes": MIB}, 40),
    ({"memory/c/memory.limit_in_bytes": 30 * MIB, "memory/c/memory.usage_in_bytes": MIB}, 29),
    (
        {
            "a/memory.max": 30 * MIB,
            "memory/c/memory.limit_in_bytes": 20 * MIB,
            "memory/memory.limit_in_bytes": 25 * MIB,
        },
        20,
    ),
]


@pytest.mark.parametrize(("files", "left"), LIMITS)
def test_groups_within_groups(tmp_path: Path, files: dict[str, object], left: int) -> None:
    system(tmp_path)
    (tmp_path / "proc/self").mkdir()
    (tmp_path / "proc/self/cgroup").write_text("0::/a/b\n7:memory:/c\n2:cpu:/d\n")
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    assert _core.available_memory(tmp_path) == left * MIB


def test_a_hierarchy_that_is_mounted_elsewhere(tmp_path: Path) -> None:
    system(tmp_path)
    (tmp_path / "proc/self").mkdir()
    (tmp_path / "proc/self/cgroup").write_text("7:memory:/box/c\n")
    mount = "35 31 0:32 /box /mnt/m rw,relatime shared:1 - cgroup cgroup rw,memory"
    (tmp_path / "proc/self/mountinfo").write_text(f"{mount}\n")
    (tmp_path / "mnt/m/c").mkdir(parents=True)
    (tmp_path / "mnt/m/c/memory.limit_in_bytes").write_text(f"{3 * MIB}\n")
    assert _core.available_memory(tmp_path) == 3 * MIB
