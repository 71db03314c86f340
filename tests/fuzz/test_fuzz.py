"""Every fuzz target: what is known, some random inputs, and, where a fuzzer is, guided ones.

Each runs in a process of its own: one that dies is a finding, and so is one that hangs. What it
tried last is then in build/fuzz.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fuzz import native
from fuzz.targets import TARGETS

RUNS = {
    "safetensors": 1000,
    "torch": 400,
    "pickle": 600,
    "gguf": 200,
    "checkpoint": 500,
    "tokenizer": 200,
    "chat_template": 100,
    "config": 40,
    "artifact": 10,
    "export": 2,
    "mnn": 25,
}
"""Random inputs."""

SECONDS = 4
"""Of guided ones."""


def fuzz(name: str, *arguments: object) -> dict[str, Any]:
    """What a run of a target says at its end."""
    command = [sys.executable, "-m", "fuzz", name, *map(str, arguments)]
    here = Path(__file__).parents[1]
    run = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, run.stderr[-4000:]
    said: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return said


@pytest.mark.parametrize("name", TARGETS)
def test_random_inputs(tmp_path: Path, name: str) -> None:
    if name == "mnn":
        pytest.importorskip("MNN")
    said = fuzz(name, "--blind", "--runs", RUNS[name])
    assert said["done"] > RUNS[name]
    assert 0 < said["accepted"] < said["done"], "they tell nothing from anything"


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_guided_inputs(tmp_path: Path, name: str) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip('atheris is not installed: pip install "deepmnn[fuzz]"')
    if name == "mnn":
        pytest.importorskip("MNN")
    assert fuzz(name, "--seconds", SECONDS, "--build", tmp_path)["done"] > 0


@pytest.mark.slow
@pytest.mark.timeout(1200)  # it is compiled first
@pytest.mark.parametrize("name", native.TARGETS)
def test_guided_inputs_of_the_core(tmp_path: Path, name: str) -> None:
    if native.compiler() is None:
        pytest.skip("clang is not installed: apt-get install clang-19")
    native.build(name)
    assert fuzz(name, "--seconds", SECONDS, "--build", tmp_path)["done"] > 0
