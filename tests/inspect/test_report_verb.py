"""deepmnn report: any name of a model, and a page that is written whole or not at all."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from byte_tokenizer import write_tokenizer
from deepmnn.cli import app
from deepmnn.conversion.convert import convert
from deepmnn.errors import StorageError
from deepmnn.inspect.page_file import check_page, write_page
from html_page import checked
from tiny_artifact import tiny_artifact, write_config
from tiny_models import CONFIGS, checkpoint_of


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["report", *map(str, arguments), "--threads", "1"])


def good(page: Path, *arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert str(page) in result.output.replace("\n", "")
    parsed = checked(page.read_text())
    return " ".join(parsed.text)


def bad(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert result.stderr.count("\n") == 1
    return result.stderr


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_artifact(tmp_path_factory.mktemp("verb"), quant="w8")


@pytest.mark.parametrize("tokenizer", [False, True])
def test_a_checkpoint_with_its_errors_accuracy_and_speed(tmp_path: Path, tokenizer: bool) -> None:
    made = checkpoint_of("llama", CONFIGS["llama"][0] | {"vocab_size": 271}, tmp_path / "hf")
    flags: list[object] = []
    if tokenizer:
        write_tokenizer(made.path)
        (tmp_path / "text.txt").write_text("Rivers carry sand. " * 20)
        flags = ["--no-speed", "--text", tmp_path / "text.txt"]
    page = tmp_path / "new" / "page.html"
    words = good(page, made.path, page, "--quant", "w4", "--reference", made.path, *flags)
    assert "measured against hf" in words
    assert "linear" in words
    assert "KL divergence, mean" in words
    assert ("perplexity of hf" in words) == tokenizer
    assert ("token ids at random" in words) != tokenizer
    assert ("tokens per second, decode" in words) != tokenizer
    assert bool(re.search(r"1 × \d+ \d", words)) != tokenizer
    assert str(tmp_path) not in words
    assert [path.name for path in page.parent.iterdir()] == ["page.html"]


def test_a_converted_model_tells_what_its_conversion_saw(tmp_path: Path) -> None:
    made = checkpoint_of("deepseek", CONFIGS["deepseek"][1], tmp_path / "hf")
    convert(made.path, tmp_path / "w4", "w4")
    page = tmp_path / "page.html"
    words = good(page, tmp_path / "w4", page, "--no-speed")
    assert "as the conversion saw it" in words
    assert "Not measured: it was left out" in words
    assert not list((tmp_path / "cache").rglob("deepmnn.json"))  # nothing was converted again


def test_a_config_alone_is_described(tmp_path: Path) -> None:
    write_config(tmp_path / "hf", tokenizer=False)
    page = tmp_path / "page.html"
    for name in (tmp_path / "hf", tmp_path / "hf" / "config.json"):
        words = good(page, name, page, "--overwrite")
        assert "config.json alone" in words
    assert "has no weights" in bad(tmp_path / "hf", tmp_path / "o.html", "--reference", "tiny-r1")
    assert not (tmp_path / "o.html").exists()


def test_a_text_is_judged(artifact: Path, tmp_path: Path) -> None:
    text, page = tmp_path / "text.txt", tmp_path / "page.html"
    text.write_text("Rivers carry sand. " * 30)
    words = good(page, artifact, page, "--text", text, "--no-speed")
    assert "text.txt" in words
    assert "perplexity" in words
    assert "KL divergence is that" not in words
    assert "is missing" in bad(tmp_path / "nothing", page, "--overwrite")


def test_nothing_else_is_replaced(artifact: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    good(page, artifact, page, "--no-speed")
    before = page.read_text()
    assert "--overwrite" in bad(artifact, page, "--no-speed")
    good(page, artifact, page, "--no-speed", "--overwrite")
    assert page.read_text() == before  # the same for the same model
    mine = tmp_path / "mine.html"
    mine.write_text("<!DOCTYPE html> mine")
    assert "no page of deepmnn" in bad(artifact, mine, "--overwrite")
    assert "no page of deepmnn" in bad(artifact, tmp_path, "--overwrite")
    assert mine.read_text() == "<!DOCTYPE html> mine"
    config = json.loads((artifact.parent / "source" / "config.json").read_text())
    assert config["model_type"] == "deepseek_v3"


def test_a_page_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.html"

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match=r"No space left.*Free some space"):
        write_page(page, "text", overwrite=False)
    assert not list(tmp_path.iterdir())
    with pytest.raises(StorageError):
        check_page(tmp_path / ("n" * 300), overwrite=False)
