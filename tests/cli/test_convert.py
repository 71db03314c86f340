"""`deepmnn convert` of PyTorch files."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from deepmnn.artifact.reader import Artifact
from deepmnn.cli import app
from tiny_models import tiny_checkpoint


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """model.pt, and a config.json elsewhere."""
    tiny = tiny_checkpoint("deepseek_v3", 1, tmp_path / "hf")
    torch.save(load_file(tiny.path / "model.safetensors"), tmp_path / "model.pt")
    (tiny.path / "model.safetensors").unlink()
    return tmp_path / "model.pt", tiny.path / "config.json"


def convert(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["convert", *map(str, arguments)])


def test_a_file_with_a_config(files: tuple[Path, Path], tmp_path: Path) -> None:
    weights, config = files
    result = convert(weights, tmp_path / "out", "--config", config, "--group-size", 32)
    assert result.exit_code == 0, result.output
    assert "deepseek_v3" in result.output
    artifact = Artifact.open(tmp_path / "out")
    assert (artifact.path / "config.json").read_bytes() == config.read_bytes()
    assert {w.group_size for w in artifact.graph().weights.values()} == {0, 32, 256}


def test_a_file_without_a_config(files: tuple[Path, Path], tmp_path: Path) -> None:
    result = convert(files[0], tmp_path / "out")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert "config.json is missing" in result.stderr
    assert "--config" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
