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


@pytest.mark.parametrize(
    ("quota", "most"),
    [("max 100000", 1 << 20), ("250000 100000", 2), ("50000 100000", 1), ("900000 100000", 9)],
)
def test_quotas(tmp_path: Path, quota: str, most: int) -> None:
    write(tmp_path, "sys/fs/cgroup/cpu.max", quota)
    assert _core.available_cores(str(tmp_path)) == min(len(ALLOWED), most)
