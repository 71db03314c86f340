"""The command, on the bundled model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.accuracy.__main__ import alone, main


def run(folder: Path, *arguments: str) -> Result:
    app = typer.Typer()
    app.command()(main)
    files = [f"--{name}={folder / name}" for name in ("out", "json", "work")]
    return CliRunner().invoke(app, [*arguments, *files, "--threads=1"])


@pytest.mark.slow
def test_it_judges_the_bundled_model_and_says_which_peers_are_missing(tmp_path: Path) -> None:
    short = ("--tokens=48", "--most=2", "--samples=1")
    done = run(tmp_path, "tiny-r1", "--quant=fp32", "--quant=w8", "--peers=ik_llama", *short)
    assert done.exit_code == 0, done.output
    fields = json.loads((tmp_path / "json").read_text())
    exact, w8, *peers = fields["rows"]
    assert exact["score"]["mean_kl"] < 1e-6 < w8["score"]["mean_kl"] < 0.1
    assert exact["score"]["same_first"] == 1
    assert exact["score"]["tokens"] == 96
    assert w8["stored"]["nbytes"] < 0.3 * exact["stored"]["nbytes"]
    assert {row["missing"] for row in peers} == {"not installed"}
    page = (tmp_path / "out").read_text()
    assert "| **deepmnn w8** |" in page
    assert "96 tokens in 2 pieces" in page


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["/no/such/checkpoint"], "/no/such/checkpoint"),
        (["tiny-r1", "--peers=none"], "the engine 'none'"),
        (["tiny-r1", "--text=/no/such/text"], "/no/such/text"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(tmp_path: Path, arguments: list[str], words: str) -> None:
    done = run(tmp_path, *arguments)
    assert done.exit_code == 1
    assert words in done.output
    assert not (tmp_path / "out").exists()


def test_two_runs_do_not_share_a_directory(tmp_path: Path) -> None:
    with alone(tmp_path / "work"):
        done = run(tmp_path, "tiny-r1")
    assert done.exit_code == 1
    assert "another run" in done.output
