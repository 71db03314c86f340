"""An export as a whole: what is written, what is refused, and what is left when it fails."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("MNN")

import deepmnn
from deepmnn.artifact import directory as directory_writer
from deepmnn.artifact.manifest import TEMP_MARK
from deepmnn.artifact.reader import Artifact
from deepmnn.backends.mnn import wheel
from deepmnn.backends.mnn.options import MnnOptions
from deepmnn.conversion.convert import convert
from deepmnn.errors import (
    ArtifactError,
    DeepmnnError,
    GraphError,
    MissingDependencyError,
    RequestError,
    StorageError,
    UnsupportedModelError,
)
from deepmnn.exporters.mnn import export as module
from deepmnn.exporters.mnn.export import export
from deepmnn.exporters.mnn.folder import MnnFolder
from deepmnn.exporters.mnn.names import Names
from exporters.folders import in_dying_child, tree
from mnn_numbers import Given
from parity import relative_error
from tiny_artifact import tiny_artifact, write_config
from tiny_models import LLAMA, tiny_checkpoint

IDS = [5, 17, 200, 33, 9]
EXACT = MnnOptions(memory="normal")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_artifact(tmp_path_factory.mktemp("artifact"), quant="w8")


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_artifact(tmp_path_factory.mktemp("floats"), quant="fp32")


def llama(directory: Path, level: int = 3, quant: str = "w8", **fields: Any) -> Path:
    """A model without latent attention or experts: the quickest to export."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {"model_type": "llama", "tie_word_embeddings": False, **LLAMA, **fields}
    (directory / "config.json").write_text(json.dumps(config))
    return convert(directory, directory / "model", quant, level, random_weights=True).path


def refused(kind: type[DeepmnnError], match: str, *arguments: Any, **options: Any) -> None:
    """The export raises it, and says what was expected or what to do."""
    with pytest.raises(kind, match=match) as error:
        export(*arguments, **options)
    assert error.value.expected or error.value.hint


# ------------------------------------------------------------------ what is written


def test_a_folder_has_every_file_and_its_report(artifact: Path, tmp_path: Path) -> None:
    report = export(artifact, tmp_path / "new" / "folder")
    assert report.path == tmp_path / "new" / "folder"
    assert os.listdir(tmp_path / "new") == ["folder"]
    files = tree(report.path)
    sidecar = {"config.json", "tokenizer.json", "tokenizer_config.json"}
    own = {"llm.mnn", "llm.mnn.weight", "embeddings_int8.bin", "tokenizer.mtok", "deepmnn.json"}
    assert files.keys() == own | {"config.json", "llm_config.json"} | {
        f"deepmnn/{name}" for name in sidecar
    }
    for name in sidecar:
        assert files[f"deepmnn/{name}"] == (artifact / name).read_bytes()
    folder = MnnFolder.open(report.path)
    assert folder.manifest["files"].keys() == files.keys() - {"deepmnn.json", "config.json"}
    weights = len(files["llm.mnn.weight"])
    assert report.nbytes == weights + len(files["embeddings_int8.bin"])
    assert (report.mla_form, report.note) == (folder.manifest["mla_form"], "") == ("expanded", "")
    assert folder.weights_nbytes == weights
    assert (folder.vocab_size, folder.cache_width) == (271, 2 * 2 * 3 * 16)
    assert folder.workload.experts[0].experts == 6


@pytest.mark.parametrize("form", ["expanded", "absorbed"])
def test_both_forms_of_latent_attention_run(artifact: Path, tmp_path: Path, form: str) -> None:
    report = export(artifact, tmp_path / form, mla_form=form)
    assert report.mla_form == form
    model = deepmnn.load(report.path, threads=1, mnn=EXACT)
    want = Given(artifact).logits(IDS)
    assert relative_error(model.logits(IDS), want) < 1e-5
    width = {"expanded": 2 * 3 * 16, "absorbed": 2 * (18 + 6)}[form]
    assert model.kv_bytes_per_token == 4 * 2 * width


