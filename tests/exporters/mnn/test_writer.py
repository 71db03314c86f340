"""A model beside the user's own files: NAME.mnn and what belongs to it, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("MNN")

import deepmnn
from deepmnn.conversion.convert import convert
from deepmnn.errors import ArtifactError, StorageError
from deepmnn.exporters.mnn.export import export
from deepmnn.exporters.mnn.folder import MnnFolder
from exporters.folders import in_dying_child, tree
from tiny_artifact import write_config

IDS = [5, 17, 200]
OTHERS = {
    "thesis.txt": b"mine",
    "small.txt": b"mine",
    "small": b"mine",
    "other.embeddings_bf16.bin": b"mine",
    "small.embeddings_bf16.bin.old": b"mine",
    "deepmnn/config.json": b"mine",
    "config.json": b"mine",
    "llm.mnn": b"mine",
}
"""What a user may have there already."""


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    path = tmp_path_factory.mktemp("artifacts")
    write_config(path, num_hidden_layers=1)  # no experts: quick to export
    return {
        quant: convert(path, path / quant, quant, random_weights=True).path
        for quant in ("w8", "bf16")
    }


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name, data in OTHERS.items():
        (tmp_path / "place" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "place" / name).write_bytes(data)
    return tmp_path / "place"


def made(place: Path) -> set[str]:
    """What is there beside the user's files, which are as they were."""
    files = tree(place)
    assert {name: files.get(name) for name in OTHERS} == OTHERS
    return files.keys() - OTHERS.keys()


def names(stem: str, table: str) -> set[str]:
    others = ("config.json", "llm_config.json", f"embeddings_{table}.bin", "tokenizer.mtok")
    sidecar = ("config.json", "tokenizer.json", "tokenizer_config.json")
    return {
        f"{stem}.mnn",
        f"{stem}.mnn.weight",
        f"{stem}.deepmnn.json",
        *(f"{stem}.{name}" for name in others),
        *(f"{stem}.deepmnn/{name}" for name in sidecar),
    }


@pytest.mark.parametrize("stem", ["small", "a.b", "llm-2", "*", "[ab]", "ü 世"])
def test_it_leaves_the_users_files_alone(
    artifacts: dict[str, Path], place: Path, stem: str
) -> None:
    report = export(artifacts["w8"], place, stem=stem)
    assert report.path == place / f"{stem}.mnn"
    assert made(place) == names(stem, "int8")
    assert deepmnn.load(report.path, threads=1).logits(IDS).shape == (3, 271)
    with pytest.raises(StorageError, match="overwrite=True"):
        export(artifacts["bf16"], place, stem=stem)
    export(artifacts["bf16"], place, stem=stem, overwrite=True)
    assert made(place) == names(stem, "bf16")
    assert MnnFolder.open(report.path).manifest["quant"] == "bf16"


@pytest.mark.parametrize("taken", sorted(names("small", "int8") | names("small", "bf16")))
def test_a_name_that_is_taken(artifacts: dict[str, Path], place: Path, taken: str) -> None:
    (place / taken).parent.mkdir(exist_ok=True)
    (place / taken).write_text("mine too")
    before = tree(place)
    for overwrite in (False, True):
        with pytest.raises(StorageError, match=r"small.* already exists") as error:
            export(artifacts["w8"], place, stem="small", overwrite=overwrite)
        assert error.value.hint
        assert tree(place) == before
    export(artifacts["w8"], place, stem="smaller")


def test_a_manifest_of_something_else_protects_nothing(
    artifacts: dict[str, Path], place: Path
) -> None:
    (place / "small.mnn").write_text("mine")
    (place / "small.deepmnn.json").write_text('{"format": "deepmnn"}')
    before = tree(place)
    with pytest.raises(StorageError, match="no exported model"):
        export(artifacts["w8"], place, stem="small", overwrite=True)
    assert tree(place) == before


def test_a_place_that_is_a_file(artifacts: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place in ("file", "file/deeper"):
        with pytest.raises(StorageError, match="in the way"):
            export(artifacts["w8"], tmp_path / place, stem="small")
    assert tree(tmp_path) == {"file": b"x"}


@pytest.mark.parametrize("apart", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_any_moment(artifacts: dict[str, Path], place: Path, apart: int) -> None:
    """What loads is whole, and the next export clears up."""
    path, calls, finished = place / "small.mnn", 0, False
    while not finished:
        finished = in_dying_child(lambda: export(artifacts["w8"], place, stem="small"), calls)
        if path.exists():
            MnnFolder.open(path)
        else:
            with pytest.raises(ArtifactError):
                deepmnn.load(path)
        export(artifacts["bf16"], place, stem="small", overwrite=True)
        assert made(place) == names("small", "bf16")
        for name in names("small", "bf16"):
            (place / name).unlink()
        (place / "small.deepmnn").rmdir()
        calls += apart
    assert calls > 20
    assert sorted(os.listdir(place)) == sorted({name.split("/")[0] for name in OTHERS})


@pytest.mark.slow
def test_killed_while_overwriting(artifacts: dict[str, Path], place: Path) -> None:
    """The old model, the new one, or none; a network is never beside another's weights."""
    path, calls, finished, found = place / "small.mnn", 0, False, set()
    while not finished:
        export(artifacts["bf16"], place, stem="small", overwrite=True)
        assert made(place) == names("small", "bf16")
        finished = in_dying_child(
            lambda: export(artifacts["w8"], place, stem="small", overwrite=True), calls
        )
        if path.exists():
            found.add(MnnFolder.open(path).manifest["quant"])
        else:
            found.add(None)
            with pytest.raises(ArtifactError):
                MnnFolder.open(path)
        calls += 1
    assert found == {"bf16", "w8", None}
    assert made(place) == names("small", "int8")
