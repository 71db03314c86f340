"""Weights in less memory than they take: the same logits, bit by bit, and never a wrong one."""

import ctypes
import mmap
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from streamed import MODELS, backend, equal, least, make, memory_at, run

from deepmnn import _core
from deepmnn.errors import ArtifactError, RequestError
from failing_reads import failing_reads

SHARES = (0.0, 0.03, 0.2, 0.6, 0.97)


@pytest.fixture(scope="module", params=sorted(MODELS))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("mixture", tmp_path_factory.mktemp("mixture"))


def test_same_logits_in_any_memory(model: Path) -> None:
    want = run(backend(model))
    for share in SHARES:
        made = backend(model, memory_at(model, share))
        plan, counts = made.model.weight_plan, made.model.streaming
        assert not plan.mapped
        assert plan.memory_nbytes <= memory_at(model, share)
        assert set(counts) >= {"reads", "read_nbytes", "wait_seconds", "expert_hits"}
        assert equal(run(made), want), share
        assert equal(run(made), want), f"{share}, warm"
        assert made.model.streaming["reads"] > 0


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads(mixture: Path, threads: int) -> None:
    want = run(backend(mixture, threads=threads))
    assert equal(run(backend(mixture, memory_at(mixture, 0.1), threads)), want)


def test_plan(model: Path) -> None:
    full = least(model)
    assert full.mapped
    assert full.memory_nbytes == full.total_nbytes
    for share in SHARES:
        memory = memory_at(model, share)
        plan = _core.plan_weights((model / "program.bin").read_bytes(), memory)
        parts = (plan.resident_nbytes, plan.ring_nbytes, plan.cache_nbytes, plan.table_nbytes)
        assert plan.memory_nbytes == sum(parts) <= memory
        assert (plan.streamed_nbytes > 0) == (plan.ring_nbytes > 0)
        made = _core.Model(model, memory=memory).weight_plan
        assert made.memory_nbytes == plan.memory_nbytes


def test_less_than_the_least_is_refused(model: Path) -> None:
    plan = least(model)
    with pytest.raises(RequestError, match=f"at least {plan.least_nbytes} bytes"):
        _core.Model(model, memory=plan.least_nbytes - 1)
    assert _core.Model(model, memory=plan.total_nbytes).weight_plan.mapped
    assert not _core.Model(model, memory=plan.total_nbytes - 1).weight_plan.mapped


def test_more_memory_reads_less(mixture: Path) -> None:
    read = []
    for share in (0.0, 0.3, 0.95):
        made = backend(mixture, memory_at(mixture, share))
        run(made)
        read.append(made.model.streaming["read_nbytes"])
    assert read == sorted(read, reverse=True)
    assert read[0] > read[2]


def test_all_experts_in_memory_are_read_once(tmp_path: Path) -> None:
    model = make("mixture-plain", tmp_path, vocab_size=4099)
    plan = least(model)
    made = backend(model, plan.total_nbytes - 1)
    assert made.model.weight_plan.cache_nbytes >= plan.expert_nbytes
    run(made)
    first = made.model.streaming
    run(made)
    second = made.model.streaming
    assert second["expert_misses"] == first["expert_misses"]


def in_page_cache(path: Path) -> int:
    """Bytes of the file that are in the page cache."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    size = path.stat().st_size
    with path.open("rb") as file:
        address = libc.mmap(None, ctypes.c_size_t(size), mmap.PROT_READ, 1, file.fileno(), 0)
    pages = (ctypes.c_ubyte * (-(-size // mmap.PAGESIZE)))()
    assert libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), pages) == 0
    libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size))
    return sum(page & 1 for page in pages) * mmap.PAGESIZE


def test_leaves_nothing_in_the_page_cache(mixture: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(mixture, copy)
    shards = list(copy.glob("*.safetensors"))
    for shard in shards:
        with shard.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    before = sum(map(in_page_cache, shards))
    run(backend(copy, memory_at(copy, 0.1)))
    assert sum(map(in_page_cache, shards)) <= before + (64 << 10)


@pytest.mark.parametrize("cut", [0, 4096, 0.3, 0.9])
def test_a_file_that_is_cut(mixture: Path, tmp_path: Path, cut: float) -> None:
    copy = tmp_path / "model"
    shutil.copytree(mixture, copy)
    want = run(backend(copy))
    made = backend(copy, memory_at(copy, 0.05))
    assert equal(run(made), want)
    (shard,) = copy.glob("*.safetensors")
    size = shard.stat().st_size
    os.truncate(shard, int(cut * size) if cut < 1 else int(cut))
    for _ in range(3):
        with pytest.raises(ArtifactError, match=r"cannot be read: .*expected a file that stays"):
            run(made)


@pytest.mark.parametrize("put_back", [False, True])
def test_a_file_that_is_written_to(mixture: Path, tmp_path: Path, put_back: bool) -> None:
    """Also where whoever writes puts the time back, as copying with times does."""
    copy = tmp_path / "model"
    shutil.copytree(mixture, copy)
    made = backend(copy, memory_at(copy, 0.05))
    (shard,) = copy.glob("*.safetensors")
    with shard.open("r+b") as file:
        file.seek(shard.stat().st_size // 2)
        file.write(b"x")
    if put_back:
        status = (mixture / shard.name).stat()
        os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(ArtifactError, match="changed while the model used it"):
        run(made)


def test_a_file_that_is_removed_is_there_still(mixture: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(mixture, copy)
    want = run(backend(copy))
    made = backend(copy, memory_at(copy, 0.05))
    for shard in copy.glob("*.safetensors"):
        shard.chmod(0o400)
    assert equal(run(made), want)
    shutil.rmtree(copy)
    assert equal(run(made), want)


def test_a_file_that_is_replaced_is_the_old_one_still(mixture: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(mixture, copy)
    want = run(backend(copy))
    made = backend(copy, memory_at(copy, 0.05))
    (shard,) = copy.glob("*.safetensors")
    other = tmp_path / "other"
    other.write_bytes(b"\0" * shard.stat().st_size)
    other.replace(shard)
    assert equal(run(made), want)


def run_child(code: str, *arguments: Path, env: dict[str, str] | None = None) -> str:
    """What a Python program of its own prints; it must end well. It is given the folders of the
    tests' helpers behind its arguments."""
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, here, here.parent],
        env=os.environ | (env or {}),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