def test_half_floats_take_half_the_room(floats: Path, tmp_path: Path) -> None:
    whole, same = export(floats, tmp_path / "1"), export(floats, tmp_path / "2", float_dtype="f32")
    half = export(floats, tmp_path / "3", float_dtype="fp16")
    sizes = [MnnFolder.open(report.path).weights_nbytes for report in (whole, same, half)]
    assert sizes[0] == sizes[1]
    assert 0.5 <= sizes[2] / sizes[0] < 0.62, "rotary tables, norms and biases stay float32"
    want = deepmnn.load(floats, "reference").logits(IDS)
    errors = [
        relative_error(deepmnn.load(report.path, threads=1, mnn=EXACT).logits(IDS), want)
        for report in (whole, half)
    ]
    assert errors[0] < 2e-3, "the table is fp16"
    assert errors[0] < errors[1] < 4e-3


def test_a_directory_named_like_a_network(artifact: Path, tmp_path: Path) -> None:
    path = export(artifact, tmp_path / "small.mnn").path
    assert deepmnn.load(path, threads=1).logits(IDS).shape == (5, 271)


def test_progress_grows_and_ends_once(artifact: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    export(artifact, tmp_path / "f", progress=lambda *call: calls.append(call))
    done = [call[0] for call in calls]
    assert all(a < b for a, b in pairwise(done))
    total = Artifact.open(artifact).weights_nbytes
    assert {call[1] for call in calls} == {total}
    assert done[-1] == total
    names = [call[2] for call in calls[:-1]]
    assert len(set(names)) == len(names) > 10
    assert set(names) <= Artifact.open(artifact).graph().weights.keys()


# ------------------------------------------------------------------ what is refused


def test_impossible_arguments(artifact: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused(RequestError, "float_dtype is 'f64'.*fp16", artifact, out, float_dtype="f64")
    refused(RequestError, "mla_form is 'x'.*absorbed", artifact, out, mla_form="x")
    for stem in ("", "..", "../x", "a/b", "/x"):
        refused(RequestError, "the model's name", artifact, out, stem=stem)
    assert os.listdir(tmp_path) == []


def test_sources_that_are_no_artifact(artifact: Path, tmp_path: Path) -> None:
    write_config(tmp_path / "checkpoint")
    (tmp_path / "file").write_text("x")
    folder = export(artifact, tmp_path / "folder").path
    before = sorted(os.listdir(tmp_path))
    for source, match in [
        (tmp_path / "none", "missing.*deepmnn.convert"),
        (tmp_path / "file", "is a file"),
        (tmp_path / "checkpoint", "deepmnn.json is missing"),
        (folder, "'deepmnn-mnn'"),
    ]:
        refused(ArtifactError, match, source, tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("level", [0, 1, 2])
def test_absorbed_below_level_3(tmp_path: Path, level: int) -> None:
    write_config(tmp_path / "source")
    path = convert(tmp_path / "source", tmp_path / "m", "w8", level, random_weights=True).path
    out = tmp_path / "out"
    refused(RequestError, "optimize level 3.*optimize_level=3", path, out, mla_form="absorbed")
    assert not out.exists()
    assert export(path, out).mla_form == "expanded"


def test_a_model_without_latent_attention_has_no_form(tmp_path: Path) -> None:
    path = llama(tmp_path)
    assert export(path, tmp_path / "f", mla_form="absorbed").mla_form == ""


def test_an_op_that_mnn_lacks(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepmnn.exporters.mnn import rules

    kept = {op: rule for op, rule in rules.RULES.items() if op != "mla_attention"}
    monkeypatch.setattr(rules, "RULES", kept)
    refused(UnsupportedModelError, "mla_attention, which MNN", artifact, tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_targets_that_are_taken(artifact: Path, floats: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    converted = convert(artifact.parent / "source", tmp_path / "converted", random_weights=True)
    folder = export(floats, tmp_path / "folder").path
    before = tree(tmp_path)
    for overwrite in (False, True):
        for name in ("mine", "file"):
            refused(StorageError, "exists", artifact, tmp_path / name, overwrite=overwrite)
        refused(StorageError, "converted", artifact, converted.path, overwrite=overwrite)
        refused(StorageError, "file/m", artifact, tmp_path / "file" / "m", overwrite=overwrite)
    refused(StorageError, "overwrite=True", artifact, folder)
    assert tree(tmp_path) == before
    with pytest.raises(StorageError, match="format 'deepmnn-mnn'"):
        convert(artifact.parent / "source", folder, random_weights=True, overwrite=True)
    assert tree(tmp_path) == before


def test_an_artifact_is_not_replaced_by_its_own_export(artifact: Path) -> None:
    before = tree(artifact)
    refused(StorageError, "the source .* is ", artifact, artifact, overwrite=True)
    assert tree(artifact) == before


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": null}'])
def test_an_export_with_a_damaged_manifest_stays(artifact: Path, tmp_path: Path, text: str) -> None:
    """Nothing tells whose the files are."""
    folder = export(artifact, tmp_path / "folder").path
    (folder / "deepmnn.json").write_text(text)
    before = tree(folder)
    refused(StorageError, "damaged|JSON", artifact, folder, overwrite=True)
    assert tree(folder) == before


@pytest.mark.parametrize("stem", [None, "name"])
def test_a_changed_configuration_or_another_file_stays(
    artifact: Path, tmp_path: Path, stem: str | None
) -> None:
    place = tmp_path / "place"
    export(artifact, place, stem=stem)
    names = Names(stem)
    pristine = tree(place)
    for name in (names.of("config.json"), f"{names.sidecar}/tokenizer.json"):
        data = (place / name).read_bytes()
        (place / name).write_bytes(data.replace(b"4", b"2", 1))
        before = tree(place)
        refused(
            StorageError, f"{name} has been changed", artifact, place, stem=stem, overwrite=True
        )
        assert tree(place) == before
        (place / name).write_bytes(data)
    (place / names.sidecar / "notes.txt").write_text("mine")
    refused(StorageError, "notes.txt is in the way", artifact, place, stem=stem, overwrite=True)
    (place / names.sidecar / "notes.txt").unlink()
    export(artifact, place, stem=stem, overwrite=True)
    assert tree(place) == pristine


def test_a_mount_point(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "volume").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "volume")
    refused(StorageError, "inside it.*volume/model", artifact, tmp_path / "volume")
    MnnFolder.open(export(artifact, tmp_path / "volume" / "model").path)


def test_without_the_wheel(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheel, "version", lambda _: "2.0")
    refused(MissingDependencyError, "mnn 2.0.*pip install", artifact, tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_too_little_space(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = directory_writer.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(directory_writer.shutil, "disk_usage", lambda path: free)
    refused(StorageError, "1,000 bytes free.*Free some space", artifact, tmp_path / "out")
    assert os.listdir(tmp_path) == []


# ------------------------------------------------------------------ failures midway


class Failing:
    """Lets a number of calls of Sink.write through, then fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fault: BaseException) -> None:
        self.fault, self.left, self.calls = fault, 1 << 30, 0
        write = directory_writer.Sink.write

        def counted(sink: directory_writer.Sink, data: bytes | memoryview) -> None:
            self.calls += 1
            if self.calls > self.left:
                with directory_writer.storage_errors(sink._path):
                    raise self.fault
            write(sink, data)

        monkeypatch.setattr(directory_writer.Sink, "write", counted)

    def points(self) -> Iterator[int]:
        """Numbers of calls to let through, from what has been counted."""
        total, self.calls = self.calls, 0
        points = np.unique(np.linspace(0, total - 1, 12).astype(int))
        for self.left in [*points.tolist(), *range(total - 8, total)]:
            yield self.left
            assert self.calls > self.left, "it never failed"
            self.calls = 0


@pytest.mark.parametrize(
    ("fault", "raised"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), StorageError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_failing_write_leaves_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: BaseException,
    raised: type[BaseException],
) -> None:
    """Wherever the disk is full or Ctrl-C is pressed; and an older export stays."""
    path, work = llama(tmp_path / "source"), tmp_path / "work"
    work.mkdir()
    failing = Failing(monkeypatch, fault)
    export(path, work / "old")
    before, points = tree(work), 0
    for points, _ in enumerate(failing.points(), 1):  # noqa: B007
        for options in ({}, {"stem": "name"}):
            failing.calls = 0
            with pytest.raises(raised) as error:
                export(path, work if options else work / "new", **options)
            if raised is StorageError:
                assert re.search("No space left.*Free some space", str(error.value))
        failing.calls = 0
        with pytest.raises(raised):
            export(path, work / "old", overwrite=True, float_dtype="fp16")
        assert tree(work) == before
        assert os.listdir(work) == ["old"]
    assert points > 15
    MnnFolder.open(work / "old")


@pytest.mark.parametrize("stem", [None, "name"])
@pytest.mark.parametrize(
    "fault", [GraphError("no model"), StorageError("full"), KeyboardInterrupt()]
)
def test_a_failing_converter_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException, stem: str | None
) -> None:
    path, work = llama(tmp_path / "source"), tmp_path / "work"
    work.mkdir()

    def convert_tool(args: list[str]) -> None:
        assert Path(args[args.index("--modelFile") + 1]).is_file()
        Path(args[args.index("--MNNModel") + 1]).write_bytes(b"half a mod")
        raise fault

    monkeypatch.setattr(module, "convert_tool", convert_tool)
    with pytest.raises(type(fault)):
        export(path, work if stem else work / "out", stem=stem)
    assert os.listdir(work) == []


def assert_nothing_loads(directory: Path) -> None:
    for entry in directory.iterdir():
        assert TEMP_MARK in entry.name
        with pytest.raises(ArtifactError):
            MnnFolder.open(entry)
        for inner in entry.glob("*.mnn"):
            with pytest.raises(ArtifactError):
                MnnFolder.open(inner)
        with pytest.raises(ArtifactError):
            deepmnn.load(entry)


def test_killed_at_every_moment(tmp_path: Path) -> None:
    """Before each call that changes the disk: nothing that loads is left, unless all is there."""
    path, work = llama(tmp_path / "source"), tmp_path / "work"
    work.mkdir()
    whole = tree(export(path, tmp_path / "whole").path)
    calls, finished = 0, False
    while not finished:
        finished = in_dying_child(lambda: export(path, work / "out"), calls)
        if (work / "out").exists():
            assert tree(work / "out") == whole
            MnnFolder.open(work / "out")
            directory_writer.shutil.rmtree(work / "out")
        else:
            assert not finished
            assert_nothing_loads(work)
        calls += 1
    assert calls > 20
    export(path, work / "out")
    assert os.listdir(work) == ["out"]


@pytest.mark.slow
def test_killed_while_overwriting(tmp_path: Path) -> None:
    """The old folder loads until the new one does; its other embedding file is gone then."""
    old, new = llama(tmp_path / "a", quant="bf16"), llama(tmp_path / "b", quant="w8")
    work = tmp_path / "work"
    names = {
        quant: set(tree(export(path, work / quant).path))
        for quant, path in (("bf16", old), ("w8", new))
    }
    assert names["bf16"] ^ names["w8"] == {"embeddings_bf16.bin", "embeddings_int8.bin"}
    export(old, work / "out")
    calls, finished = 0, False
    while not finished:
        replace: Callable[[], object] = lambda: export(new, work / "out", overwrite=True)  # noqa: E731
        finished = in_dying_child(replace, calls)
        quant = MnnFolder.open(work / "out").manifest["quant"]
        assert set(tree(work / "out")) == names[quant]
        calls += 1
    assert quant == "w8"
    assert calls > 20
    export(new, work / "out", overwrite=True)
    assert sorted(os.listdir(work)) == ["bf16", "out", "w8"]


@pytest.mark.parametrize("level", [0, 2, 3])
def test_attention_to_chosen_keys_is_refused(tmp_path: Path, level: int) -> None:
    tiny_checkpoint("deepseek_v32", 0, tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "model", "fp32", level)
    with pytest.raises(UnsupportedModelError, match="keys that an indexer chooses"):
        export(tmp_path / "model", tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
