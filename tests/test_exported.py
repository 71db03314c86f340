from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import deepmnn
from deepmnn import SamplingParams
from deepmnn.artifact import reader
from deepmnn.artifact.reader import Artifact
from deepmnn.backends.mnn.backend import MnnBackend
from deepmnn.backends.mnn.options import MnnOptions
from deepmnn.errors import ArtifactError, MissingDependencyError, RequestError, StorageError
from deepmnn.exporters.mnn.cached import exported_model
from deepmnn.exporters.mnn.export import export
from deepmnn.exporters.mnn.folder import MnnFolder
from mnn_numbers import Given
from parity import relative_error
from tiny_artifact import tiny_artifact

IDS = [5, 17, 200, 33, 33, 9]
EXACT = MnnOptions(memory="normal")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_artifact(tmp_path_factory.mktemp("exported"), quant="w8")


@pytest.fixture(scope="module")
def folder(artifact: Path) -> Path:
    return export(artifact, artifact.parent / "folder").path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "deepmnn" / "models"


def test_an_artifact_is_exported_once(artifact: Path, cache: Path) -> None:
    reported: list[tuple[int, int, str]] = []
    progress = lambda *report: reported.append(report)  # noqa: E731
    first = deepmnn.load(artifact, "mnn", mnn=EXACT, progress=progress)
    (made,) = (path for path in cache.iterdir() if path.is_dir())
    assert 0 < reported[0][0] < reported[-1][0] <= reported[-1][1]
    stamp, reported[:] = made.stat().st_mtime_ns, []
    second = deepmnn.load(artifact, "mnn", mnn=EXACT, progress=progress)
    assert reported == []
    assert [path for path in cache.iterdir() if path.is_dir()] == [made]
    assert stamp == made.stat().st_mtime_ns
    want = Given(artifact).logits(IDS)
    for model in (first, second):
        assert relative_error(model.logits(IDS), want) < 1e-5


def test_a_damaged_export_is_made_again(artifact: Path, cache: Path) -> None:
    opened = Artifact.open(artifact)
    made = exported_model(opened).path
    network = made / "llm.mnn"
    sound = network.read_bytes()
    network.write_bytes(sound[:-9])
    with pytest.raises(ArtifactError):
        MnnFolder.open(made)
    assert exported_model(opened).path == made
    assert network.read_bytes() == sound


def test_another_model_is_exported_elsewhere(artifact: Path, cache: Path, tmp_path: Path) -> None:
    other = tiny_artifact(tmp_path / "other", quant="w4")
    first, second = (exported_model(Artifact.open(path)) for path in (artifact, other))
    assert first.path != second.path
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 2


def test_the_same_checksums_do_not_make_the_same_model(
    artifact: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever writes a model writes its checksums: only its bytes say what it is."""
    monkeypatch.setattr(reader, "VERIFY_ALWAYS_BYTES", 0)  # as if its checksums were forged
    opened = Artifact.open(artifact)
    forged = tmp_path / "forged"
    shutil.copytree(artifact, forged)
    (shard,) = (forged / record["file"] for record in opened.manifest["shards"])
    data, weight = bytearray(shard.read_bytes()), Artifact.open(forged).graph().weights.popitem()[1]
    data[-weight.nbytes :] = bytes(weight.nbytes)
    shard.write_bytes(data)
    copy = Artifact.open(forged)
    assert copy.manifest == opened.manifest
    assert exported_model(copy).path != exported_model(opened).path


def test_a_model_that_is_changed_in_place_is_exported_again(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "VERIFY_ALWAYS_BYTES", 0)
    path = tiny_artifact(tmp_path / "own", quant="w8")
    opened = Artifact.open(path)
    first = exported_model(opened).path
    (shard,) = (path / record["file"] for record in opened.manifest["shards"])
    data, times = bytearray(shard.read_bytes()), shard.stat()
    data[-1] ^= 1
    shard.write_bytes(data)
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert exported_model(Artifact.open(path)).path != first


def test_a_copy_shares_the_export(artifact: Path, cache: Path, tmp_path: Path) -> None:
    first = exported_model(Artifact.open(artifact)).path
    shutil.copytree(artifact, tmp_path / "copy")
    assert exported_model(Artifact.open(tmp_path / "copy")).path == first


def test_a_model_that_changes_while_it_is_exported_leaves_nothing(
    cache: Path, tmp_path: Path
) -> None:
    path = tiny_artifact(tmp_path / "own", quant="w8")
    touch = lambda *_: os.utime(path / "config.json")  # noqa: E731
    with pytest.raises(ArtifactError, match="changed meanwhile"):
        exported_model(Artifact.open(path), touch)
    assert not [entry for entry in cache.iterdir() if entry.is_dir()]


def test_a_cache_that_cannot_be_written(artifact: Path, cache: Path) -> None:
    cache.parent.write_text("in the way")
    with pytest.raises(StorageError, match="XDG_CACHE_HOME"):
        deepmnn.load(artifact, "mnn")
    assert os.listdir(cache.parents[1]) == ["deepmnn"]


def test_a_folder_needs_no_more_than_its_path(folder: Path, artifact: Path) -> None:
    model, source = deepmnn.load(folder), deepmnn.load(artifact)
    assert isinstance(model.backend, MnnBackend)
    assert (model.vocab_size, model.context_length) == (source.vocab_size, source.context_length)
    assert model.generation_config == source.generation_config
    assert model.encode([{"role": "user", "content": "Hi"}]) == source.encode(
        [{"role": "user", "content": "Hi"}]
    )
    # Two layers of keys and values, of three heads of 16.
    assert model.kv_bytes_per_token == 4 * 2 * 2 * 3 * 16
    answer = model.generate("Hello", SamplingParams(max_tokens=4, ignore_eos=True))
    assert answer.text == model.tokenizer.decode(answer.ids)


def test_a_model_file_among_others(artifact: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    path = export(artifact, tmp_path, stem="small").path
    assert path.name == "small.mnn"
    same, model = (deepmnn.load(place, mnn=EXACT) for place in (folder, path))
    assert (model.logits(IDS) == same.logits(IDS)).all()
    assert model.encode("Hello") == same.encode("Hello")


def test_impossible_combinations(folder: Path, artifact: Path) -> None:
    for backend in ("cpu", "reference"):
        with pytest.raises(RequestError, match=r"folder for MNN.*'mnn'"):
            deepmnn.load(folder, backend)
        with pytest.raises(RequestError, match="memory, precision or mmap"):
            deepmnn.load(artifact, backend, mnn=EXACT)
    with pytest.raises(RequestError, match="memory, precision or mmap"):
        deepmnn.load(artifact, mnn=EXACT)
    for kv_dtype in ("bf16", "int8"):
        with pytest.raises(RequestError, match="kv_dtype"):
            deepmnn.load(folder, kv_dtype=kv_dtype)
    with pytest.raises(RequestError, match="threads"):
        deepmnn.load(folder, threads=0)


def test_without_the_wheel(
    folder: Path, artifact: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepmnn.backends.mnn import wheel

    monkeypatch.setattr(wheel, "version", lambda _: "2.0")
    for path in (folder, artifact):
        with pytest.raises(MissingDependencyError, match="pip install"):
            deepmnn.load(path, "mnn")
    assert not list(cache.rglob("llm*"))
    assert deepmnn.load(artifact, "cpu").logits(IDS).shape == (6, 271)
