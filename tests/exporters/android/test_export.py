"""A folder that MNN's chat app takes, with a project beside it."""

from __future__ import annotations

import os
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("MNN")

import deepmnn
from deepmnn.conversion.convert import convert
from deepmnn.errors import (
    ArtifactError,
    DeepmnnError,
    GraphError,
    MissingDependencyError,
    StorageError,
    TokenizerError,
)
from deepmnn.exporters.android.chat_app import check_folder
from deepmnn.exporters.android.export import export_android
from deepmnn.exporters.mnn import export as module
from deepmnn.exporters.mnn.export import export
from deepmnn.exporters.mnn.folder import MnnFolder
from deepmnn.exporters.targets import TARGETS
from exporters.folders import in_dying_child, tree
from tiny_artifact import write_config


def made(directory: Path, quant: str = "w8", **config: Any) -> Path:
    write_config(directory / "source", **({"num_hidden_layers": 1} | config))
    return convert(directory / "source", directory / quant, quant, random_weights=True).path


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("android"))


def filled(project: Path) -> dict[str, str]:
    text = (project / "app/src/main/res/values/model.xml").read_text()
    return dict(re.findall(r'name="(\w+)"[^>]*>([^<]*)<', text))


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("phone", "phone"),
        ("DeepSeek-R1-Distill-Qwen-1.5B", "R1-Distill-Qwen-1.5B"),
        ("my model", "my-model"),
        ("project", "model"),
        ("世", "model"),
        ("x.mnn", "x.mnn"),
    ],
)
def test_the_layout(artifact: Path, tmp_path: Path, name: str, folder: str) -> None:
    report = export_android(artifact, tmp_path / name)
    place = tmp_path / name
    assert report.path == place / folder
    assert sorted(os.listdir(place)) == sorted([folder, "project"])
    check_folder(report.path)
    assert filled(place / "project") == {"model_folder": folder, "context_tokens": "192"}
    export(artifact, tmp_path / "plain")
    assert tree(report.path) == tree(tmp_path / "plain")
    assert deepmnn.load(report.path, threads=1).logits([1, 2]).shape == (2, 271)
    assert TARGETS["android"].export is export_android


def test_a_chat_is_no_longer_than_a_phone_affords(tmp_path: Path) -> None:
    path = made(tmp_path, max_position_embeddings=163840)
    export_android(path, tmp_path / "phone")
    assert filled(tmp_path / "phone" / "project")["context_tokens"] == "4096"


def test_overwriting_replaces_folder_and_project(artifact: Path, tmp_path: Path) -> None:
    place, other = tmp_path / "phone", made(tmp_path / "other", "bf16")
    export_android(artifact, place)
    with pytest.raises(StorageError, match="overwrite=True"):
        export_android(other, place)
    calls: list[tuple[int, int, str]] = []
    export_android(other, place, overwrite=True, progress=lambda *call: calls.append(call))
    assert MnnFolder.open(place / "phone").manifest["quant"] == "bf16"
    assert filled(place / "project")["model_folder"] == "phone"
    assert all(a[0] < b[0] for a, b in pairwise(calls))
    assert calls[-1][0] == calls[-1][1]


def test_a_project_that_has_been_worked_on_stays(artifact: Path, tmp_path: Path) -> None:
    """Built, edited or added to: nothing is exported, and nothing is lost."""
    export_android(artifact, tmp_path / "phone")
    project, pristine = tmp_path / "phone" / "project", tree(tmp_path)
    for name in ("notes.txt", "app/build/out.apk", "local.properties", "app/build.gradle"):
        path = project / name
        before = path.read_bytes() if path.exists() else None
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
        here = tree(tmp_path)
        with pytest.raises(StorageError, match=path.name if before else "is in the way"):
            export_android(artifact, tmp_path / "phone", overwrite=True)
        assert tree(tmp_path) == here
        path.unlink() if before is None else path.write_bytes(before)
        if name == "app/build/out.apk":
            path.parent.rmdir()
    export_android(artifact, tmp_path / "phone", overwrite=True)
    assert tree(tmp_path) == pristine


def test_places_that_are_taken(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    export(artifact, tmp_path / "folder")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model").symlink_to(artifact)
    before = tree(tmp_path)
    for name in ("mine", "file", "folder", "model", "file/x"):
        for overwrite in (False, True):
            with pytest.raises(StorageError) as error:
                export_android(artifact, tmp_path / name, overwrite=overwrite)
            assert error.value.hint
    assert tree(tmp_path) == before
    (tmp_path / "empty").mkdir()
    check_folder(export_android(artifact, tmp_path / "empty").path)


def fail(kind: type[DeepmnnError]) -> Any:
    def convert_tool(args: list[str]) -> None:
        raise kind("something", "something else", "Do this.")

    return convert_tool


@pytest.mark.parametrize("kind", [GraphError, StorageError, MissingDependencyError])
def test_a_failure_keeps_what_was_there(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[DeepmnnError]
) -> None:
    export_android(artifact, tmp_path / "phone")
    before = tree(tmp_path)
    monkeypatch.setattr(module, "convert_tool", fail(kind))
    for name in ("phone", "new"):
        with pytest.raises(kind):
            export_android(artifact, tmp_path / name, overwrite=True)
    assert tree(tmp_path) == before
    monkeypatch.undo()
    export_android(artifact, tmp_path / "new")


def test_a_phone_needs_a_tokenizer(tmp_path: Path) -> None:
    path = made(tmp_path, tokenizer=False)
    with pytest.raises(TokenizerError, match="a phone needs"):
        export_android(path, tmp_path / "phone")
    assert not (tmp_path / "phone").exists()
    with pytest.raises(ArtifactError):
        export_android(tmp_path / "source", tmp_path / "phone")
    assert not (tmp_path / "phone").exists()


@pytest.mark.slow
def test_killed_at_every_moment(artifact: Path, tmp_path: Path) -> None:
    """A folder is whole or not there, and the next export needs no help."""
    place, calls, finished = tmp_path / "phone", 0, False
    while not finished:
        finished = in_dying_child(lambda: export_android(artifact, place), calls)
        if (place / "phone").exists():
            check_folder(MnnFolder.open(place / "phone").path)
        export_android(artifact, place, overwrite=True)
        assert {"phone", "project"} <= set(os.listdir(place))
        for entry in tree(place):
            (place / entry).unlink()
        for directory in sorted((d for d in place.rglob("*") if d.is_dir()), reverse=True):
            directory.rmdir()
        calls += 7
    assert calls > 35
