"""The core without an operating system: its stub platform, scalar kernels alone, no Python.

It must load what this package converts and answer with the scalar kernels' logits, bit by bit.
"""

import subprocess
from pathlib import Path

import numpy as np
import pytest

from deepmnn import _core
from deepmnn.backends.base import F32
from deepmnn.backends.cpu.backend import CpuBackend
from deepmnn.errors import ArtifactError
from parity import prompts_for, run_schedule
from tiny_artifact import CONFIG, tiny_artifact

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "stub"  # stays: the next run builds what has changed
OPTIONS = {
    "DEEPMNN_PLATFORM": "stub",
    "DEEPMNN_ISAS": "",
    "DEEPMNN_PYTHON": "OFF",
    "DEEPMNN_TESTS": "ON",
    "CMAKE_BUILD_TYPE": "Debug",
    "CMAKE_CXX_FLAGS_DEBUG": "-O0",
}
TOKENS, CHUNK = 11, 7

pytestmark = pytest.mark.slow  # it builds the core


@pytest.fixture(scope="module")
def build() -> Path:
    """Takes 20 to 30 seconds on two cores."""
    options = [f"-D{name}={value}" for name, value in OPTIONS.items()]
    subprocess.run(["cmake", "-S", ROOT, "-B", BUILD, *options], check=True, capture_output=True)
    targets = ["--target", "run_model", "memory_test"]
    subprocess.run(["cmake", "--build", BUILD, "--parallel", "2", *targets], check=True)
    return BUILD


def run_model(
    build: Path, model: Path, out: Path, tokens: list[int], isa: str = "scalar"
) -> subprocess.CompletedProcess[str]:
    command = [build / "run_model", model, isa, out, str(CHUNK), *map(str, tokens)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("quant", ["fp32", "bf16", "w8", "w4"])
def test_the_same_logits_on_one_thread(build: Path, tmp_path: Path, quant: str) -> None:
    model = tiny_artifact(tmp_path, quant)
    prompts = prompts_for([TOKENS], CONFIG["vocab_size"])
    backend = CpuBackend(model, isa="scalar")
    (want,) = run_schedule(backend, prompts, [(CHUNK,), (TOKENS - CHUNK,)])
    done = run_model(build, model, tmp_path / "logits", prompts[0])
    assert (done.stdout, done.stderr, done.returncode) == ("1\n", "", 0)
    got: F32 = np.fromfile(tmp_path / "logits", np.float32).reshape(want.shape)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("damage", ["missing", "folder", "empty", "no shard"])
def test_files_that_are_none_are_the_same_errors(build: Path, tmp_path: Path, damage: str) -> None:
    model = tiny_artifact(tmp_path)
    broken = model / "program.bin"
    if damage == "no shard":
        (broken,) = model.glob("*.safetensors")
    broken.unlink()
    if damage == "folder":
        broken.mkdir()
    if damage == "empty":
        broken.touch()
    with pytest.raises(ArtifactError) as error:
        _core.Model(str(model), 1, "scalar")
    done = run_model(build, model, tmp_path / "logits", [1])
    assert (done.returncode, done.stderr) == (1, f"{error.value}\n")


def test_no_other_instruction_set(build: Path, tmp_path: Path) -> None:
    done = run_model(build, tiny_artifact(tmp_path), tmp_path / "logits", [1], "avx2")
    assert "'avx2'; expected one this machine runs: scalar." in done.stderr


def test_its_memory(build: Path) -> None:
    """native/tests/memory_test.cc: aligned, zeroed, and no more than there is."""
    subprocess.run([build / "memory_test"], check=True)
