"""How many threads a model gets by itself: physical cores, within affinity and quota."""

import os
from pathlib import Path

import pytest
from one_op import one_op
from program_dir import cpu_of, random_weights

from deepmnn import _core

SIBLINGS = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
ALLOWED = sorted(os.sched_getaffinity(0))


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def test_a_model_takes_every_core() -> None:
    graph = one_op(lambda b, x: x, 32)
    for cpus in (set(ALLOWED), {ALLOWED[0]}):
        os.sched_setaffinity(0, cpus)
        try:
            model = cpu_of(graph, random_weights(graph).__getitem__).model
            assert model.threads == _core.available_cores() <= len(cpus)
        finally:
            os.sched_setaffinity(0, ALLOWED)


def test_hardware_threads_of_a_core_count_once(tmp_path: Path) -> None:
    assert _core.available_cores(str(tmp_path)) == len(ALLOWED)
    for cpu in ALLOWED:
        write(tmp_path, SIBLINGS.format(cpu), "0-63")
    assert _core.available_cores(str(tmp_path)) == 1


# ---------------------------------------------------------------------------- quotas

V2 = ("cpu.max",)
V1 = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
TOP = "sys/fs/cgroup"
MANY = 64
MOUNTINFO = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"


def quota(root: Path, folder: str, files: tuple[str, ...], text: str) -> None:
    """The quota and the period, in the one file of version 2 or in those of version 1."""
    words = [text] if files == V2 else text.split()
    for name, word in zip(files, words, strict=False):
        write(root, f"{folder}/{name}", word)


def expect(root: Path, most: int) -> None:
    """On a machine of 64 processors."""
    assert _core.available_cores(root, list(range(MANY))) == most
    assert _core.available_cores(root) == min(len(ALLOWED), most)


PLACES = [
    # where the group is, its files, what else is there
    (TOP, V2, {}),
    (f"{TOP}/unified", V2, {}),
    (f"{TOP}/cpu", V1, {}),
    (f"{TOP}/cpu,cpuacct", V1, {}),
    (f"{TOP}/cpuacct,cpu", V1, {}),
    # a service's own group, version 2
    (f"{TOP}/system.slice/x.service", V2, {"cgroup": "0::/system.slice/x.service"}),
    # and version 1; other controllers are elsewhere
    (f"{TOP}/cpu/a/b", V1, {"cgroup": "12:pids:/z\n3:cpuset:/y\n2:cpu,cpuacct:/a/b\n0::/c"}),
    # a limit of a group above the process's own
    (f"{TOP}/kubepods/burstable", V2, {"cgroup": "0::/kubepods/burstable/pod1/c"}),
    (f"{TOP}/cpu/docker", V1, {"cgroup": "2:cpu:/docker/f00"}),
    (TOP, V2, {"cgroup": "0::/a/b"}),
    # a container that sees its own group as the top, though not under its own name
    (f"{TOP}/cpu", V1, {"cgroup": "2:cpu:/docker/f00"}),
    (TOP, V2, {"cgroup": "0::/../../elsewhere"}),
    (f"{TOP}/cpu", V1, {"cgroup": "2:cpu:/docker/f00", "mountinfo": "/docker/f00 cpu cpu"}),
    (f"{TOP}/cpu/in", V1, {"cgroup": "2:cpu:/docker/f/in", "mountinfo": "/docker/f cpu cpu"}),
    # version 2 beside version 1, which has the controller
    (f"{TOP}/cpu/a", V1, {"cgroup": "1:cpu:/a\n0::/a", "mountinfo": "/ cpu cpu\n/ unified 2"}),
    # the other way round
    (f"{TOP}/unified/a", V2, {"cgroup": "1:name=systemd:/a\n0::/a", "mountinfo": "/ unified 2"}),
    # mounted elsewhere, in a folder with a blank
    ("dev/cpu ctl/a", V1, {"cgroup": "1:cpu:/a", "mountinfo": "/ /dev/cpu\\040ctl cpuacct,cpu"}),
    ("mnt/groups/a", V2, {"cgroup": "0::/a", "mountinfo": "/ /mnt/groups 2"}),
    # names with colons, and of groups that have ended
    (f"{TOP}/a:b", V2, {"cgroup": "0::/a:b"}),
    (f"{TOP}/a", V2, {"cgroup": "0::/a/gone (deleted)"}),
]


