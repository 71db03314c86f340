"""Folders that were damaged or made up: an ArtifactError, or a sound open; never anything else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("MNN")

import deepmnn
from deepmnn.artifact.manifest import MANIFEST, manifest_crc
from deepmnn.artifact.reader import Artifact
from deepmnn.backends.mnn.options import MnnOptions
from deepmnn.errors import ArtifactError
from deepmnn.exporters.mnn import folder as module
from deepmnn.exporters.mnn.export import export
from deepmnn.exporters.mnn.folder import FORMAT, MnnFolder, is_exported
from deepmnn.graph.workload import Workload
from exporters.folders import Json, change_json, reseal_folder, tree
from fuzz.mutations import WRONG, mutate_bytes, mutate_json
from tiny_artifact import tiny_artifact

IDS = [5, 17, 200]
FILES = (
    "config.json",
    "llm_config.json",
    "llm.mnn",
    "llm.mnn.weight",
    "embeddings_int8.bin",
    "tokenizer.mtok",
    "deepmnn/config.json",
    "deepmnn/tokenizer.json",
    "deepmnn/tokenizer_config.json",
    MANIFEST,
)
RECORDED = tuple(name for name in FILES if name != "config.json")
"""All but MNN's runtime configuration, which is the user's to change."""

ONE = deepmnn.SamplingParams(max_tokens=1, ignore_eos=True)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_artifact(tmp_path_factory.mktemp("folder"), quant="w8")


@pytest.fixture(scope="module")
def sound(artifact: Path) -> Path:
    return export(artifact, artifact.parent / "folder").path


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(sound, tmp_path / "folder"))


def refused(path: Path, match: str) -> None:
    """By both ways to open it, in one line."""
    for opened in (MnnFolder.open, deepmnn.load):
        with pytest.raises(ArtifactError, match=match) as error:
            opened(path)
        assert "\n" not in str(error.value)


def test_the_files_are_these(sound: Path) -> None:
    assert set(tree(sound)) == set(FILES)


def test_the_runtime_configuration_is_the_users(folder: Path) -> None:
    change_json(folder / "config.json", thread_num=2, temperature=0.3)
    assert deepmnn.load(folder).generate([1, 2], ONE).ids
    for bad in ("", "[]", "{"):
        (folder / "config.json").write_text(bad)
        refused(folder, "config.json")
    (folder / "config.json").unlink()
    refused(folder, "config.json")


@pytest.mark.parametrize("name", RECORDED)
def test_missing_short_or_changed_files(folder: Path, name: str) -> None:
    file = folder / name
    data = file.read_bytes()
    for bad in (b"", data[:-1], data + b"\0", data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]):
        file.write_bytes(bad)
        with pytest.raises(ArtifactError, match=name) as error:
            MnnFolder.open(folder)
        assert error.value.hint == "Export the model again." or name == MANIFEST
        with pytest.raises(ArtifactError):
            deepmnn.load(folder, "mnn")
    file.unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing"):
        MnnFolder.open(folder)
    file.mkdir()
    with pytest.raises(ArtifactError, match=name):
        MnnFolder.open(folder)


@pytest.mark.parametrize("name", RECORDED)
def test_every_damage_is_seen_beside_other_files_too(
    artifact: Path, tmp_path: Path, name: str
) -> None:
    path = export(artifact, tmp_path, stem="small").path
    assert is_exported(path)
    renamed = {"llm.mnn": "small.mnn", "llm.mnn.weight": "small.mnn.weight"}
    file = tmp_path / renamed.get(name, f"small.{name}")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)
    refused(path, "damaged|JSON|format")
    file.unlink()
    with pytest.raises(ArtifactError, match=f"{file.name} is missing"):
        MnnFolder.open(path)


def test_large_files_are_only_measured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / "llm.mnn.weight"
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    monkeypatch.setattr(module, "VERIFY_ALWAYS_BYTES", len(data) - 1)
    MnnFolder.open(folder)
    monkeypatch.setattr(module, "VERIFY_ALWAYS_BYTES", len(data))
    refused(folder, "weight is damaged")


def test_any_flipped_bit_or_cut_is_seen(folder: Path) -> None:
    rng = np.random.default_rng(3)
    MnnFolder.open(folder)
    for number in range(400):
        path = folder / RECORDED[number % len(RECORDED)]
        before = path.read_bytes()
        data = mutate_bytes(rng, before)
        path.write_bytes(data)
        try:
            MnnFolder.open(folder)
        except ArtifactError:
            pass
        else:
            same = (
                json.loads(data) == json.loads(before) if path.name == MANIFEST else data == before
            )
            assert same, path.name
        path.write_bytes(before)


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/passwd", "a/b/c", "deepmnn/../x", "./x", "a//b", "", ".", "a\\b", "a\0", "\n"],
)
def test_names_that_lead_elsewhere(folder: Path, name: str) -> None:
    (folder.parent / "x").write_bytes(b"x")
    record = {"nbytes": 1, "crc32": 0x8CDC1683}
    reseal_folder(folder, lambda fields: fields["files"].update({name: record}))
    refused(folder, "is listed as")


@pytest.mark.parametrize("name", RECORDED[:-1])
def test_a_file_that_the_manifest_forgets(folder: Path, name: str) -> None:
    """It would be read unchecked; only the tokenizer's own files may be absent."""
    reseal_folder(folder, lambda fields: fields["files"].pop(name))
    if name in ("deepmnn/tokenizer.json", "deepmnn/tokenizer_config.json"):
        MnnFolder.open(folder)
    elif name in ("embeddings_int8.bin", "tokenizer.mtok"):
        refused(folder, f"_file is '{name}'")
    else:
        refused(folder, f"does not list {name}")


