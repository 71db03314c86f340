"""`deepmnn eval`: its two ways, their flags, and what it says about what goes wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from deepmnn.cli import app
from deepmnn.conversion.bundled import CHECKPOINT
from tiny_artifact import tiny_artifact


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_artifact(tmp_path_factory.mktemp("eval"), quant="w8")


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_artifact(tmp_path_factory.mktemp("exact"))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["eval", *map(str, arguments)], env={"COLUMNS": "100"})


def good(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def bad(code: int, *arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.stderr


def problems(path: Path, *lines: dict) -> Path:
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_answers_are_counted_and_kept(artifact: Path, tmp_path: Path) -> None:
    data = problems(
        tmp_path / "p.jsonl",
        *({"question": f"{i}?", "answer": "never", "kind": "ab"[i % 2]} for i in range(4)),
        {"question": "any", "answer": "(?s).*", "match": "regex", "kind": "b"},
    )
    out = tmp_path / "answers.jsonl"
    flags = (artifact, "--data", data, "--max-tokens", 3, "--threads", 1)
    report = json.loads(good(*flags, "--json", "--output", out))
    assert (report["asked"], report["right"], report["wrong"], report["cut_off"]) == (5, 1, 0, 4)
    assert report["exact_match"] == 0.2
    assert report["kinds"]["b"]["right"] == 1
    assert len([json.loads(line) for line in out.read_text().splitlines()]) == 5
    assert "exists" in bad(1, *flags, "--output", out)
    text = good(*flags)
    assert "exact match 20.0% (1 of 5)" in text
    assert "the others: 4 cut off" in text
    assert "4 cut off after 3 tokens: set a larger --max-tokens" in text
    long = good(
        *flags[:3], "--max-tokens", 5000, "--cache-tokens", 64, "--temperature", 9, "--seed", 1
    )
    assert "the context of 64 tokens ends: set a larger --cache-tokens" in long


def test_sampling_is_greedy_unless_asked(artifact: Path, tmp_path: Path) -> None:
    data = problems(tmp_path / "p.jsonl", {"question": "x", "answer": "y"})

    def answer(name: str, *flags: object) -> str:
        common = (artifact, "--data", data, "--max-tokens", 12, "--threads", 1)
        good(*common, "--output", tmp_path / name, *flags)
        return str(json.loads((tmp_path / name).read_text())["reasoning"])

    hot = ("--temperature", 5, "--seed")
    assert answer("1") == answer("2")
    assert answer("3", *hot, 1) == answer("4", *hot, 1) != answer("5", *hot, 2)


def test_the_match_of_the_file_and_of_the_flag(artifact: Path, tmp_path: Path) -> None:
    data = problems(tmp_path / "p.jsonl", {"question": "x", "answer": "Paris"})
    assert "'contains'" in bad(1, artifact, "--data", data, "--match", "fuzzy")
    assert "a number to match" in bad(1, artifact, "--data", data, "--match", "number")
    bad_pattern = problems(tmp_path / "r.jsonl", {"question": "x", "answer": "("})
    assert "no regular expression" in bad(1, artifact, "--data", bad_pattern, "--match", "regex")


def test_perplexity_and_divergence(artifact: Path, exact: Path, tmp_path: Path) -> None:
    text = tmp_path / "prose.txt"
    text.write_text("A small text of some words. " * 20)
    flags = ("--text", text, "--tokens", 64, "--threads", 1)
    found = json.loads(good(artifact, *flags, "--reference", exact, "--json"))
    assert (found["pieces"], found["tokens"]) == (9, 569)
    assert found["model"]["tokens"] == 560
    assert 0 < found["divergence"]["mean"] < found["divergence"]["largest"]
    assert found["perplexity_ratio"] == pytest.approx(
        found["model"]["perplexity"] / found["reference"]["perplexity"]
    )
    by_numpy = json.loads(
        good(artifact, *flags, "--reference", exact, "--json", "--reference-backend", "reference")
    )
    assert by_numpy["divergence"]["mean"] == pytest.approx(found["divergence"]["mean"], rel=1e-2)
    table = good(artifact, *flags, "--reference", exact)
    for word in ("perplexity", "reference", "change", "KL divergence", "99 %", "first choice"):
        assert word in table
    alone = json.loads(good(artifact, *flags, "--json", "--limit", 2))
    assert (alone["pieces"], alone["reference"], alone["divergence"]) == (2, None, None)
    assert "KL" not in good(artifact, "--perplexity", "--limit", 1, "--tokens", 32)


def test_pytorch_as_the_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    flags = ("--reference", CHECKPOINT, "--tokens", 40, "--limit", 1, "--threads", 1, "--json")
    found = json.loads(good("tiny-r1", *flags, "--quant", "fp32", "--reference-backend", "torch"))
    assert found["divergence"]["largest"] < 1e-5
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "deepmnn[torch]" in bad(1, "tiny-r1", *flags, "--reference-backend", "torch")


def test_flags_that_do_not_belong_together(artifact: Path, tmp_path: Path) -> None:
    for flag, value in (("--tokens", 9), ("--reference-backend", "cpu")):
        assert f"{flag} belongs to" in bad(2, artifact, flag, value)
    for flag, value in (
        ("--data", "x"),
        ("--match", "exact"),
        ("--output", tmp_path / "o"),
        ("--max-tokens", 4),
        ("--top-p", 0.5),
    ):
        assert f"{flag} belongs to" in bad(2, artifact, "--perplexity", flag, value)
    assert "belongs to --reference" in bad(
        2, artifact, "--perplexity", "--reference-backend", "cpu"
    )
    assert not (tmp_path / "o").exists()


def test_texts_and_references_that_are_none(artifact: Path, tmp_path: Path) -> None:
    assert "is missing" in bad(1, artifact, "--text", tmp_path / "none")
    (tmp_path / "one").write_text("x")
    (tmp_path / "bad.jsonl").write_text("{}")
    assert "line 1" in bad(1, artifact, "--text", tmp_path / "bad.jsonl")
    assert "at most the model's context, 192" in bad(1, artifact, "--perplexity", "--tokens", 193)
    flags = (artifact, "--limit", 1, "--tokens", 16)
    assert "the same vocabulary" in bad(1, *flags, "--reference", "tiny-r1")
    assert "is missing" in bad(1, *flags, "--reference", tmp_path / "none")
    unknown = bad(1, *flags, "--reference", artifact, "--reference-backend", "x")
    assert "--reference-backend is 'x'" in unknown


def test_a_killed_run_keeps_its_answers(artifact: Path, tmp_path: Path) -> None:
    lines = ({"question": f"{i}?", "answer": "never"} for i in range(3000))
    data, out = problems(tmp_path / "p.jsonl", *lines), tmp_path / "answers.jsonl"
    command = [sys.executable, "-c", "from deepmnn.cli import main; main()", "eval", artifact]
    command += ["--data", data, "--output", out, "--max-tokens", 150, "--threads", 1]
    with subprocess.Popen(
        list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as child:
        end = time.monotonic() + 60
        while time.monotonic() < end and not (out.exists() and out.stat().st_size > 10_000):
            time.sleep(0.01)
        os.kill(child.pid, signal.SIGKILL)
    kept = out.read_bytes().split(b"\n")
    assert len(kept) > 5
    for line in kept[:-1]:
        assert json.loads(line)["verdict"] in ("right", "wrong", "cut off")
