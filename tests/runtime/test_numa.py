"""Memory nodes: what is read from /sys, which worker belongs where, and steps on placed memory.

The tests' machine may have one node. A fake /sys tells of two: their processors can be pinned to,
and where both bear the real node's number, memory is placed too.
"""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from one_op import VOCAB, one_op
from program_dir import SHARD, random_weights, write_program
from test_fused_ops import gqa, moe

from deepmnn import _core
from deepmnn.backends.cpu.backend import CpuBackend
from deepmnn.errors import RequestError
from parity import prompts_for, run_schedule

ALLOWED = sorted(os.sched_getaffinity(0))
LENGTHS, STEPS = [40, 9], [(30, 9), (10, 0)]


def fake(root: Path, online: str, **lists: str) -> str:
    """A /sys with these nodes: node0="0-31". Returns its root."""
    folder = root / "sys/devices/system/node"
    for name, processors in lists.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "cpulist").write_text(processors + "\n")
    (folder / "online").write_text(online + "\n")
    return str(root)


def test_two_sockets(tmp_path: Path) -> None:
    root = fake(tmp_path, "0-1", node0="0-15,32-47", node1="16-31,48-63")
    nodes = _core.numa_nodes(list(range(64)), root)
    assert nodes == {0: [*range(16), *range(32, 48)], 1: [*range(16, 32), *range(48, 64)]}
    assert _core.numa_nodes([3, 17, 50], root) == {0: [3], 1: [17, 50]}
    assert list(_core.numa_nodes(list(range(16)), root)) == [0]


def test_nodes_without_processors_and_gaps(tmp_path: Path) -> None:
    root = fake(tmp_path, "0,2-3", node0="0-3", node2="", node3="4-7")
    assert _core.numa_nodes(list(range(8)), root) == {0: [0, 1, 2, 3], 3: [4, 5, 6, 7]}


@pytest.mark.parametrize("damage", ["", "x", "7-", "5-2", "0-99999999", "-1"])
def test_what_is_no_list_is_no_node(tmp_path: Path, damage: str) -> None:
    root = fake(tmp_path, damage, node0="0-1")
    (tmp_path / "sys/devices/system/node/node0/cpulist").write_text(damage)
    assert _core.numa_nodes([0, 1], root) == {0: [0, 1]}
    assert _core.numa_nodes([0, 1], str(tmp_path / "nothing")) == {0: [0, 1]}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("numa")

    def both(b, x):
        return moe(12, 4, 200, shared=True)(b, gqa(6, 2, 48, 40, norms=True)(b, x))

    graph = one_op(both, 272, "w8")
    for name in ("router.weight", "q.weight"):
        if name in graph.weights:
            graph.weights[name].format = "f32"
    write_program(graph, random_weights(graph).__getitem__, path)
    return path


def logits(backend: CpuBackend) -> list[np.ndarray]:
    return run_schedule(backend, prompts_for(LENGTHS, VOCAB), STEPS)


def backend_of(directory: Path, numa: str, root: str, threads: int = 2) -> CpuBackend:
    backend = CpuBackend(directory, threads)
    backend.model = _core.Model(str(directory), threads, "", numa, root)
    return backend


def real_node() -> tuple[int, str]:
    node, processors = next(iter(_core.numa_nodes().items()))
    return node, ",".join(map(str, processors))


@pytest.mark.parametrize("mode", ["distribute", "isolate"])
@pytest.mark.parametrize("threads", [0, 1, 2])
def test_placed_memory_gives_the_same_logits(
    directory: Path, tmp_path: Path, mode: str, threads: int
) -> None:
    """The real node, twice: every system call is made."""
    node, processors = real_node()
    root = fake(tmp_path, f"{node},{node}", **{f"node{node}": processors})
    try:
        backend = backend_of(directory, mode, root, threads)
    except RequestError as error:
        assert "mbind" in str(error)  # noqa: PT017  # a kernel or a container without it
        pytest.skip("memory cannot be placed here")
    assert backend.model.numa == mode
    for got, expected in zip(logits(backend), logits(CpuBackend(directory, 2)), strict=True):
        np.testing.assert_array_equal(got, expected)
    assert sorted(os.sched_getaffinity(0)) == ALLOWED


def test_a_private_copy_outlives_its_file(directory: Path, tmp_path: Path) -> None:
    node, processors = real_node()
    root = fake(tmp_path, f"{node},{node}", **{f"node{node}": processors})
    copy = shutil.copytree(directory, tmp_path / "model")
    try:
        backend = backend_of(copy, "isolate", root)
    except RequestError as error:
        assert "mbind" in str(error)  # noqa: PT017  # a kernel or a container without it
        pytest.skip("memory cannot be placed here")
    os.truncate(copy / SHARD, 0)
    for got, expected in zip(logits(backend), logits(CpuBackend(directory, 2)), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_isolate_holds_for_a_process_that_was_given_one_node(
    directory: Path, tmp_path: Path
) -> None:
    """Its processors are all on that node, but the pages of the file may not be."""
    node, processors = real_node()
    root = fake(tmp_path, f"{node},{node + 1}", **{f"node{node}": processors})
    assert backend_of(directory, "distribute", root).model.numa == "off"
    try:
        assert backend_of(directory, "isolate", root).model.numa == "isolate"
    except RequestError as error:
        assert "mbind" in str(error)  # noqa: PT017  # a kernel or a container without it


def test_one_node_changes_nothing(directory: Path, tmp_path: Path) -> None:
    root = fake(tmp_path, "0", node0=",".join(map(str, ALLOWED)))
    for mode in ("off", "distribute", "isolate"):
        assert backend_of(directory, mode, root).model.numa == "off"
    with pytest.raises(RequestError, match="numa numactl; expected off"):
        backend_of(directory, "numactl", root)


@pytest.mark.skipif(len(ALLOWED) < 2, reason="two nodes need two processors")
def test_a_node_that_is_not_there_is_a_typed_error(directory: Path, tmp_path: Path) -> None:
    half = len(ALLOWED) // 2
    lists = [",".join(map(str, part)) for part in (ALLOWED[:half], ALLOWED[half:])]
    root = fake(tmp_path, "900-901", node900=lists[0], node901=lists[1])
    with pytest.raises(RequestError, match="mbind"):
        backend_of(directory, "distribute", root)
