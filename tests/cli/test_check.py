"""deepmnn check, from a shell."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from deepmnn.artifact.manifest import MANIFEST
from deepmnn.cli import app
from exporters.folders import change_json, reseal
from tiny_artifact import tiny_artifact


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["check", *map(str, words)])
    return result.exit_code, result.output


def test_a_sound_model(tmp_path: Path) -> None:
    code, said = run(tiny_artifact(tmp_path, tokenizer=False))
    assert code == 0, said
    assert "RoPE base" in said
    assert "wrong" not in said


def test_a_wrong_one(tmp_path: Path) -> None:
    model = tiny_artifact(tmp_path, tokenizer=False)
    change_json(model / "config.json", rms_norm_eps=1e-5)
    reseal(model / MANIFEST)
    code, said = run(model)
    assert code == 1
    assert "1 wrong" in said
    code, said = run(model, "--json")
    assert code == 1
    checks = {each["name"]: each for each in json.loads(said)["checks"]}
    assert checks["norms' eps"]["verdict"] == "wrong"
    assert checks["norms' eps"]["figure"] == pytest.approx(1e-6)


def test_a_calibration_set(tmp_path: Path) -> None:
    model = tiny_artifact(tmp_path, tokenizer=False)
    ids = np.random.default_rng(0).integers(0, 271, (2, 24, 40))
    for name, rows in zip(("a", "b"), ids, strict=True):
        np.save(tmp_path / f"{name}.npy", rows)
    flags = ("--calibration", tmp_path / "a.npy", "--against", tmp_path / "b.npy")
    code, said = run(model, *flags)
    assert code == 0, said
    assert "24 texts, 960 tokens" in said
    code, said = run(model, *flags, "--json")
    found = json.loads(said[said.index("{") :])
    assert {each["name"] for each in found["checks"]} >= {"texts", "activations"}
    assert len(found["tensors"]) > 10


def test_flags_that_belong_together(tmp_path: Path) -> None:
    code, said = run(tmp_path, "--against", tmp_path / "b.npy")
    assert code == 2
    assert "belong together" in said
