from __future__ import annotations

import os
from pathlib import Path

import pytest

import deepmnn
from deepmnn.backends.cpu_model import CpuBackend
from deepmnn.backends.mnn import threads
from tiny_artifact import tiny_artifact


def test_the_cores_are_those_the_core_counts(tmp_path: Path) -> None:
    path = tiny_artifact(tmp_path)
    allowed = os.sched_getaffinity(0)
    for cpus in (allowed, {min(allowed)}):
        os.sched_setaffinity(0, cpus)
        try:
            backend = deepmnn.load(path, "cpu").backend
            assert isinstance(backend, CpuBackend)
            assert threads.available_cores() == backend.model.threads
        finally:
            os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 4), ("250000 100000", 2), ("50000 100000", 1), ("900000 100000", 4), ("", 4)],
)
def test_quotas_and_siblings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: int
) -> None:
    """Eight hardware threads, two to a core."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(threads, "_SIBLINGS", str(tmp_path / "{}"))
    monkeypatch.setattr(threads, "_QUOTA", str(tmp_path / "quota"))
    for cpu in range(8):
        (tmp_path / str(cpu)).write_text(f"{cpu // 2 * 2}-{cpu // 2 * 2 + 1}\n")
    (tmp_path / "quota").write_text(quota + "\n")
    assert threads.available_cores() == cores
