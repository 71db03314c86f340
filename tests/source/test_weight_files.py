"""Directories as they are: what other builds, downloads, file managers and adapters leave there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from deepmnn.conversion.convert import plan_conversion
from deepmnn.errors import CheckpointError, DeepmnnError
from deepmnn.source.open import has_weights, open_source
from tiny_models import tiny_checkpoint

SAFE, SAFE_INDEX = "model.safetensors", "model.safetensors.index.json"
BIN, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
APPLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        \x00\x02" + b"\x00" * 4000

A, B = torch.ones(2, 3), torch.full((4,), 2.0)
OTHER = torch.zeros(2, 3)
LORA = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, 8)}


def put(path: Path, files: dict[str, Any]) -> Path:
    """Writes tensors, objects (JSON) and bytes under their names."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text('{"model_type": "llama"}')
    for name, content in files.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            file.mkdir()
        elif isinstance(content, bytes):
            file.write_bytes(content)
        elif name.endswith(".json"):
            file.write_text(json.dumps(content))
        elif name.endswith(".safetensors"):
            save_file(content, file)
        else:
            torch.save(content, file)
    return path


def index_of(**files: str) -> dict[str, Any]:
    return {"metadata": {"total_size": 1}, "weight_map": files}


WHOLE = {"a": A, "b": B}
STALE = index_of(a="model-00001-of-00007.safetensors", c="model-00002-of-00007.safetensors")
SHARDS = {
    "model-00001-of-00002.safetensors": {"a": A},
    "model-00002-of-00002.safetensors": {"b": B},
}
INDEX = index_of(a="model-00001-of-00002.safetensors", b="model-00002-of-00002.safetensors")
BIN_SHARDS = {name.replace("model-", "pytorch_model-"): t for name, t in SHARDS.items()}
BIN_SHARDS = {name.replace(".safetensors", ".bin"): t for name, t in BIN_SHARDS.items()}

DIRECTORIES: dict[str, dict[str, Any]] = {
    "a whole file, an index of another build": {SAFE: WHOLE, SAFE_INDEX: STALE},
    "a whole file and its own shards": {SAFE: WHOLE, SAFE_INDEX: INDEX} | SHARDS,
    "a stray file, shards with their index": {SAFE: {"a": OTHER}, SAFE_INDEX: INDEX} | SHARDS,
    "a damaged file, shards with their index": {SAFE: b"1234", SAFE_INDEX: INDEX} | SHARDS,
    "shards, an index of another build": {SAFE_INDEX: STALE} | SHARDS,
    "shards under other names than in the index": {
        SAFE_INDEX: INDEX,
        "model-00001-of-00002.safetensors": {"a": A},
        "model-2.safetensors": {"b": B},
    },
    "shards, some of another build": SHARDS | {"model-00002-of-00003.safetensors": {"a": OTHER}},
    "PyTorch, an index of safetensors without them": {SAFE_INDEX: STALE, BIN: WHOLE},
    "PyTorch, a whole file, an index of another build": {BIN: WHOLE, BIN_INDEX: STALE},
    "PyTorch's shards, an index of another build": {BIN_INDEX: STALE} | BIN_SHARDS,
    "PyTorch, another file of safetensors": {BIN: WHOLE, "other.safetensors": {"z": OTHER}},
    "both kinds": {SAFE: WHOLE, BIN: {"a": OTHER}},
    "a variant alone": {"model.fp16.safetensors": WHOLE},
    "a variant beside it": {SAFE: WHOLE, "model.fp16.safetensors": {"a": OTHER}},
    "the original beside it": {SAFE: WHOLE, "consolidated.safetensors": {"a": OTHER}},
    "the original beside shards": SHARDS | {"consolidated.safetensors": {"a": OTHER}},
    "the original in a folder": SHARDS | {"original/consolidated.safetensors": {"a": OTHER}},
    "an adapter beside shards": SHARDS | {"adapter_model.safetensors": LORA},
    "an adapter beside PyTorch's": {BIN: WHOLE, "adapter_model.safetensors": LORA},
    "an adapter of PyTorch's": {BIN: WHOLE, "adapter_model.bin": LORA, "adapter_config.json": {}},
    "a LoRA by its name": SHARDS | {"pytorch_lora_weights.safetensors": LORA},
    "what trainers leave": {BIN: WHOLE, "optimizer.bin": {"x": 1}, "training_args.bin": b"1"},
    "what macOS leaves": SHARDS
    | {f"._{name}": APPLE for name in SHARDS}
    | {".DS_Store": b"\0\0\0\1Bud1", "._config.json": APPLE},
    "what macOS leaves beside PyTorch's": {BIN: WHOLE, f"._{SAFE}": APPLE, f"._{BIN}": APPLE},
    "a folder called like weights": SHARDS | {"cache.safetensors": None},
    "a folder called like the file": {SAFE: None, BIN: WHOLE},
    "a folder called like a file, without others": {
        "model.safetensors": None,
        "x.safetensors": WHOLE,
    },
    "another download": {SAFE: WHOLE, "x.incomplete": b"1", "other.safetensors.aria2": b"1"},
}


