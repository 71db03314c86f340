"""Directories as users have them: sharded, single, several files, incomplete, foreign."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from deepmnn.errors import CheckpointError, TensorNotFoundError
from deepmnn.source.open import open_source
from deepmnn.source.side_files import config_path, read_config

A = np.arange(6, dtype=np.float32).reshape(2, 3)
B = np.full(4, 7, np.float32)
INDEX = "model.safetensors.index.json"


def directory(path: Path, files: dict[str, dict[str, np.ndarray]], index: Any = None) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text('{"model_type": "llama"}')
    for name, tensors in files.items():
        save_file(tensors, path / name)
    if index is not None:
        (path / INDEX).write_text(json.dumps(index))
    return path


SHARDS = {"model-1.safetensors": {"a": A}, "model-2.safetensors": {"b": B}}
WEIGHT_MAP = {"a": "model-1.safetensors", "b": "model-2.safetensors"}


@pytest.mark.parametrize(
    ("files", "index"),
    [
        ({"model.safetensors": {"a": A, "b": B}}, None),
        ({"model.safetensors": {"a": A, "b": B}, "other.safetensors": {"a": B}}, None),
        (SHARDS, {"weight_map": WEIGHT_MAP}),
        (SHARDS | {"adapter.safetensors": {"a": B}}, {"weight_map": WEIGHT_MAP, "metadata": {}}),
        (SHARDS, None),
    ],
    ids=["single", "single beside others", "index", "index beside others", "no index"],
)
def test_ways_to_store_the_same_tensors(tmp_path: Path, files: Any, index: Any) -> None:
    checkpoint = open_source(directory(tmp_path, files, index))
    assert sorted(checkpoint.names()) == ["a", "b"]
    assert checkpoint.shape("a") == (2, 3)
    assert checkpoint.nbytes() == 40
    assert checkpoint.config == {"model_type": "llama"}
    assert "a" in checkpoint
    assert "c" not in checkpoint
    np.testing.assert_array_equal(checkpoint.read("a"), A, strict=True)
    np.testing.assert_array_equal(checkpoint.read("b"), B, strict=True)
    for call in (checkpoint.read, checkpoint.shape, checkpoint.sample):
        with pytest.raises(TensorNotFoundError, match="'c'"):
            call("c")


def test_missing_shard(tmp_path: Path) -> None:
    path = directory(tmp_path, SHARDS, {"weight_map": WEIGHT_MAP})
    (path / "model-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"shard model-2.safetensors is missing"):
        open_source(path)


def test_tensor_absent_from_its_shard(tmp_path: Path) -> None:
    path = directory(tmp_path, SHARDS, {"weight_map": WEIGHT_MAP | {"c": "model-1.safetensors"}})
    with pytest.raises(TensorNotFoundError, match="'c'"):
        open_source(path)


def test_one_tensor_in_two_files(tmp_path: Path) -> None:
    files = {"x.safetensors": {"a": A}, "y.safetensors": {"a": A}}
    with pytest.raises(CheckpointError, match=r"x.safetensors and y.safetensors"):
        open_source(directory(tmp_path, files))


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/passwd", "a/b", "", "..", 3, None, "\0"]
)
def test_index_may_not_reach_outside(tmp_path: Path, name: Any) -> None:
    path = directory(tmp_path, SHARDS, {"weight_map": {"a": name}})
    with pytest.raises(CheckpointError, match="puts tensor 'a' in"):
        open_source(path)


@pytest.mark.parametrize("index", [[], 3, {}, {"weight_map": []}, {"weight_map": {}}, "x"])
def test_index_of_a_wrong_type(tmp_path: Path, index: Any) -> None:
    with pytest.raises(CheckpointError, match="index"):
        open_source(directory(tmp_path, SHARDS, index))


@pytest.mark.parametrize("text", ["", "[]", "3", "null", '{"a": 1', '{"a": 1, "a": 2}', "[" * 9999])
def test_config_of_a_wrong_type(tmp_path: Path, text: str) -> None:
    path = directory(tmp_path, SHARDS)
    (path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config.json"):
        open_source(path)


def test_config_that_cannot_be_read(tmp_path: Path) -> None:
    path = directory(tmp_path, SHARDS)
    (path / "config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match="UTF-8"):
        open_source(path)
    (path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config.json is missing"):
        open_source(path)
    (path / "config.json").mkdir()
    with pytest.raises(CheckpointError, match=r"config.json is a directory"):
        open_source(path)


def test_unknown_directories(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is missing"):
        open_source(tmp_path / "nothing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="is a file"):
        open_source(tmp_path / "file")
    path = directory(tmp_path / "other", {})
    (path / "weights.npz").write_text("x")
    with pytest.raises(CheckpointError, match=r"weights.npz.*safetensors"):
        open_source(path)
    (path / "deepmnn.json").write_text("{}")
    with pytest.raises(CheckpointError, match="converted model"):
        open_source(path)


def test_read_config_of_a_file_or_a_directory(tmp_path: Path) -> None:
    path = directory(tmp_path, {})
    for given in (path, path / "config.json"):
        assert read_config(config_path(path, given)) == {"model_type": "llama"}
