"""A model by any name: what is converted into the cache, when again, and what the names mean."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import deepmnn
from deepmnn.artifact.cache import entries, models_directory
from deepmnn.artifact.reader import Artifact
from deepmnn.conversion import bundled
from deepmnn.conversion.convert import convert
from deepmnn.conversion.kept import converted, described
from deepmnn.errors import ArtifactError, CheckpointError, RequestError
from deepmnn.quant.recipe import Recipe, Rule
from parity import relative_error
from tiny_models import TinyModel, tiny_checkpoint


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "xdg" / "deepmnn" / "models"


@pytest.fixture
def tiny(tmp_path: Path) -> TinyModel:
    return tiny_checkpoint("llama", 0, tmp_path / "checkpoint")


def quant_of(path: Path) -> str:
    return Artifact.open(path).manifest["quant"]


def test_a_checkpoint_is_converted_once(tiny: TinyModel, home: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    with converted(tiny.path, progress=lambda *call: calls.append(call)) as first:
        assert first.path.parent == home
        assert quant_of(first.path) == "w8"
        assert calls
        assert calls[-1][0] == calls[-1][1]
    count = len(calls)
    with converted(str(tiny.path), "w8", lambda *call: calls.append(call)) as again:
        assert again.path == first.path
    assert len(calls) == count
    (entry,) = entries()
    assert entry.facts["source"] == str(tiny.path)
    assert entry.facts["recipe"] == "w8"


def test_load_takes_a_checkpoint_and_gives_its_logits(tiny: TinyModel) -> None:
    ids = [3, 1, 4, 1, 5, 9]
    model = deepmnn.load(tiny.path, "reference", quant="fp32")
    with torch.no_grad():
        want = tiny.model(torch.tensor([ids])).logits[0].numpy()
    assert relative_error(model.logits(ids), want) < 1e-4
    assert [entry.is_used for entry in entries()] == [True], "as long as it is loaded"


def test_a_model_that_is_gone_is_used_no_longer(tiny: TinyModel) -> None:
    model = deepmnn.load(tiny.path, "reference")
    assert entries()[0].is_used
    del model
    assert not entries()[0].is_used


def test_a_pytorch_file(tiny: TinyModel, tmp_path: Path) -> None:
    folder = tmp_path / "torch"
    folder.mkdir()
    torch.save(load_file(tiny.path / "model.safetensors"), folder / "model.pt")
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        converted(folder / "model.pt")
    assert entries() == []
    shutil.copy(tiny.path / "config.json", folder)
    with converted(folder / "model.pt") as first:
        assert quant_of(first.path) == "w8"
    (folder / "unrelated.bin").write_bytes(b"x")
    with converted(folder / "model.pt") as again:
        assert again.path == first.path


@pytest.mark.parametrize("change", ["touched", "longer", "added", "removed"])
def test_another_source_is_converted_again(tiny: TinyModel, change: str) -> None:
    (tiny.path / "README.md").write_text("words")
    extra = tiny.path / "generation_config.json"
    extra.write_text("{}")
    with converted(tiny.path) as first:
        pass
    (tiny.path / "README.md").write_text("other words")
    with converted(tiny.path) as same:
        assert same.path == first.path, "a README changes nothing"
    if change == "touched":
        os.utime(tiny.path / "model.safetensors")
    elif change == "longer":
        extra.write_text('{"temperature": 0.5}')
    elif change == "added":
        (tiny.path / "chat_template.jinja").write_text("{{ messages }}")
    else:
        extra.unlink()
    with converted(tiny.path) as other:
        assert other.path != first.path


def test_another_recipe_is_another_conversion(tiny: TinyModel) -> None:
    own = Recipe("my own/recipe", (Rule("*", "bf16"),))
    paths = set()
    for quant in (None, "w4", "bf16", own):
        with converted(tiny.path, quant) as held:
            paths.add(held.path)
    assert len(paths) == 4
    assert {quant_of(path) for path in paths} == {"w8", "w4", "bf16", "my own/recipe"}
    renamed = Recipe(own.name, (Rule("*", "w8"),))
    with converted(tiny.path, renamed) as held:
        assert held.path not in paths, "a recipe is its rules, not its name"
    with pytest.raises(RequestError, match="w7"):
        converted(tiny.path, "w7")


def test_what_is_converted_already_is_used_where_it_is(tiny: TinyModel, tmp_path: Path) -> None:
    convert(tiny.path, tmp_path / "out", "w4")
    for quant in (None, "w4"):
        with converted(tmp_path / "out", quant) as held:
            assert held.path == tmp_path / "out"
    with pytest.raises(RequestError, match="converted already, with the recipe 'w4'"):
        converted(tmp_path / "out", "w8")
    assert entries() == []


def test_a_damaged_conversion_is_made_again(tiny: TinyModel) -> None:
    with converted(tiny.path) as held:
        shard = next(held.path.glob("*.safetensors"))
        sound = shard.read_bytes()
    shard.write_bytes(sound[:-64])
    with converted(tiny.path) as held:
        assert next(held.path.glob("*.safetensors")).read_bytes() == sound


def test_the_bundled_model_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with converted("tiny-r1") as named, converted(bundled.CHECKPOINT) as by_path:
        assert named.path == by_path.path
    assert described("tiny-r1") == bundled.CHECKPOINT
    monkeypatch.setattr(bundled, "CHECKPOINT", tmp_path)
    with pytest.raises(CheckpointError, match="Install"):
        converted("tiny-r1")


def test_a_path_that_exists_is_never_a_hub_name(
    tiny: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny.path, tmp_path / "deepseek-ai" / "DeepSeek-V3")
    with converted("deepseek-ai/DeepSeek-V3") as held:
        assert quant_of(held.path) == "w8"
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE"):
        converted("deepseek-ai/DeepSeek-V2")


@pytest.mark.parametrize(
    "name",
    ["nothing", "./owner/name", "../owner/name", "/owner/name", "a/b/c", "a b/c", "", "a/", "x\0"],
)
def test_what_is_neither(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(ArtifactError, match=r"OWNER/NAME|the directory of a converted model"):
        converted(name)
    with pytest.raises(ArtifactError):
        converted(Path("owner/name"))


def test_a_killed_conversion_leaves_no_half_model(tiny: TinyModel, home: Path) -> None:
    code = """
import os, signal, sys
from deepmnn.conversion.kept import converted
converted(sys.argv[1], progress=lambda *_: os.kill(os.getpid(), signal.SIGKILL))
"""
    done = subprocess.run([sys.executable, "-c", code, str(tiny.path)], check=False)
    assert done.returncode < 0
    assert list(home.iterdir()), "it was killed while it wrote"
    assert entries() == []
    with converted(tiny.path) as held:
        assert {path.name for path in home.iterdir()} == {
            held.path.name,
            f"{held.path.name}.json",
        }


def test_two_processes_at_once_convert_once(tiny: TinyModel) -> None:
    code = """
import logging, sys
logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout)
import deepmnn
print(deepmnn.load(sys.argv[1], threads=1).path)
"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", code, str(tiny.path)]
    both = [subprocess.Popen(command, **pipes) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert len({out.splitlines()[-1] for out, _ in said}) == 1
    assert sum("converting" in out for out, _ in said) == 1
    assert len([path for path in models_directory().iterdir() if path.is_dir()]) == 1
