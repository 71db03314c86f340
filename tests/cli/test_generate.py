"""`deepmnn generate`: where a prompt comes from, and what is printed where."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import deepmnn
from deepmnn.cli import app
from deepmnn.conversion.bundled import bundled_checkpoint
from tiny_artifact import tiny_artifact

COMMAND = [sys.executable, "-c", "from deepmnn.cli import main; main()", "generate"]
QUESTION = "What is 17 + 25?"
SHORT = ["--max-tokens", 8, "--threads", 1]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_artifact(tmp_path_factory.mktemp("generate"), quant="w8")


@pytest.fixture(scope="module")
def reasoner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model, which thinks before it answers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("bundled")))
        return bundled_checkpoint()


def run(*arguments: object, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(app, ["generate", *map(str, arguments)], input=stdin)


def good(*arguments: object, stdin: str | bytes | None = None) -> Result:
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result


def bad(code: int, *arguments: object, stdin: str | bytes | None = None) -> str:
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert not result.stdout
    return result.stderr


def test_the_answer_is_what_the_api_says(artifact: Path) -> None:
    flags = [*SHORT, "--temperature", 0.8, "--seed", 1]
    result = good(artifact, "Hello", *flags)
    assert "answer " in result.stderr
    assert "tok/s" in result.stderr
    assert "tok/s" not in result.stdout
    assert good(artifact, "Hello", *flags).stdout == result.stdout
    raw = good(artifact, "Hello", "--raw", *flags)
    model = deepmnn.load(artifact, threads=1)
    params = deepmnn.SamplingParams(temperature=0.8, seed=1, max_tokens=8)
    assert raw.stdout == model.generate("Hello", params).text + "\n"


def test_a_prompt_from_anywhere(artifact: Path, tmp_path: Path) -> None:
    text = "Zwölf\nBoxkämpfer\n"
    wanted = good(artifact, text, *SHORT).stdout
    file = tmp_path / "prompt.txt"
    file.write_text(text, encoding="utf-8")
    for given in (["--file", file], ["-"], []):
        assert good(artifact, *given, *SHORT, stdin=text.encode()).stdout == wanted
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())  # as Windows writes it
    assert good(artifact, "--file", file, *SHORT).stdout == wanted
    model = deepmnn.load(artifact, threads=1)
    exact = model.generate(text, deepmnn.SamplingParams(max_tokens=8)).text
    assert good(artifact, "--raw", *SHORT, stdin=text.encode()).stdout == exact + "\n"


def test_prompts_that_are_none(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "standard input is empty" in bad(1, artifact, stdin="\n")
    assert "standard input is not UTF-8" in bad(1, artifact, stdin=b"caf\xe9")
    assert "Is a directory" in bad(1, artifact, "--file", tmp_path)
    assert "none cannot be read: No such file" in bad(1, artifact, "--file", tmp_path / "none")
    assert "expected one of them" in bad(2, artifact, "x", "--file", tmp_path / "none")
    assert "--system needs one" in bad(2, artifact, "x", "--raw", "--system", "y")
    assert "without --json" in bad(2, artifact, "x", "--logprobs", 2)
    monkeypatch.setattr(sys.modules["deepmnn.cli.generate"], "MAX_BYTES", 1000)
    assert "larger than 1000 bytes" in bad(1, artifact, "--file", "/dev/zero")
    assert "larger than 1000 bytes" in bad(1, artifact, stdin="x" * 1001)
    monkeypatch.undo()
    without_stdin = ["sh", "-c", 'exec "$@" <&-', "sh", *COMMAND, str(artifact)]
    done = subprocess.run(without_stdin, capture_output=True, text=True)
    assert (done.returncode, "there is no prompt" in done.stderr) == (2, True), done.stderr


def test_json(reasoner: Path) -> None:
    model = deepmnn.load(reasoner)
    wanted = model.generate([{"role": "user", "content": QUESTION}])
    result = good(reasoner, QUESTION, "--json")
    found = json.loads(result.stdout)
    assert not result.stderr
    for name in ("text", "reasoning", "ids", "finish_reason", "prompt_tokens", "completion_tokens"):
        assert found[name] == getattr(wanted, name)
    assert found["prefill_seconds"] > 0
    assert "logprobs" not in found
    assert "reasoning" not in json.loads(
        good(reasoner, QUESTION, "--json", "--no-reasoning").stdout
    )


def test_several_answers_and_their_probabilities(artifact: Path) -> None:
    flags = [*SHORT, "--temperature", 1, "--seed", 5, "--n", 3]
    params = deepmnn.SamplingParams(temperature=1, seed=5, max_tokens=8, n=3)
    model = deepmnn.load(artifact, threads=1)
    wanted = model.generate([{"role": "user", "content": "Hello"}], params)
    found = json.loads(good(artifact, "Hello", "--json", "--logprobs", 2, *flags).stdout)
    assert [answer["ids"] for answer in found] == [answer.ids for answer in wanted]
    assert len({tuple(answer["ids"]) for answer in found}) > 1
    for answer in found:
        assert [token["id"] for token in answer["logprobs"]] == answer["ids"]
        for token in answer["logprobs"]:
            first, second = token["top"]
            assert first["logprob"] >= second["logprob"]
            assert 0 < math.exp(token["logprob"]) <= math.exp(first["logprob"]) <= 1
    plain = good(artifact, "Hello", *flags, "--raw")
    texts = [each.text + "\n" for each in model.generate("Hello", params)]
    assert plain.stdout == "".join(texts)
    assert plain.stderr.count("tok/s") == 3
    assert "answer 3 of 3" in plain.stderr


def test_penalties_are_flags(artifact: Path) -> None:
    longer = ["--max-tokens", 60, "--threads", 1]  # enough for a token to come again
    flags = ["--repetition-penalty", 1.7, "--presence-penalty", 2, "--frequency-penalty", 0.5]
    params = deepmnn.SamplingParams(
        max_tokens=60, repetition_penalty=1.7, presence_penalty=2.0, frequency_penalty=0.5
    )
    wanted = deepmnn.load(artifact, threads=1).generate("Hello", params).text
    assert good(artifact, "Hello", "--raw", *longer, *flags).stdout == wanted + "\n"
    assert good(artifact, "Hello", "--raw", *longer).stdout != wanted + "\n"


def test_reasoning_can_be_hidden(reasoner: Path) -> None:
    wanted = deepmnn.load(reasoner).generate([{"role": "user", "content": QUESTION}])
    assert wanted.reasoning
    shown = good(reasoner, QUESTION).stdout
    assert shown == f"{wanted.reasoning}\n\n{wanted.text}\n"
    assert good(reasoner, QUESTION, "--n", 2).stdout == 2 * shown
    assert good(reasoner, QUESTION, "--no-reasoning").stdout == f"{wanted.text}\n"


def test_a_reader_that_leaves_ends_it_quietly(reasoner: Path) -> None:
    pipe, end = os.pipe()
    os.close(pipe)  # nobody reads
    for more in ([], ["--json"], ["--n", "2"]):
        done = subprocess.run(
            [*COMMAND, str(reasoner), QUESTION, *more],
            stdout=end,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
        assert done.returncode == 1
        assert "rror" not in done.stderr
    os.close(end)