FIELDS = (
    "format",
    "format_version",
    "deepmnn_version",
    "mnn_version",
    "model_type",
    "quant",
    "optimize_level",
    "mla_form",
    "vocab_size",
    "cache_width",
    "workload",
    "files",
)


@pytest.mark.parametrize("key", FIELDS)
def test_manifest_fields_of_a_wrong_type(folder: Path, key: str) -> None:
    pristine = (folder / MANIFEST).read_bytes()
    sound = json.loads(pristine)[key]
    for value in WRONG:
        if value == sound or (type(value) is type(sound) and key != "files"):
            continue
        reseal_folder(folder, lambda fields: fields.update({key: value}))  # noqa: B023
        with pytest.raises(ArtifactError, match=MANIFEST):
            MnnFolder.open(folder)
        (folder / MANIFEST).write_bytes(pristine)
    reseal_folder(folder, lambda fields: fields.pop(key))
    with pytest.raises(ArtifactError, match=MANIFEST):
        MnnFolder.open(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("vocab_size", value) for value in (0, -1, 1 << 31, 1 << 70)],
        *[("cache_width", value) for value in (-1, 1 << 31)],
        *[("format_version", value) for value in (0, 1, 2, 4, -1)],
        ("format", "deepmnn"),
        ("optimize_level", -1),
    ],
)
def test_manifest_fields_out_of_range(folder: Path, key: str, value: Any) -> None:
    reseal_folder(folder, lambda fields: fields.update({key: value}))
    with pytest.raises(ArtifactError, match=f"{MANIFEST}.*expected"):
        MnnFolder.open(folder)


def test_manifests_with_right_checksums(folder: Path) -> None:
    """Whatever it says, what opens can be asked everything."""
    rng, opened = np.random.default_rng(5), 0
    path = folder / MANIFEST
    fields = json.loads(path.read_text())
    for _ in range(1200):
        damaged = mutate_json(rng, fields)
        if isinstance(damaged, dict):
            damaged["crc32"] = manifest_crc(damaged)
        path.write_text(json.dumps(damaged))
        try:
            found = MnnFolder.open(folder)
        except ArtifactError:
            continue
        opened += 1
        assert found.vocab_size > 0
        assert found.cache_width >= 0
        assert found.weights_nbytes == (folder / "llm.mnn.weight").stat().st_size
        ask_for_costs(found)
        if opened % 40 == 0:
            deepmnn.load(folder, threads=1).kv_bytes_per_token  # noqa: B018
    assert 100 < opened < 1000


def ask_for_costs(found: MnnFolder) -> None:
    try:
        workload = found.workload
    except ArtifactError:
        return
    assert workload.decode_nbytes(2, 10.0) >= 0
    assert workload.macs(3, 10.0, 1) >= 0


def damaged_workload(folder: Path, **fields: Any) -> None:
    reseal_folder(folder, lambda manifest: manifest["workload"].update(fields))


