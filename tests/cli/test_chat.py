"""`deepmnn chat` without a terminal, and the conversation that it keeps."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import deepmnn
from deepmnn.cli import app
from deepmnn.cli.commands import is_open, unquoted
from deepmnn.cli.conversation import Conversation, Turn
from deepmnn.errors import RequestError, StorageError
from tiny_artifact import tiny_artifact


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_artifact(tmp_path_factory.mktemp("chat"), quant="w8")


def chat(artifact: Path, stdin: str, *flags: object, code: int = 0) -> Result:
    flags = ("--max-tokens", 4, "--threads", 1, *flags)
    result = CliRunner().invoke(app, ["chat", str(artifact), *map(str, flags)], input=stdin)
    assert result.exit_code == code, result.output
    return result


def test_it_keeps_the_conversation_and_reuses_its_prefix(artifact: Path) -> None:
    system = ["--system", "A long system message. " * 3]
    result = chat(artifact, "Hello\n\nAgain\n/reset\nHello\n/exit\nno\n", *system)
    stats = [line for line in result.stderr.splitlines() if "tok/s" in line]
    lengths = [int(re.search(r"prompt (\d+)", line)[1]) for line in stats]
    assert lengths[1] > lengths[0] == lengths[2]
    assert ["cached" in line for line in stats] == [False, True, True]
    assert not chat(artifact, "").output


def test_a_piped_stdout_has_the_answers_only(artifact: Path) -> None:
    """To the letter what the API answers, in the same conversation."""
    questions = ["one", "two\nlines", "/three"]
    typed = 'one\n/help\n/system\n/nonsense\n"""\ntwo\nlines\n"""\n /three\n/save /\n/bye\n'
    result = chat(artifact, typed, "--max-tokens", 9, code=1)
    model = deepmnn.load(artifact, threads=1)
    messages: list[dict[str, str]] = []
    wanted = ""
    for question in questions:
        messages.append({"role": "user", "content": question})
        answer = model.generate(messages, deepmnn.SamplingParams(max_tokens=9))
        messages.append({"role": "assistant", "content": answer.text})
        gap = "\n\n" if answer.reasoning and answer.text else ""
        wanted += f"{answer.reasoning}{gap}{answer.text}\n"
    assert result.stdout_bytes.decode() == wanted
    assert "error: there is no command /nonsense" in result.stderr
    assert "deepseek_v3" not in result.output, "the header is for people"


def test_what_cannot_be_asked_leaves_the_conversation_as_it_was(artifact: Path) -> None:
    result = chat(artifact, f"Hello\n{'x' * 500}\nHello\n", code=1)
    assert "/reset starts over, /save FILE keeps" in result.stderr
    stats = [line for line in result.stderr.splitlines() if "tok/s" in line]
    assert len(stats) == 2
    full = chat(artifact, f"{'x' * 150}\n", "--max-tokens", 1000)
    assert re.search(r"The context of 192 tokens is full\. /reset", full.stderr)


def test_an_interrupt_keeps_question_and_beginning(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, calls = deepmnn.LLM.stream, []

    def stream(self: deepmnn.LLM, *arguments: Any) -> Iterator[deepmnn.Chunk]:
        calls.append(arguments[0])
        chunks = plain(self, *arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        for chunk in chunks:
            yield chunk
            if len(calls) == 1 and chunk.text + chunk.reasoning:
                raise KeyboardInterrupt

    monkeypatch.setattr(deepmnn.LLM, "stream", stream)
    file = tmp_path / "chat.json"
    result = chat(artifact, f"one\ntwo\nthree\n/save {file}\n", "--max-tokens", 20)
    assert "this part of the answer are kept" in result.stderr
    assert "the question is forgotten" in result.stderr
    assert result.stderr.count("tok/s") == 1
    assert [m["content"] for m in calls[2] if m["role"] == "user"] == ["one", "three"]
    saved = json.loads(file.read_text())["messages"]
    assert saved[1]["content"] == calls[2][1]["content"]
    assert saved[1]["content"] or saved[1]["reasoning"]


def test_ctrl_c_in_a_pipe_leaves_with_130(artifact: Path) -> None:
    command = [sys.executable, "-c", "from deepmnn.cli import main; main()", "chat", str(artifact)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*command, "--max-tokens", "4"], text=True, **pipes) as process:
        assert process.stdin
        assert process.stderr
        process.stdin.write("Hello\n")
        process.stdin.flush()
        assert "tok/s" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors


def test_a_model_without_a_template_says_so_before_the_first_question(tmp_path: Path) -> None:
    source = tmp_path / "source"
    tiny_artifact(tmp_path)
    fields = json.loads((source / "tokenizer_config.json").read_text())
    del fields["chat_template"]
    (source / "tokenizer_config.json").write_text(json.dumps(fields))
    deepmnn.convert(source, tmp_path / "plain", random_weights=True)
    assert "template" in chat(tmp_path / "plain", "", code=1).stderr


def test_a_conversation_is_saved_and_loaded(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    turns = [Turn("a", "b", "because"), Turn("ü\x1b\n", "🙂", ""), Turn("\ud800", "")]
    for system in (None, "Be brief."):
        told = Conversation(system, list(turns))
        told.save(path)
        assert Conversation.load(path) == told
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["chat.json"]
    fields = json.loads(path.read_text())
    assert fields["system"] == "Be brief."
    assert fields["messages"][:2] == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "reasoning": "because"},
    ]
    assert told.asking("c")[0] == {"role": "system", "content": "Be brief."}
    assert [m["content"] for m in told.asking("c")[1:3]] == ["a", "b"]


def test_no_other_file_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "notes.json"
    for notes in ("my notes", "{}", '{"format": "other"}', '{"messages": []}', ""):
        path.write_text(notes)
        with pytest.raises(StorageError, match="no saved conversation"):
            Conversation().save(path)
        assert path.read_text() == notes
    os.mkfifo(tmp_path / "pipe")
    for target in (tmp_path, tmp_path / "pipe", tmp_path / "none" / "chat.json"):
        with pytest.raises(StorageError):
            Conversation().save(target)
    (tmp_path / "link").symlink_to(tmp_path / "real.json")
    Conversation("s").save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert Conversation.load(tmp_path / "real.json").system == "s"


def test_a_full_disk_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "chat.json"
    Conversation("before").save(path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        Conversation("after").save(path)
    assert Conversation.load(path).system == "before"
    assert [each.name for each in tmp_path.iterdir()] == ["chat.json"]


GOOD = {"format": "deepmnn-chat", "format_version": 1, "system": None, "messages": []}
ASKED = {"role": "user", "content": "a"}


@pytest.mark.parametrize(
    "fields",
    [
        [],
        {},
        {**GOOD, "format": "other"},
        {**GOOD, "format_version": 2},
        {**GOOD, "system": 5},
        {**GOOD, "messages": None},
        {**GOOD, "messages": [ASKED]},
        {**GOOD, "messages": [ASKED, ASKED]},
        {**GOOD, "messages": [ASKED, 5]},
        {**GOOD, "messages": [ASKED, {"role": "assistant"}]},
        {**GOOD, "messages": [ASKED, {"role": "assistant", "content": None}]},
        {**GOOD, "messages": [ASKED, {"role": "assistant", "content": "b", "reasoning": 1}]},
    ],
)
def test_files_that_are_no_conversation(tmp_path: Path, fields: Any) -> None:
    path = tmp_path / "chat.json"
    path.write_text(json.dumps(fields))
    with pytest.raises(RequestError) as caught:
        Conversation.load(path)
    assert caught.value.expected


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    large = tmp_path / "large.json"
    with large.open("wb") as file:
        file.truncate(17 << 20)
    os.mkfifo(tmp_path / "pipe")
    deep = tmp_path / "deep.json"
    deep.write_text("[" * 200_000)
    for path in (large, tmp_path / "pipe", deep, tmp_path, tmp_path / "none", Path("/dev/zero")):
        with pytest.raises(RequestError):
            Conversation.load(path)


def test_commands_that_are_refused(artifact: Path, tmp_path: Path) -> None:
    for line, message in {
        "/unknown x": "there is no command /unknown",
        "//": "there is no command //",
        "/": "there is no command /",
        "/save": "/save has no file",
        "/load": "/load has no file",
        f"/load {tmp_path}/none": "is missing",
        "/save ~nobody-of-that-name/x": "~nobody-of-that-name/x",
        "/save a\0b": "holds a NUL",
        f"/save {tmp_path}/{'x' * 300}": "too long",
    }.items():
        result = chat(artifact, f"{line}\n/RESET\n", code=1)
        assert message in result.stderr
        assert "starts over" in result.stderr, "the chat goes on"


def test_home_is_expanded(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    shown = chat(artifact, '/system Hi\n/save ~/a b.json\n/system ""\n/load ~/a b.json\n/system\n')
    assert (tmp_path / "a b.json").is_file()
    assert "is removed" in shown.stderr
    assert shown.stderr.splitlines()[-1] == "  Hi"


def test_quotes_around_lines() -> None:
    assert is_open('"""')
    assert is_open('"""a\nb')
    assert is_open('/system """')
    for whole in ('"""a"""', '"""a\n"""', 'say """', "a", ""):
        assert not is_open(whole)
    assert unquoted('"""\n a\nb\n"""') == " a\nb"
    assert unquoted('  a """b""" ') == 'a """b"""'
    assert unquoted('"""doc"""\ncode\n"""x"""') == '"""doc"""\ncode\n"""x"""'
