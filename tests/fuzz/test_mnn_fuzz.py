"""Damaged MNN folders with checksums that fit: a typed error or a model, never a crash."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("MNN")

from deepmnn.exporters.mnn.export import export
from tiny_artifact import tiny_artifact

CHILD = Path(__file__).with_name("mnn_child.py")
COUNTS = {
    "config": (30, 400),
    "llm_config": (30, 400),
    "tokenizer": (40, 600),
    "network": (40, 2000),
    "weights": (15, 400),
    "embedding": (8, 100),
    "sidecar": (8, 100),
}
"""Kind → attempts, and in a slow run."""


@pytest.mark.parametrize("which", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_no_damage_crashes_mnn(tmp_path: Path, which: int) -> None:
    folder = export(tiny_artifact(tmp_path, quant="w8"), tmp_path / "folder").path
    wanted = {kind: counts[which] for kind, counts in COUNTS.items()}
    command = [CHILD, folder, tmp_path / "scratch", 1 + which]
    command += [f"{kind}={count}" for kind, count in wanted.items()]
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, timeout=3000
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("faults") == []
    assert {kind: sum(outcomes.values()) for kind, outcomes in found.items()} == wanted
    assert all(outcomes.get("refused", 0) > 0 for outcomes in found.values())