@pytest.mark.parametrize("case", DIRECTORIES)
def test_the_model_is_found(tmp_path: Path, case: str) -> None:
    path = put(tmp_path / "x", DIRECTORIES[case])
    assert has_weights(path)
    source = open_source(path)
    assert sorted(source.names()) == ["a", "b"]
    np.testing.assert_array_equal(source.read("a"), A.numpy())
    np.testing.assert_array_equal(source.read("b"), B.numpy())


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "the other shard is missing": (
        {SAFE_INDEX: INDEX, "model-00001-of-00002.safetensors": {"a": A}},
        "shard model-00002-of-00002.safetensors is missing",
    ),
    "a shard is a folder": (
        {SAFE_INDEX: INDEX, "model-00001-of-00002.safetensors": {"a": A}}
        | {"model-00002-of-00002.safetensors": None},
        "shard model-00002-of-00002.safetensors is a directory",
    ),
    "a shard is missing, no index": (
        {"model-00001-of-00002.safetensors": {"a": A}},
        "has 1 of the shards of model-00001-of-00002.safetensors; expected all 2",
    ),
    "two variants": (
        {"model.fp16.safetensors": {"a": A}, "model.fp32.safetensors": {"a": A}},
        "in model.fp16.safetensors and model.fp32.safetensors.*name the one to convert",
    ),
    "an adapter alone": (
        {"adapter_model.safetensors": LORA, "adapter_config.json": {}},
        "an adapter .LoRA.*merge_and_unload",
    ),
    "an adapter of PyTorch's alone": ({"adapter_model.bin": LORA}, "an adapter .LoRA"),
    "an adapter called like the model": ({SAFE: LORA}, "adapter .LoRA.*merge_and_unload"),
    "a download": ({"model.safetensors.incomplete": b"1"}, "unfinished download"),
    "a download of the hub": (
        {".cache/huggingface/download/abc.incomplete": b"1"},
        "abc.incomplete, an unfinished download",
    ),
    "a download in place": ({SAFE: WHOLE, f"{SAFE}.aria2": b"1"}, "aria2 lies beside it"),
    "a shard in download": (
        SHARDS | {SAFE_INDEX: INDEX, "model-00002-of-00002.safetensors.aria2": b"1"},
        "00002.safetensors is not whole",
    ),
    "a folder": ({SAFE: None}, "model.safetensors is a directory"),
    "cut": ({SAFE: b"\xff\0\0\0\0\0\0\0{"}, "header has 255 bytes"),
    "a web page": ({SAFE: b"<!DOCTYPE html><html>...</html>"}, "no safetensors file"),
    "the original alone": ({"consolidated.safetensors": WHOLE}, "holds config.json, consolidated"),
    "nothing": ({}, "holds config.json; expected weights in one of these formats"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_words(tmp_path: Path, case: str) -> None:
    files, message = REFUSED[case]
    with pytest.raises(DeepmnnError, match=message):
        open_source(put(tmp_path / "x", files))


def test_an_adapter_without_config(tmp_path: Path) -> None:
    """As they are published: the config is the base model's."""
    put(tmp_path / "x", {"adapter_model.safetensors": LORA, "adapter_config.json": {}})
    (tmp_path / "x" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"an adapter .LoRA"):
        open_source(tmp_path / "x")


def test_an_adapter_beside_the_weights_is_reported(tmp_path: Path) -> None:
    path = tiny_checkpoint("llama", 0, tmp_path / "hf").path
    save_file(LORA, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text("{}")
    assert plan_conversion(path).unused == ("adapter_model.safetensors",)


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "model.fp16.safetensors"])
def test_a_link_without_its_file(tmp_path: Path, name: str) -> None:
    """What a cache of the hub holds after its blobs were deleted."""
    path = put(tmp_path / "x", {})
    (path / name).symlink_to("../../blobs/0123")
    with pytest.raises(CheckpointError, match=r"link to \.\./\.\./blobs/0123, which is missing"):
        open_source(path)
    (path / SAFE_INDEX).write_text(json.dumps(index_of(a=name)))
    with pytest.raises(CheckpointError, match=r"link to \.\./\.\./blobs/0123, which is missing"):
        open_source(path)


