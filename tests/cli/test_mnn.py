"""Every verb that runs a model, on a folder for MNN and on an artifact with --backend mnn."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import deepmnn
from deepmnn.backends.mnn.options import MnnOptions
from deepmnn.cli import app
from tiny_artifact import tiny_artifact

EXACT = ("--mnn-memory", "normal", "--precision", "high", "--threads", 1)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_artifact(tmp_path_factory.mktemp("cli-mnn"), quant="w8")


@pytest.fixture(scope="module")
def folder(artifact: Path) -> Path:
    good("export", artifact, artifact.parent / "folder")
    return artifact.parent / "folder"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "deepmnn" / "models"


def run(*arguments: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], input=stdin)


def good(*arguments: object, stdin: str | None = None) -> Result:
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result


def bad(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_generate(folder: Path, artifact: Path, cache: Path) -> None:
    flags = ("--max-tokens", 8, "--temperature", 0.8, "--seed", 1, *EXACT)
    printed = good("generate", folder, "Hello", "--raw", *flags).stdout
    model = deepmnn.load(folder, threads=1, mnn=MnnOptions(memory="normal"))
    params = deepmnn.SamplingParams(temperature=0.8, seed=1, max_tokens=8)
    assert printed == model.generate("Hello", params).text + "\n"
    assert not cache.exists()
    from_artifact = good("generate", artifact, "Hello", "--raw", *flags, "--backend", "mnn")
    assert from_artifact.stdout == printed
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 1


def test_chat(folder: Path) -> None:
    flags = ("--max-tokens", 4, "--system", "A long system message. " * 3)
    result = good("chat", folder, *flags, stdin="Hello\nAgain\n/reset\nHello\n")
    stats = [line for line in result.stderr.splitlines() if "tok/s" in line]
    assert ["cached" in line for line in stats] == [False, True, True]


def test_eval(folder: Path, artifact: Path, tmp_path: Path) -> None:
    data = tmp_path / "problems.jsonl"
    problems = [{"question": f"{i} + 1?", "answer": str(i + 1)} for i in range(4)]
    data.write_text("\n".join(map(json.dumps, problems)))
    flags = ("--data", data, "--max-tokens", 6)
    text = good("eval", folder, *flags, *EXACT).output
    assert re.search(r"exact match \d+\.\d% \(\d of 4\), \d+ tokens", text)


def test_bench(folder: Path) -> None:
    flags = ("--prompt-tokens", 5, "--new-tokens", 2, "--repeat", 1, "--threads", 1)
    report = json.loads(good("bench", folder, *flags, "--json").stdout)
    assert [row["batch"] for row in report["rows"]] == [1]
    assert report["machine"]["threads"] == 1
    assert "no batching" in bad("bench", folder, *flags, "--batch", "1,4")


def test_what_mnn_cannot_do(folder: Path, artifact: Path) -> None:
    assert "'low' or 'normal' or 'high'" in bad("generate", folder, "x", "--mnn-memory", "tiny")
    assert "--precision" in bad("chat", folder, "--precision", "")
    assert "'f32'" in bad("generate", folder, "x", "--kv-dtype", "bf16")
    assert "--backend mnn" in bad("generate", artifact, "x", "--mnn-memory", "low")
    assert "--backend mnn" in bad("generate", artifact, "x", "--precision", "low")
    assert "--backend mnn" in bad("generate", folder, "x", "--backend", "cpu")
    assert "'cpu' or 'mnn'" in bad("generate", artifact, "x", "--backend", "gpu")
