"""The promise, kept in a real control group: whatever the process and its files take."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from deepmnn.conversion.convert import convert
from tiny_artifact import write_config

CHILD = Path(__file__).parent / "budget_child.py"
ROOT = Path("/sys/fs/cgroup")


@pytest.fixture
def group() -> Iterator[Path]:
    """An empty control group that counts memory; skips where none can be made."""
    parent = ROOT / "memory" if (ROOT / "memory").is_dir() else ROOT
    made = parent / f"deepmnn-test-{os.getpid()}"
    try:
        made.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made: {error}")
    try:
        if not any((made / name).exists() for name in ("memory.max_usage_in_bytes", "memory.peak")):
            pytest.skip("control groups here do not count memory")
        yield made
    finally:
        for _ in range(50):
            with suppress(OSError):
                made.rmdir()
                break
            time.sleep(0.1)


def peak_nbytes(group: Path) -> int:
    """The most that processes of the group, and their files, have taken."""
    for name in ("memory.max_usage_in_bytes", "memory.peak"):
        if (group / name).exists():
            return int((group / name).read_text())
    raise AssertionError("the group counts nothing")


def test_a_process_stays_below_its_budget(group: Path, tmp_path: Path) -> None:
    write_config(
        tmp_path / "source", hidden_size=512, moe_intermediate_size=512, n_routed_experts=32,
        num_hidden_layers=4, intermediate_size=1024,
    )  # fmt: skip
    convert(tmp_path / "source", tmp_path / "model", "w8", random_weights=True)
    weights = sum(path.stat().st_size for path in (tmp_path / "model").glob("*.safetensors"))
    ran = subprocess.run(
        [sys.executable, str(CHILD), str(group / "cgroup.procs"), str(tmp_path / "model")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout)
    assert said["streamed"]
    assert said["tokens"] == 9 * 40
    assert said["read"] > weights, "weights came from the disk more than once"
    assert peak_nbytes(group) <= said["budget"]
