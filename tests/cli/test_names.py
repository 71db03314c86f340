"""Verbs take a model by any name; `deepmnn cache` shows and removes what they keep."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import deepmnn
from deepmnn.artifact.cache import entries
from deepmnn.cli import app
from deepmnn.conversion.bundled import CHECKPOINT
from fake_hub import FakeHub, fake_hub, use_hub
from tiny_models import tiny_checkpoint

QUESTION = "What is 17 + 25?"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return tmp_path / "xdg" / "deepmnn" / "models"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub that has tiny-r1 as acme/tiny."""
    shutil.copytree(CHECKPOINT, tmp_path / "site")
    with fake_hub(tmp_path / "site", "acme/tiny") as served:
        use_hub(served, tmp_path / "hf", monkeypatch)
        yield served


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def said(*arguments: object, code: int = 0) -> tuple[str, str]:
    """(stdout, stderr) of a command."""
    result = run(*arguments)
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr


def test_a_hub_name_is_downloaded_and_converted_once(hub: FakeHub, home: Path) -> None:
    answer, told = said("generate", "acme/tiny", QUESTION)
    assert "**42**" in answer
    assert "downloading acme/tiny, 8.4 MB, to " in told
    assert f"converting acme/tiny to w8, 4.1 MB, once: {home}/tiny-w8-" in told
    asked = len(hub.asked)
    answer, told = said("generate", "acme/tiny", QUESTION)
    assert "**42**" in answer
    assert told.startswith("prompt "), "nothing to prepare"
    assert len(hub.asked) == asked, "nor to ask the hub for"
    (entry,) = entries()
    assert entry.facts["source"] == "acme/tiny"


def test_the_network_may_be_gone_the_second_time(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said("generate", "acme/tiny", QUESTION)
    hub.shutdown()
    hub.server_close()
    assert "**42**" in said("generate", "acme/tiny", QUESTION)[0]
    shutil.rmtree(tmp_path / "hf")
    assert "**42**" in said("generate", "acme/tiny", QUESTION)[0], "ours needs not the hub's"
    _, told = said("generate", "acme/other", QUESTION, code=1)
    assert "error: the hub cannot be reached for acme/other: " in told
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    _, told = said("generate", "acme/other", QUESTION, code=1)
    assert "error: HF_HUB_OFFLINE is set" in told


def test_what_pull_fetched_anew_is_converted_anew(hub: FakeHub) -> None:
    said("generate", "acme/tiny", QUESTION)
    (hub.directory / "generation_config.json").write_text('{"temperature": 0.0, "top_k": 3}')
    assert "converting" not in said("generate", "acme/tiny", QUESTION)[1]
    assert "next: deepmnn chat acme/tiny" in said("pull", "acme/tiny")[0]
    assert "converting acme/tiny" in said("generate", "acme/tiny", QUESTION)[1]


def test_every_verb_takes_a_hub_name(hub: FakeHub, tmp_path: Path) -> None:
    text = said("info", "acme/tiny")[0]
    assert "4.2 M" in text
    assert not [line for line in hub.asked if "safetensors" in line], "config.json is enough"
    flags = ("--prompt-tokens", 4, "--new-tokens", 1, "--batch", 1, "--repeat", 1)
    assert "acme/tiny" in said("bench", "acme/tiny", *flags)[0]
    assert "of 2" in said("eval", "acme/tiny", "--limit", 2)[0]
    said("convert", "acme/tiny", tmp_path / "out", "--quant", "bf16")
    assert deepmnn.load(tmp_path / "out").artifact.manifest["quant"] == "bf16"
    said("export", "acme/tiny", tmp_path / "mnn")
    assert (tmp_path / "mnn" / "llm.mnn").is_file()
    assert len(entries()) == 1


def test_a_checkpoint_directory_with_a_recipe(tmp_path: Path) -> None:
    for quant in ("bf16", "fp32"):
        result = run("generate", CHECKPOINT, QUESTION, "--quant", quant)
        assert result.exit_code == 0, result.output
        assert f"converting tiny-r1 to {quant}" in result.stderr
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("name: m\nrules:\n- {pattern: '*', format: w8}\n")
    result = run("generate", CHECKPOINT, QUESTION, "--quant", recipe)
    assert "**42**" in result.stdout
    assert {entry.facts["recipe"] for entry in entries()} == {"bf16", "fp32", "m"}
    assert run("generate", CHECKPOINT, QUESTION, "--quant", tmp_path / "none.yaml").exit_code == 1


def test_an_empty_cache() -> None:
    assert "0 models, 0 B of " in run("cache", "list").stdout
    assert run("cache", "remove", "--all").exit_code == 0
    assert run("cache", "remove", "nothing").exit_code == 2
    assert run("cache", "remove").exit_code == 2
    assert run("cache", "remove", "x", "--all").exit_code == 2


def test_list_and_remove(tmp_path: Path, home: Path) -> None:
    tiny = tiny_checkpoint("llama", 0, tmp_path / "[red]tiny")
    for quant in ("w8", "w4"):
        deepmnn.load(tiny.path, quant=quant)
    deepmnn.load("tiny-r1")
    text = run("cache", "list").stdout
    assert text.splitlines()[0].startswith("tiny-r1-w8-"), "the last used first"
    assert f"  {tiny.path} as w4, " in text
    assert "tiny-r1 as w8, 4.2 MB, last used 20" in text
    assert f"3 models, {sum(e.nbytes for e in entries()) / 1e6:.1f} MB of " in text
    assert text.splitlines()[-1].endswith(str(home))

    result = run("cache", "remove", entries()[0].path.name)
    assert (result.exit_code, len(entries())) == (0, 2)
    result = run("cache", "remove", "tiny-r1")
    assert result.stdout.startswith("removed tiny-r1-w8-")
    assert [entry.facts["source"] for entry in entries()] == [str(tiny.path)]


def test_what_is_in_use_is_not_removed() -> None:
    model = deepmnn.load("tiny-r1")
    deepmnn.load("tiny-r1", quant="bf16")
    assert "in use" in run("cache", "list").stdout
    result = run("cache", "remove", "--all")
    assert result.exit_code == 1
    assert "removed tiny-r1-bf16-" in result.stdout
    assert "in use; expected models that no process has loaded" in result.stderr
    assert model.generate("What is 1 + 1?")
    del model
    assert run("cache", "remove", "--all").exit_code == 0
    assert entries() == []


def test_the_limit_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPMNN_CACHE_LIMIT", "13MB")
    for quant in ("w8", "fp32", "bf16"):
        result = run("generate", "tiny-r1", QUESTION, "--quant", quant)
        assert result.exit_code == 0, result.output
    assert [entry.facts["recipe"] for entry in entries()] == ["bf16"]
    assert "removed tiny-r1-fp32-" in result.stderr
    monkeypatch.setenv("DEEPMNN_CACHE_LIMIT", "lots")
    assert (
        "DEEPMNN_CACHE_LIMIT is 'lots'" in run("generate", "tiny-r1", "x", "--quant", "w8").stderr
    )


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_while_it_converts_leaves_nothing(home: Path, name: str) -> None:
    code = """
import os, signal
from deepmnn.conversion import write
plain = write._stored
def stored(*arguments):
    os.kill(os.getpid(), signal.NAME)
    return plain(*arguments)
write._stored = stored
from deepmnn.__main__ import main
main()
""".replace("NAME", name)
    command = [sys.executable, "-c", code, "chat", str(CHECKPOINT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    number = getattr(signal, name)
    assert done.returncode in (128 + number, -number), done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(home) == []