def test_a_workload_that_is_none(folder: Path) -> None:
    pristine = (folder / MANIFEST).read_bytes()
    (layer,) = MnnFolder.open(folder).manifest["workload"]["experts"]
    bad: list[Json] = [
        {"macs": 1},
        {"dense_macs": "1"},
        {"dense_macs": -1},
        {"dense_macs": float("nan")},
        {"experts": [3]},
        {"experts": {"x": 1}},
        {"experts": [layer | {"experts": 0}]},
        {"experts": [layer | {"top_k": 7}]},
        {"experts": [layer | {"nbytes": None}]},
        {"experts": [layer | {"wanted": 1}]},
    ]
    for fields in bad:
        damaged_workload(folder, **fields)
        with pytest.raises(ArtifactError, match=r"the workload is damaged|no finite number"):
            _ = MnnFolder.open(folder).workload
        (folder / MANIFEST).write_bytes(pristine)
    assert isinstance(MnnFolder.open(folder).workload, Workload)


# ------------------------------------------------------------------ consistent, and hostile


@pytest.mark.parametrize(
    "field", ["llm_model", "llm_weight", "llm_config", "tokenizer_file", "embedding_file"]
)
@pytest.mark.parametrize("file", ["config.json", "llm_config.json"])
def test_mnn_opens_no_file_that_was_not_checked(folder: Path, file: str, field: str) -> None:
    name = json.loads((folder / "config.json").read_text())[field]
    shutil.copy(folder / name, folder.parent / "elsewhere")
    for value in ("../elsewhere", str(folder.parent / "elsewhere"), "nothing", 3, ["x"], {}):
        change_json(folder / file, **{field: value})
        reseal_folder(folder)
        refused(folder, f"{field}'? is ")


@pytest.mark.parametrize("field", ["hidden_size", "layer_nums"])
@pytest.mark.parametrize("value", [0, -1, None, "40", 40.0, True, 1 << 40])
def test_sizes_that_would_crash_mnn(folder: Path, field: str, value: Any) -> None:
    change_json(folder / "llm_config.json", **{field: value})
    reseal_folder(folder)
    refused(folder, f"{field} is")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"a": 1, "a": 2}', "\0"])
@pytest.mark.parametrize("file", ["config.json", "llm_config.json", "deepmnn/config.json"])
def test_json_that_is_none(folder: Path, file: str, text: str) -> None:
    (folder / file).write_text(text)
    reseal_folder(folder)
    refused(folder, f"{file} (is not valid JSON|holds a JSON)")


def test_a_network_that_is_none(folder: Path) -> None:
    rng, network = np.random.default_rng(6), (folder / "llm.mnn").read_bytes()
    bad = [b"", b"x", bytes(5000), rng.bytes(5000), network[:-700], network[: len(network) // 2]]
    for data in bad:
        (folder / "llm.mnn").write_bytes(data)
        reseal_folder(folder)
        refused(folder, r"llm\.mnn is damaged")


# ------------------------------------------------------------------ paths


def test_paths_that_are_no_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "other.mnn").write_text("x")
    for path in ("none", "file", "none.mnn", "other.mnn", "file/x", "file/x.mnn"):
        with pytest.raises(ArtifactError, match=r"missing"):
            MnnFolder.open(tmp_path / path)
        assert not is_exported(tmp_path / path)
    for path in ("x" * 300, "x" * 300 + ".mnn", "a\0b", "a\0b.mnn"):
        with pytest.raises(ArtifactError, match=r"cannot be read|missing"):
            MnnFolder.open(tmp_path / path)


def test_a_folder_under_another_name_or_by_a_link(folder: Path, tmp_path: Path) -> None:
    options = MnnOptions(memory="normal")
    want = deepmnn.load(folder, threads=1, mnn=options).logits(IDS)
    (tmp_path / "link").symlink_to(folder.rename(tmp_path / "ü b.mnn"))
    for name in ("link", "ü b.mnn"):
        assert is_exported(tmp_path / name)
        got = deepmnn.load(tmp_path / name, threads=1, mnn=options).logits(IDS)
        np.testing.assert_array_equal(got, want)


def test_an_unfinished_export_never_loads(folder: Path, artifact: Path, tmp_path: Path) -> None:
    from deepmnn.artifact.workspace import temp_name

    temp = folder.rename(tmp_path / temp_name("folder"))
    refused(temp, "unfinished export")
    (tmp_path / "link").symlink_to(temp)
    refused(tmp_path / "link", "unfinished export")
    export(artifact, tmp_path, stem="small")
    inside = tmp_path / temp_name("small.mnn")
    inside.mkdir()
    for file in tmp_path.glob("small.*"):
        file.rename(inside / file.name)
    refused(inside / "small.mnn", "unfinished export")


def test_it_is_no_artifact(sound: Path) -> None:
    with pytest.raises(ArtifactError, match=f"'{FORMAT}'"):
        Artifact.open(sound)