def prepare(root: Path, system: dict[str, str]) -> None:
    """/proc/self/cgroup, and mountinfo made of lines "group place controllers", 2 for version 2."""
    if "cgroup" in system:
        write(root, "proc/self/cgroup", system["cgroup"])
    if "mountinfo" in system:
        lines = MOUNTINFO
        for line in system["mountinfo"].splitlines():
            group, place, kind = line.split()
            place = place if place.startswith("/") else f"/{TOP}/{place}"
            end = "cgroup2 cgroup2 rw" if kind == "2" else f"cgroup cgroup rw,{kind}"
            lines += f"32 31 0:29 {group} {place} rw,relatime shared:9 - {end}\n"
        write(root, "proc/self/mountinfo", lines)


@pytest.mark.parametrize(("folder", "files", "system"), PLACES)
def test_a_quota_wherever_it_is(
    tmp_path: Path, folder: str, files: tuple[str, ...], system: dict[str, str]
) -> None:
    prepare(tmp_path, system)
    expect(tmp_path, MANY)
    quota(tmp_path, folder, files, "100000 100000")
    expect(tmp_path, 1)


@pytest.mark.parametrize("files", [V1, V2])
@pytest.mark.parametrize(
    ("text", "most"),
    [
        ("100000 100000", 1),
        ("199999 100000", 1),  # rounded down
        ("50000 100000", 1),  # but not to nothing
        ("1 9223372036854775806", 1),
        ("250000 100000", 2),
        ("900000 100000", 9),
        ("9223372036854775806 1", MANY),
        ("max 100000", MANY),
        ("-1 100000", MANY),
        ("0 100000", MANY),
        ("100000 0", MANY),
        ("100000 -100000", MANY),
        ("100000 max", MANY),
        ("100000", MANY),  # no kernel writes it so
        ("max", MANY),
        ("99999999999999999999 100000", MANY),
        ("1e5 100000", MANY),
        ("100000x 100000", MANY),
        ("\0\xff \xfe", MANY),
        ("", MANY),
    ],
)
def test_what_a_quota_says(tmp_path: Path, files: tuple[str, ...], text: str, most: int) -> None:
    quota(tmp_path, TOP if files == V2 else f"{TOP}/cpu", files, text)
    expect(tmp_path, most)


@pytest.mark.parametrize(
    "limits", [("max 1", "max 1", "1 1"), ("1 1", "max 1", "9 1"), ("9 1", "1 1", "7 1")]
)
def test_the_tightest_of_all_groups(tmp_path: Path, limits: tuple[str, ...]) -> None:
    prepare(tmp_path, {"cgroup": "0::/a/b\n1:cpu:/c"})
    for folder, limit in zip((TOP, f"{TOP}/a", f"{TOP}/a/b"), limits, strict=True):
        quota(tmp_path, folder, V2, limit)
    expect(tmp_path, 1)
    quota(tmp_path, f"{TOP}/cpu/c", V1, "1 1")
    for folder in (TOP, f"{TOP}/a", f"{TOP}/a/b"):
        quota(tmp_path, folder, V2, "max 1")
    expect(tmp_path, 1)


@pytest.mark.parametrize("name", ["cgroup", "mountinfo"])
@pytest.mark.parametrize("text", ["", ":", "::", "0:", "\0\xff", "x " * 5000, " - \n- - -\n0::"])
def test_damaged_tables_of_the_system(tmp_path: Path, name: str, text: str) -> None:
    write(tmp_path, f"proc/self/{name}", text)
    quota(tmp_path, TOP, V2, "100000 100000")
    expect(tmp_path, 1)


def test_a_neighbour_has_a_quota(tmp_path: Path) -> None:
    """Groups that the process is not in: beside its own, below it, or with the same beginning."""
    prepare(tmp_path, {"cgroup": "0::/a\n1:cpu:/docker/f00", "mountinfo": "/docker/f cpu cpu"})
    for folder in ("b", "a/c", "aa", "docker/f00"):
        quota(tmp_path, f"{TOP}/{folder}", V2, "1 1")
    quota(tmp_path, f"{TOP}/cpu/00", V1, "1 1")
    expect(tmp_path, MANY)
