"""A weight file that is cut while a model uses it: a typed error, no crash and no wrong token."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from one_op import one_op
from program_dir import SHARD, random_weights, write_program

from deepmnn import _core
from deepmnn.errors import ArtifactError
from tiny_artifact import tiny_artifact

CHILD = Path(__file__).with_name("cut_child.py")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_artifact(tmp_path_factory.mktemp("artifact"), "w8")


def run(model: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, CHILD, model, *arguments],
        # What is preloaded for a sanitised core has its own handlers, and takes much memory.
        env=os.environ | {"PYTHONPATH": str(CHILD.parents[1]), "LD_PRELOAD": ""},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.parametrize("threads", ["2", pytest.param("1", marks=pytest.mark.slow)])
@pytest.mark.parametrize("when", ["first", "between", "during", "loading"])
def test_every_place_and_moment(model: Path, when: str, threads: str) -> None:
    done = run(model, when, threads)
    assert done.returncode == 0, f"{done.stdout[-200:]}\n{done.stderr[-2000:]}"
    assert done.stdout.endswith("ready\n")


@pytest.mark.parametrize(
    "way",
    [
        *("mended_before", "mended_after", "dump_before", "dump_after"),
        *("taken_away", "blocked", "many", "ignored"),
    ],
)
def test_beside_other_handlers(model: Path, way: str) -> None:
    done = run(model, way)
    assert done.returncode == 0, done.stderr[-2000:]
    assert ("Bus error" in done.stderr) == (way == "dump_after")


@pytest.mark.parametrize("way", ["foreign_ends", "foreign_dumps", "raised"])
def test_faults_of_others_end_the_process_as_ever(model: Path, way: str) -> None:
    done = run(model, way)
    assert done.stdout == "foreign\n"
    assert done.returncode == -signal.SIGBUS
    assert ("Bus error" in done.stderr) == (way == "foreign_dumps")


def test_what_is_checked_when_a_model_loads(model: Path, tmp_path: Path) -> None:
    """Files that are too short by then: no page of them is looked for."""
    for name in ("program.bin", next(model.glob("*.safetensors")).name):
        whole = (model / name).read_bytes()
        for length in (0, 8, 100, len(whole) // 2, len(whole) - 1):
            for path in model.iterdir():
                if path.name in ("program.bin", name) or path.suffix == ".safetensors":
                    (tmp_path / path.name).write_bytes(path.read_bytes())
            (tmp_path / name).write_bytes(whole[:length])
            with pytest.raises(ArtifactError):
                _core.Model(tmp_path, 1)


def test_zeros_at_the_end_of_a_file(tmp_path: Path) -> None:
    """A cut inside a last page of zeros loses nothing; one before that page is found all the same.

    The model's last weight, its head, is zeros.
    """
    graph = one_op(lambda b, x: b.rms_norm(x, "norm", 0.1), 256)
    weights = random_weights(graph)
    weights["head.weight"][:] = 0
    write_program(graph, weights.__getitem__, tmp_path)
    size = (tmp_path / SHARD).stat().st_size
    found = _core.Model(tmp_path, 1)
    cache = found.new_cache(1, 4)

    def numbers(*values: int) -> np.ndarray:
        return np.array(values, np.int32)

    def step() -> np.ndarray:
        row, table = numbers(0), numbers(0).reshape(1, 1)
        return found.step(cache, row, row, numbers(0, 1), numbers(1), table, row)

    wanted = step()
    os.truncate(tmp_path / SHARD, size - 64)
    np.testing.assert_array_equal(step(), wanted)
    os.truncate(tmp_path / SHARD, size - 2 * os.sysconf("SC_PAGESIZE"))
    with pytest.raises(ArtifactError, match="cut"):
        step()