FAILING = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[3:]
from streamed import backend, equal, memory_at, run
from deepmnn.errors import ArtifactError
model, gate = Path(sys.argv[1]), Path(sys.argv[2])
want = run(backend(model))
failed = good = 0
for share in (0.0, 0.05, 0.5):
    made = backend(model, memory_at(model, share))
    for _ in range(6):
        gate.touch()
        try:
            assert equal(run(made), want), "a wrong number"
            good += 1
        except ArtifactError as error:
            assert "cannot be read" in str(error), error
            failed += 1
        gate.unlink()
        assert equal(run(made), want), "a wrong number, after the disk is well again"
print(failed, good)
"""


@pytest.mark.parametrize("name", ["mixture", pytest.param("dense", marks=pytest.mark.slow)])
def test_reads_that_fail_now_and_then(name: str, tmp_path: Path) -> None:
    model, gate = make(name, tmp_path), tmp_path / "gate"
    said = run_child(FAILING, model, gate, env=failing_reads(tmp_path, gate, 100))
    failed, good = map(int, said.split())
    assert failed > 3, "the shim must have done something"
    assert failed + good == 18


FORKING = """
import os, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from streamed import backend, equal, memory_at, run
from deepmnn.errors import RequestError
model = Path(sys.argv[1])
made = backend(model, memory_at(model, 0.1))
want = run(made)
child = os.fork()
if child == 0:
    try:
        run(made)
    except RequestError as error:
        del made
        ours = backend(model, memory_at(model, 0.1))
        os._exit(0 if "forked" in str(error) and equal(run(ours), want) else 2)
    os._exit(1)
assert os.waitpid(child, 0)[1] == 0
assert equal(run(made), want)
"""


def test_a_forked_process_is_refused(mixture: Path) -> None:
    run_child(FORKING, mixture)


LEAVING = """
import gc, os, signal, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from streamed import backend, memory_at
made = backend(Path(sys.argv[1]), memory_at(Path(sys.argv[1]), 0.1))
child = os.fork()
if child == 0:
    signal.alarm(20)
    del made
    gc.collect()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


def test_a_forked_process_lets_go_of_a_model(mixture: Path) -> None:
    run_child(LEAVING, mixture)


FEW_THREADS = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
/* As many threads begin as `left` says, from then on; below zero: any number. */
int left = -1;
int pthread_create(pthread_t *thread, const pthread_attr_t *given, void *(*run)(void *),
                   void *with) {
  int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
  real = dlsym(RTLD_NEXT, "pthread_create");
  if (left == 0) return EAGAIN;
  if (left > 0) --left;
  return real(thread, given, run, with);
}
"""

LOADING = """
import ctypes, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from streamed import backend, equal, memory_at, run
from deepmnn.errors import RequestError
model = Path(sys.argv[1])
want = run(backend(model))
left = ctypes.c_int.in_dll(ctypes.CDLL(None), "left")
outcomes = set()
for count in range(8):
    left.value = count
    try:
        made = backend(model, memory_at(model, 0.1))
    except RequestError:
        outcomes.add("refused")
    else:
        left.value = -1
        assert equal(run(made), want)
        outcomes.add("equal")
    left.value = -1
assert outcomes == {"refused", "equal"}, outcomes
"""


def test_few_threads_may_begin(mixture: Path, tmp_path: Path) -> None:
    source, library = tmp_path / "shim.c", tmp_path / "shim.so"
    source.write_text(FEW_THREADS)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    run_child(LOADING, mixture, env={"LD_PRELOAD": str(library)})


def test_numa_is_refused(mixture: Path, tmp_path: Path) -> None:
    for node in range(2):
        folder = tmp_path / f"sys/devices/system/node/node{node}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(str(node))
    (tmp_path / "sys/devices/system/node/online").write_text("0-1")
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one processor")
    with pytest.raises(RequestError, match="numa"):
        _core.Model(
            mixture,
            numa="distribute",
            numa_root=tmp_path,
            memory=memory_at(mixture, 0.5),
        )


def test_ids_of_one_block_and_of_all(mixture: Path) -> None:
    """More rows of the embedding table than are in memory at once, some of them several times."""
    full, made = backend(mixture), backend(mixture, memory_at(mixture, 0.02))
    assert made.model.weight_plan.table_nbytes > 0
    for ids in (np.zeros(70), np.arange(300) * 7 % 1283, np.arange(130) % 3 * 600):
        logits = []
        for each in (full, made):
            prompt = ids.astype(np.int32)
            n = np.array([0, len(ids)], np.int32)
            cache = each.model.new_cache(20, 16)
            positions = np.arange(len(ids), dtype=np.int32)
            table = np.arange(20, dtype=np.int32)[None]
            logits.append(each.model.step(cache, prompt, positions, n, n[1:], table, positions))
        np.testing.assert_array_equal(*logits)
