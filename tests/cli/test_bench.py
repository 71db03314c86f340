"""deepmnn bench: rows as they come, through a pipe too."""

from __future__ import annotations

import re
import select
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deepmnn.cli import app
from deepmnn.measure import benchmark
from tiny_artifact import tiny_artifact


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_artifact(tmp_path_factory.mktemp("bench"), quant="w8")


def test_a_row_comes_as_soon_as_it_is_measured(artifact: Path) -> None:
    code = """
import sys
from deepmnn.measure import benchmark
plain = benchmark.time_run
def slow(model, prompt, *rest):
    if prompt == 9:
        sys.stdin.readline()
    return plain(model, prompt, *rest)
benchmark.time_run = slow
from deepmnn.cli import main
main()
"""
    flags = ["--prompt-tokens", "5,9", "--new-tokens", "2", "--batch", "1", "--repeat", "1"]
    command = [sys.executable, "-c", code, "bench", str(artifact), *flags, "--threads", "1"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert process.stdout
        assert process.stdin
        head = [process.stdout.readline().strip() for _ in range(3)]
        assert head[0] == str(artifact)
        assert head[1].startswith("prompts  ")
        assert head[2].startswith("1 × 5 "), "while the second row waits"
        assert not select.select([process.stdout], [], [], 0.2)[0]
        rest, _ = process.communicate("\n\n\n", timeout=60)
    assert process.returncode == 0
    assert rest.startswith("1 × 9 ")
    assert "this machine: 1 threads" in rest


def test_the_columns_stand_below_their_names_in_80_characters(artifact: Path) -> None:
    flags = ["--prompt-tokens", "5", "--new-tokens", "2", "--batch", "1,2", "--repeat", "2"]
    result = CliRunner().invoke(app, ["bench", str(artifact), *flags, "--threads", "1"])
    lines = result.stdout.splitlines()
    table = [line for line in lines if re.match(r"prompts|\d+ × ", line)]
    assert len(table) == 3
    assert len({len(line) for line in table}) == 1
    assert len(table[0]) < 80
    assert table[1].split()[:3] == ["1", "×", "5"]
    assert table[1].count("±") == 2


def test_it_says_what_it_measures_in_between(artifact: Path) -> None:
    import deepmnn

    said: list[str] = []
    rows: list[benchmark.Row] = []
    model = deepmnn.load(artifact, threads=1)
    report = benchmark.benchmark(model, [5], 2, [1, 2], 1, said.append, rows.append)
    assert rows == report.rows
    assert said == [
        "the machine's limits",
        *("1 × 5, warming up", "1 × 5, run 1 of 1", "1 × 5, busy threads"),
        *("2 × 5, warming up", "2 × 5, run 1 of 1", "2 × 5, busy threads"),
    ]


def test_guesses_are_measured_where_they_are_asked_for(artifact: Path) -> None:
    flags = ["--prompt-tokens", "8", "--new-tokens", "24", "--batch", "1", "--repeat", "1"]
    flags += ["--speculate", "ngram", "--threads", "1"]
    made = CliRunner().invoke(app, ["bench", str(artifact), *flags], catch_exceptions=False)
    [line] = [line for line in made.output.splitlines() if "guessing ahead" in line]
    assert "plain" in line
