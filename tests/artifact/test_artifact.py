"""The model directory: what is written is read back, what is damaged is refused."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from deepmnn.artifact import directory as directory_writer
from deepmnn.artifact import reader as artifact_module
from deepmnn.artifact.manifest import MANIFEST, file_crc, manifest_crc
from deepmnn.artifact.reader import Artifact
from deepmnn.artifact.shards import locate, plan_shards
from deepmnn.artifact.writer import ArtifactWriter
from deepmnn.errors import ArtifactError, StorageError
from deepmnn.formats import ALIGNMENT
from deepmnn.graph.builder import GraphBuilder
from deepmnn.graph.ir import Graph
from deepmnn.graph.serialize import to_json
from deepmnn.quant.recipe import RECIPES, apply
from deepmnn.quant.store import store, stored_values

DESCRIPTION: dict[str, Any] = {
    "model_type": "llama",
    "quant": "w8",
    "recipe": RECIPES["w8"].to_json(),
    "optimize_level": 0,
    "nodes_level_0": 2,
    "nodes": 2,
    "passes": [{"name": "p", "rewrites": 1, "nodes_before": 3, "nodes_after": 2}],
}


def small_graph() -> Graph:
    b = GraphBuilder("small")
    x = b.embedding(b.ids, "embed", 37, 20)
    for layer in range(3):
        x = b.linear(x, f"layers.{layer}.proj", 20, bias=True)
    b.graph.outputs = [b.linear(x, "lm_head", 37, role="lm_head")]
    apply(b.graph, RECIPES["w8"])
    return b.graph


GRAPH = small_graph()
VALUES = {
    name: np.random.default_rng(i).standard_normal(w.shape, np.float32)
    for i, (name, w) in enumerate(GRAPH.weights.items())
}
PACKED = {name: store(w, VALUES[name]) for name, w in GRAPH.weights.items()}
SIZES = [(w.name, w.nbytes) for w in GRAPH.weights.values()]


def write(path: Path, overwrite: bool = False, max_shard_bytes: int = 1 << 30) -> Path:
    with ArtifactWriter(path, overwrite) as writer:
        fill(writer, max_shard_bytes)
        writer.commit(DESCRIPTION)
    return path


def fill(writer: ArtifactWriter, max_shard_bytes: int = 1 << 30) -> None:
    writer.expect(plan_shards(SIZES, max_shard_bytes))
    writer.add_file("config.json", b'{"model_type": "llama"}')
    writer.add_file("graph.json", to_json(GRAPH).encode())
    writer.add_file("program.bin", b"program")
    for name, packed in PACKED.items():
        writer.write_weight(name, packed)


def reseal(path: Path, change: Callable[[dict[str, Any]], None] = lambda fields: None) -> None:
    """Recomputes every checksum and size, then changes the manifest, then its own checksum."""
    fields = json.loads((path / MANIFEST).read_text())
    records = [(name, record) for name, record in fields["files"].items()]
    records += [(record["file"], record) for record in fields["shards"]]
    for name, record in records:
        record["nbytes"] = (path / name).stat().st_size
        record["crc32"] = file_crc(path / name)
    change(fields)
    fields["crc32"] = manifest_crc(fields)
    (path / MANIFEST).write_text(json.dumps(fields))


@pytest.mark.parametrize("max_shard_bytes", [1 << 30, 3000, 1])
def test_round_trip(tmp_path: Path, max_shard_bytes: int) -> None:
    path = write(tmp_path / "new" / "model", max_shard_bytes=max_shard_bytes)
    artifact = Artifact.open(path)
    assert artifact.config == {"model_type": "llama"}
    assert {key: artifact.manifest[key] for key in DESCRIPTION} == DESCRIPTION  # type: ignore[literal-required]
    assert os.listdir(tmp_path / "new") == ["model"]
    graph = artifact.graph()
    assert [node.op for node in graph.nodes] == [node.op for node in GRAPH.nodes]
    for name, weight in graph.weights.items():
        stored = artifact.tensor(name)
        np.testing.assert_array_equal(stored, PACKED[name])
        error = np.abs(stored_values(weight, stored) - VALUES[name]).max()
        assert error <= (0 if weight.format == "vector" else 0.03)
    with pytest.raises(ArtifactError, match="'nobody'"):
        artifact.tensor("nobody")


@pytest.mark.parametrize("max_shard_bytes", [1 << 30, 3000])
def test_shards_are_plain_safetensors_files(tmp_path: Path, max_shard_bytes: int) -> None:
    """The safetensors library reads them; every weight starts at a multiple of 64."""
    path = write(tmp_path / "m", max_shard_bytes=max_shard_bytes)
    files = sorted(path.glob("*.safetensors"))
    assert [f.name for f in files] == [
        record["file"] for record in Artifact.open(path).manifest["shards"]
    ]
    found = {name: array for file in files for name, array in load_file(file).items()}
    assert set(found) == set(PACKED)
    for file in files:
        data = file.read_bytes()
        for name in load_file(file):
            np.testing.assert_array_equal(found[name], PACKED[name])
            assert data.index(PACKED[name].tobytes()) % ALIGNMENT == 0


def test_locations_are_where_the_bytes_are(tmp_path: Path) -> None:
    with ArtifactWriter(tmp_path / "m") as writer:
        shards = plan_shards(SIZES, 3000)
        writer.expect(shards)
        for name in ("config.json", "graph.json", "program.bin"):
            writer.add_file(name, b"{}")
        for name, packed in PACKED.items():
            writer.write_weight(name, packed)
        writer.commit(DESCRIPTION)
    locations = locate(shards)
    assert len(shards) > 1
    assert list(locations) == list(PACKED)
    for name, (at,) in locations.items():
        data = (tmp_path / "m" / shards[at.shard].file).read_bytes()
        assert data[at.offset : at.offset + at.nbytes] == PACKED[name].tobytes()


def test_shards_end_at_layers() -> None:
    weights = [("embed", 10)]
    weights += [(f"model.layers.{i}.{p}.weight", 10) for i in range(12) for p in "abc"]
    weights += [("lm_head", 10)]
    shards = plan_shards(weights, 70)
    assert [item for shard in shards for item in shard.weights] == weights
    assert [sum(n for _, n in shard.weights) for shard in shards] == [70, 60, 60, 60, 60, 70]
    assert shards[1].weights[0][0] == "model.layers.2.a.weight"
    assert shards[0].file == "model-00001-of-00006.safetensors"
    assert [len(s.weights) for s in plan_shards(weights[1:4], 25)] == [2, 1]
    assert [len(s.weights) for s in plan_shards(weights[1:4], 1)] == [1, 1, 1]
    assert plan_shards([], 1) == []


def test_writing_out_of_order_is_refused(tmp_path: Path) -> None:
    name, packed = list(PACKED.items())[1]
    with ArtifactWriter(tmp_path / "m") as writer:
        writer.expect(plan_shards(SIZES))
        with pytest.raises(ArtifactError, match="is next"):
            writer.write_weight(name, packed)
        with pytest.raises(ArtifactError, match="not written"):
            writer.commit(DESCRIPTION)
    assert os.listdir(tmp_path) == []


def test_no_permission(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot be written"):
        write(tmp_path / "file" / "m")


def test_too_little_space_is_known_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = directory_writer.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(directory_writer.shutil, "disk_usage", lambda path: free)
    with pytest.raises(StorageError, match=r"1,000 bytes free"):
        write(tmp_path / "m")
    assert os.listdir(tmp_path) == []


FILES = ("config.json", "graph.json", "program.bin", MANIFEST, "model-00001-of-00001.safetensors")


@pytest.mark.parametrize("name", FILES)
def test_missing_short_or_changed_files(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "m")
    file = path / name
    data = file.read_bytes()
    for bad in (b"", data[:-1], data + b"\0", data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]):
        file.write_bytes(bad)
        with pytest.raises(ArtifactError, match=name):
            Artifact.open(path)
    file.unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing"):
        Artifact.open(path)
    for make, what in ((os.mkdir, "a directory|not a file"), (os.mkfifo, "a FIFO")):
        make(file)
        with pytest.raises(ArtifactError, match=f"{name} is ({what})"):
            Artifact.open(path)
        file.rmdir() if file.is_dir() else file.unlink()


def test_weights_are_verified_when_small_or_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "m")
    shard = path / FILES[-1]
    data = bytearray(shard.read_bytes())
    data[-100] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ArtifactError, match="damaged"):
        Artifact.open(path)
    Artifact.open(path, verify=False)
    monkeypatch.setattr(artifact_module, "VERIFY_ALWAYS_BYTES", 100)
    Artifact.open(path)
    with pytest.raises(ArtifactError, match="damaged"):
        Artifact.open(path, verify=True)


@pytest.mark.parametrize("version", [0, 1, 2, 3, 4, 5, 6, 8, "7", None, [], 5.5])
def test_other_versions(tmp_path: Path, version: Any) -> None:
    path = write(tmp_path / "m")
    reseal(path, lambda fields: fields.update(format_version=version))
    with pytest.raises(
        ArtifactError, match=r"version.*expected deepmnn version 7\. Convert the model"
    ):
        Artifact.open(path)


BAD_FIELDS: list[tuple[str, Any]] = [
    ("quant", 3),
    ("optimize_level", "3"),
    ("nodes", True),
    ("passes", {}),
    ("passes", [3]),
    ("passes", [{"name": "p"}]),
    ("shards", None),
    ("shards", [{"file": "x"}]),
    ("shards", ["x"]),
    ("files", []),
    ("files", {}),
    ("files", {"config.json": 3}),
    ("files", {"../config.json": {"nbytes": 1, "crc32": 1}}),
    ("files", {f"{i}": {"nbytes": 1, "crc32": 1} for i in range(200)}),
    ("files", {"config.json": {"nbytes": 1 << 40, "crc32": 1}}),
    ("quant", "\x1b[31m"),
    ("model_type", "a\nb"),
    ("deepmnn_version", "v" * 10_000),
    ("passes", [{"name": "\x1b", "rewrites": 1, "nodes_before": 3, "nodes_after": 2}]),
    ("recipe", "w8"),
    ("recipe", {"name": "w8"}),
    ("recipe", {"name": "w8", "rules": [{"pattern": "role:linear", "format": "w7"}]}),
]


@pytest.mark.parametrize(("key", "value"), BAD_FIELDS)
def test_manifest_fields_of_a_wrong_type(tmp_path: Path, key: str, value: Any) -> None:
    path = write(tmp_path / "m")
    reseal(path, lambda fields: fields.update({key: value}))
    with pytest.raises(ArtifactError, match=MANIFEST):
        Artifact.open(path)
    reseal(write(tmp_path / "n"), lambda fields: fields.pop(key))
    with pytest.raises(ArtifactError, match=MANIFEST):
        Artifact.open(tmp_path / "n")


def test_graph_that_does_not_fit_the_weights(tmp_path: Path) -> None:
    path = write(tmp_path / "m")
    fields = json.loads((path / "graph.json").read_text())
    fields["weights"]["embed.weight"][1] = "bf16"
    (path / "graph.json").write_text(json.dumps(fields))
    reseal(path)
    with pytest.raises(ArtifactError, match=r"embed.weight.*stored bytes"):
        Artifact.open(path).graph()


def test_directories_that_are_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is missing"):
        Artifact.open(tmp_path / "nothing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="is a file"):
        Artifact.open(tmp_path / "file")
    with pytest.raises(ArtifactError, match=r"deepmnn.json is missing"):
        Artifact.open(tmp_path)


def test_a_weight_in_two_shards(tmp_path: Path) -> None:
    path = write(tmp_path / "m", max_shard_bytes=3000)
    first, second, *_ = sorted(path.glob("*.safetensors"))
    second.write_bytes(first.read_bytes())
    reseal(path)
    with pytest.raises(ArtifactError, match=f"is in {first.name} and {second.name}"):
        Artifact.open(path)


def test_weights_off_their_alignment(tmp_path: Path) -> None:
    path = write(tmp_path / "m")
    shard = path / FILES[-1]
    data = shard.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    shard.write_bytes(end.to_bytes(8, "little") + data[8:end] + b" " * 8 + data[end:])
    reseal(path)
    with pytest.raises(ArtifactError, match="multiple of 64"):
        Artifact.open(path)


def test_a_shard_that_shrinks_after_it_was_opened(tmp_path: Path) -> None:
    path = write(tmp_path / "m")
    artifact = Artifact.open(path)
    last = list(PACKED)[-1]
    stored = artifact.tensor(last)
    os.truncate(path / FILES[-1], 1000)
    np.testing.assert_array_equal(stored, PACKED[last])  # a copy
    with pytest.raises(ArtifactError, match="shrunk"):
        artifact.tensor(last)


def test_long_names_make_short_messages(tmp_path: Path) -> None:
    path = write(tmp_path / "m")
    shard = path / FILES[-1]
    data = shard.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    entry = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}
    header = json.dumps({"n" * 1_000_000: entry}).encode()
    shard.write_bytes(len(header).to_bytes(8, "little") + header + data[end : end + 1])
    reseal(path)
    with pytest.raises(ArtifactError) as error:
        Artifact.open(path)
    assert len(str(error.value)) < 2000


def test_files_listed_twice_or_outside(tmp_path: Path) -> None:
    path = write(tmp_path / "m")
    reseal(path, lambda fields: fields["shards"].append(fields["shards"][0]))
    with pytest.raises(ArtifactError, match="lists a file twice"):
        Artifact.open(path)
    record = {"nbytes": 1, "crc32": 1}
    reseal(write(tmp_path / "n"), lambda fields: fields["files"].update({"../x": record}))
    with pytest.raises(ArtifactError, match=r"file '\.\./x' is listed"):
        Artifact.open(tmp_path / "n")
