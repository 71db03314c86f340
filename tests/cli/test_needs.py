"""What a command needs of a model's text side is asked before anything is converted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import deepmnn
from byte_tokenizer import write_tokenizer
from deepmnn.artifact import cache
from deepmnn.cli import app
from deepmnn.errors import TokenizerError
from gguf_files import tokenizer_keys, write_gguf
from tiny_artifact import tiny_artifact
from tiny_models import LLAMA, TinyModel, checkpoint_of

FLAGS = ["--max-tokens", "4", "--threads", "1"]


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


@pytest.fixture
def tiny(tmp_path: Path) -> TinyModel:
    """A checkpoint of 512 tokens without a tokenizer."""
    return checkpoint_of("llama", LLAMA | {"vocab_size": 512}, tmp_path / "hf")


def said(code: int, *arguments: object, stdin: str | None = None) -> str:
    """What a command writes to standard error, on one line."""
    result = CliRunner().invoke(app, list(map(str, arguments)), input=stdin)
    assert result.exit_code == code, result.output
    return " ".join(result.stderr.split())


def refused(*arguments: object, stdin: str | None = None) -> str:
    """The same of a command that fails, and converts nothing."""
    message = said(1, *arguments, stdin=stdin)
    assert not cache.entries()
    assert "xdg" not in message
    return message


@pytest.mark.parametrize("command", ["generate", "chat", "eval"])
def test_a_directory_without_a_tokenizer(tiny: TinyModel, tmp_path: Path, command: str) -> None:
    arguments = ["hi"] if command == "generate" else []
    text = tmp_path / "text"
    text.write_text("Some text.\n" * 20)
    arguments += ["--text", text] if command == "eval" else []
    message = refused(command, tiny.path, *arguments, stdin="hi\n")
    assert f"{tiny.path} has no tokenizer" in message
    assert f"Put the model's tokenizer.json into {tiny.path}." in message


def test_it_is_put_there(tiny: TinyModel) -> None:
    write_tokenizer(tiny.path)
    said(0, "generate", tiny.path, "hi", *FLAGS)


def test_a_directory_without_a_chat_template(tiny: TinyModel) -> None:
    write_tokenizer(tiny.path, chat_template=None)
    for command in (["chat"], ["generate"]):
        message = refused(*command, tiny.path, stdin="hi\n")
        assert f"{tiny.path} has no chat template" in message
        assert "deepmnn generate --raw" in message
        assert f"Put the model's chat_template.jinja into {tiny.path}." in message
    said(0, "generate", tiny.path, "hi", "--raw", *FLAGS)


def test_a_damaged_tokenizer(tiny: TinyModel) -> None:
    write_tokenizer(tiny.path)
    (tiny.path / "tokenizer.json").write_text('{"model": 3}')
    assert f"{tiny.path / 'tokenizer.json'}" in refused("generate", tiny.path, "hi")


def test_a_gguf_file_without_a_tokenizer(tiny: TinyModel, tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    file = tmp_path / "file" / "one.gguf"
    write_gguf(tiny, file)
    for name in (file, file.parent):
        message = refused("generate", name, "hi")
        assert f"{name} has no tokenizer" in message
        assert f"deepmnn convert {name} OUT --config DIR" in message
    write_tokenizer(tiny.path)
    said(0, "convert", file, tmp_path / "out", "--config", tiny.path)
    said(0, "generate", tmp_path / "out", "hi", *FLAGS)


def test_a_gguf_file_without_a_chat_template(tiny: TinyModel, tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "texts")
    spec: dict[str, Any] = json.loads((tmp_path / "texts" / "tokenizer.json").read_text())
    file = tmp_path / "one.gguf"
    keys = tokenizer_keys(spec, "gpt-2", 512)
    keys["tokens"][-1], keys["merges"] = "ab", ["a b"]
    write_gguf(tiny, file, tokenizer=keys)
    assert f"{file} has no chat template" in refused("chat", file, stdin="hi\n")
    said(0, "generate", file, "hi", "--raw", *FLAGS)


def test_a_converted_model_without_a_tokenizer(tmp_path: Path) -> None:
    made = tiny_artifact(tmp_path, tokenizer=False)
    message = refused("generate", made, "hi")
    assert f"{made} has no tokenizer" in message
    assert "Convert the checkpoint again, with tokenizer.json beside its weights." in message


def test_one_that_was_converted_without(tiny: TinyModel) -> None:
    """Loading asks for nothing by itself; a command that needs a tokenizer names the checkpoint."""
    assert deepmnn.load(tiny.path, threads=1).logits([1, 2]).shape == (2, 512)
    (entry,) = cache.entries()
    message = said(1, "generate", tiny.path, "hi")
    assert f"Put the model's tokenizer.json into {tiny.path}." in message
    assert str(entry.path) not in message


def test_python_is_told_in_its_words(tiny: TinyModel, tmp_path: Path) -> None:
    file = tmp_path / "one.gguf"
    write_gguf(tiny, file)
    shutil.rmtree(tiny.path)
    with pytest.raises(TokenizerError, match=r"has no tokenizer.*config=DIR"):
        deepmnn.load(file, needs="tokenizer")