def test_a_cache_of_the_hub(tmp_path: Path) -> None:
    """Every file is a link to a blob, which has no suffix."""
    (tmp_path / "blobs").mkdir()
    path = put(tmp_path / "snapshot", {SAFE: WHOLE})
    for number, file in enumerate(sorted(path.iterdir())):
        file.rename(tmp_path / "blobs" / str(number))
        file.symlink_to(f"../blobs/{number}")
    assert sorted(open_source(path).names()) == ["a", "b"]
    assert open_source(path / SAFE).read("b").tolist() == [2, 2, 2, 2]


def test_a_directory_that_cannot_be_listed(tmp_path: Path) -> None:
    path = put(tmp_path / "x", {})
    path.chmod(0o111)
    try:
        with pytest.raises(CheckpointError):
            open_source(path)
    finally:
        path.chmod(0o755)


def stray_sibling(path: Path) -> None:
    save_file({"model.embed_tokens.weight": torch.zeros(4, 4)}, path / "extra.safetensors")


def stale_index(path: Path) -> None:
    names = load_file(path / SAFE)
    weight_map = dict.fromkeys(names, "model-00001-of-00009.safetensors")
    (path / SAFE_INDEX).write_text(json.dumps({"weight_map": weight_map}))


def pickled_too(path: Path) -> None:
    torch.save({name: t * 2 for name, t in load_file(path / SAFE).items()}, path / BIN)


def complete_other_shards(path: Path) -> None:
    tensors = load_file(path / SAFE)
    save_file({name: t * 2 for name, t in tensors.items()}, path / "model-1.safetensors")
    weight_map = dict.fromkeys(tensors, "model-1.safetensors")
    (path / SAFE_INDEX).write_text(json.dumps({"weight_map": weight_map}))


def broken_pickle(path: Path) -> None:
    (path / BIN).write_bytes(b"")
    os.link(path / BIN, path / BIN_INDEX)


@pytest.mark.parametrize(
    "leave", [stray_sibling, stale_index, pickled_too, complete_other_shards, broken_pickle]
)
def test_the_tensors_that_transformers_takes(tmp_path: Path, leave: Callable[[Path], None]) -> None:
    path = tiny_checkpoint("llama", 0, tmp_path / "hf").path
    leave(path)
    model = transformers.AutoModelForCausalLM.from_pretrained(path)
    source = open_source(path)
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(source.read(name), tensor.float().numpy(), err_msg=name)


def test_tensors_that_the_index_does_not_name(tmp_path: Path) -> None:
    """transformers reads whole files; of two copies of a tensor the index names the right one."""
    shards = {
        "model-1.safetensors": {"a": A, "extra": OTHER},
        "model-2.safetensors": {"a": OTHER, "b": B},
    }
    index = index_of(a="model-1.safetensors", b="model-2.safetensors")
    source = open_source(put(tmp_path / "x", shards | {SAFE_INDEX: index}))
    assert sorted(source.names()) == ["a", "b", "extra"]
    np.testing.assert_array_equal(source.read("a"), A.numpy())
    shards["model-2.safetensors"]["extra"] = A
    with pytest.raises(CheckpointError, match=r"model-1\.safetensors and model-2\.safetensors"):
        open_source(put(tmp_path / "x", shards))
