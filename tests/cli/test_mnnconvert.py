"""deepmnn mnnconvert: `python -m mnnconvert` as a verb."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from deepmnn.cli import app
from tiny_models import tiny_checkpoint


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["mnnconvert", *map(str, arguments)])


def test_it_converts(tmp_path: Path) -> None:
    tiny = tiny_checkpoint("llama", 0, tmp_path / "hf")
    out = tmp_path / "tiny.mnn"
    flags = ("-f", "HF", "--modelFile", tiny.path, "--MNNModel", out, "--bizCode", "X", "--fp16")
    result = run(*flags)
    assert result.exit_code == 0, result.output
    assert out.is_file()
    result = run(*flags)
    assert (result.exit_code, "Replace it with --overwrite" in result.stderr) == (1, True)
    assert run(*flags, "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--help"], 0, "usage: deepmnn mnnconvert"),
        (["--version"], 0, "mnnconvert of deepmnn"),
        ([], 2, "error: "),
        (["--nonsense"], 2, "--help lists the flags"),
        (["--hqq"], 1, "error: --hqq is not for these models"),
    ],
)
def test_its_flags_are_those_of_the_module(arguments: list[str], code: int, said: str) -> None:
    result = run(*arguments)
    assert result.exit_code == code
    assert said in result.output
    command = [sys.executable, "-m", "mnnconvert", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code
    printed = [*done.stdout.split(), *done.stderr.split()]
    assert [word for word in result.output.split() if word != "deepmnn"] == [
        word for word in printed if word != "deepmnn"
    ]


def test_it_is_listed() -> None:
    assert "mnnconvert" in CliRunner().invoke(app, ["--help"]).output
