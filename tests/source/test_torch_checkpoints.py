"""PyTorch weights as users have them, converted: the same bytes as from safetensors."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from deepmnn.conversion.convert import convert
from deepmnn.conversion.report.recorder import HTML, JSON
from deepmnn.errors import CheckpointError, ConfigError, TensorNotFoundError
from deepmnn.source.open import open_source
from tiny_models import CONFIGS, tiny_checkpoint

A = torch.arange(6, dtype=torch.float32).reshape(2, 3)
B = torch.full((4,), 7.0)
INDEX = "pytorch_model.bin.index.json"


def directory(path: Path, files: dict[str, Any], index: Any = None) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text('{"model_type": "llama"}')
    for name, value in files.items():
        torch.save(value, path / name)
    if index is not None:
        (path / INDEX).write_text(json.dumps(index))
    return path


SHARDS = {"pytorch_model-1.bin": {"a": A}, "pytorch_model-2.bin": {"b": B}}
WEIGHT_MAP = {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}
OTHERS = {"training_args.bin": {"a": B}, "optimizer.pt": {"state": {}}}


@pytest.mark.parametrize(
    ("files", "index"),
    [
        ({"pytorch_model.bin": {"a": A, "b": B}}, None),
        ({"pytorch_model.bin": {"a": A, "b": B}} | OTHERS, None),
        (SHARDS | OTHERS, {"weight_map": WEIGHT_MAP}),
        (SHARDS | OTHERS, None),
    ],
    ids=["single", "single beside others", "index", "no index"],
)
def test_directories(tmp_path: Path, files: Any, index: Any) -> None:
    checkpoint = open_source(directory(tmp_path, files, index))
    assert sorted(checkpoint.names()) == ["a", "b"]
    assert checkpoint.nbytes() == 40
    np.testing.assert_array_equal(checkpoint.read("a"), A.numpy(), strict=True)
    np.testing.assert_array_equal(checkpoint.read("b"), B.numpy(), strict=True)
    for call in (checkpoint.read, checkpoint.shape, checkpoint.sample):
        with pytest.raises(TensorNotFoundError, match="'c'"):
            call("c")


def test_safetensors_come_first(tmp_path: Path) -> None:
    path = directory(tmp_path, {"pytorch_model.bin": {"a": B}})
    save_file({"a": A}, path / "model.safetensors")
    assert open_source(path).shape("a") == (2, 3)


def test_incomplete_directories(tmp_path: Path) -> None:
    path = directory(tmp_path, SHARDS, {"weight_map": WEIGHT_MAP | {"c": "pytorch_model-1.bin"}})
    with pytest.raises(TensorNotFoundError, match="'c'"):
        open_source(path)
    (path / "pytorch_model-2.bin").unlink()
    with pytest.raises(CheckpointError, match=r"shard pytorch_model-2.bin is missing"):
        open_source(path)
    for weight_map in ([], {}, {"a": "../a.bin"}, {"a": 3}):
        (path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(CheckpointError, match="index"):
            open_source(path)
    (path / INDEX).unlink()
    torch.save({"a": A}, path / "pytorch_model-2.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model-1.bin and pytorch_model-2.bin"):
        open_source(path)


def test_a_file_by_itself(tmp_path: Path) -> None:
    path = directory(tmp_path, {})
    for suffix in (".pt", ".pth", ".bin", ".ckpt"):
        torch.save({"a": A}, path / f"model{suffix}")
        checkpoint = open_source(path / f"model{suffix}")
        assert checkpoint.config == {"model_type": "llama"}
        np.testing.assert_array_equal(checkpoint.read("a"), A.numpy())
    with pytest.raises(CheckpointError, match=r"holds .*model.bin.*as a file: .pt"):
        open_source(path)
    (path / "config.json").rename(tmp_path / "other.json")
    with pytest.raises(CheckpointError, match=r"config.json is missing.*`config`"):
        open_source(path / "model.pt")
    other = open_source(path / "model.pt", tmp_path / "other.json")
    assert other.config == {"model_type": "llama"}
    with pytest.raises(CheckpointError, match=r"nothing.pt is missing"):
        open_source(path / "nothing.pt")
    (path / "model.txt").write_text("x")
    with pytest.raises(CheckpointError, match=r"model.txt is a file.*\.pth"):
        open_source(path / "model.txt")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.model."])
def test_wrapper_prefixes(tmp_path: Path, prefix: str) -> None:
    names = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    state = {prefix + name: torch.full((2,), float(i)) for i, name in enumerate(names)}
    files = {
        "pytorch_model-1.bin": dict(list(state.items())[:1]),
        "pytorch_model-2.bin": dict(list(state.items())[1:]) | {"loss.weight": B},
    }
    checkpoint = open_source(directory(tmp_path, files))
    assert sorted(checkpoint.names()) == sorted([*names, "loss.weight"])
    for number, name in enumerate(names):
        assert checkpoint.read(name).tolist() == [number, number]
        assert checkpoint.shape(name) == (2,)


def test_a_name_with_and_without_prefix(tmp_path: Path) -> None:
    state = {"module.model.embed_tokens.weight": A, "module.x": A, "x": B}
    with pytest.raises(CheckpointError, match=r"with and without 'module\.'"):
        open_source(directory(tmp_path, {"pytorch_model.bin": state}))


# ---------------------------------------------------------------------------------- conversion


def weights(path: Path) -> dict[str, bytes]:
    """What an artifact is made of, but for times, in its manifest and its report: its files."""
    timed = {"deepmnn.json", HTML, JSON}
    files = {p.name: p.read_bytes() for p in path.iterdir() if p.name not in timed}
    assert any(name.endswith(".safetensors") for name in files)
    return files


def one_file(state: dict[str, Any], path: Path) -> Path:
    torch.save(state, path / "deepseek.pt")
    return path / "deepseek.pt"


def hf_single(state: dict[str, Any], path: Path) -> Path:
    torch.save(state, path / "pytorch_model.bin")
    return path


def hf_sharded(state: dict[str, Any], path: Path) -> Path:
    weight_map = {}
    for number in range(3):
        name = f"pytorch_model-{number + 1:05}-of-00003.bin"
        part = dict(list(state.items())[number::3])
        torch.save(part, path / name)
        weight_map |= dict.fromkeys(part, name)
    (path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return path


def ddp(state: dict[str, Any], path: Path) -> Path:
    model = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"model": model, "epoch": 1}, path / "last.ckpt")
    return path / "last.ckpt"


@pytest.mark.parametrize("store", [one_file, hf_single, hf_sharded, ddp])
@pytest.mark.parametrize("model_type", ["llama", "deepseek_v2", "deepseek_v3"])
def test_the_same_artifact_as_from_safetensors(
    tmp_path: Path, model_type: str, store: Callable[[dict[str, Any], Path], Path]
) -> None:
    tiny = tiny_checkpoint(model_type, 1, tmp_path / "hf")
    state = load_file(tiny.path / "model.safetensors")
    want = weights(convert(tiny.path, tmp_path / "want", "w4").path)
    (tiny.path / "model.safetensors").unlink()
    report = convert(store(state, tiny.path), tmp_path / "out", "w4")
    assert weights(report.path) == want
    assert report.source_nbytes == sum(tensor.nbytes for tensor in state.values())


@pytest.mark.parametrize("model_type", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_state_dict_as_the_library_has_it(
    tmp_path: Path, model_type: str, dtype: torch.dtype
) -> None:
    """torch.save(model.state_dict(), ...): tied tensors, experts stacked by transformers."""
    tiny = tiny_checkpoint(model_type, 0, tmp_path / "hf")
    file = tiny.path / "model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file)
    want = convert(tiny.path, tmp_path / "want", "bf16")
    (tmp_path / "other").mkdir()
    model = copy.deepcopy(tiny.model).to(dtype)
    torch.save(model.state_dict(), tmp_path / "other" / "model.pt")
    report = convert(
        tmp_path / "other" / "model.pt", tmp_path / "out", "bf16", config=tiny.path / "config.json"
    )
    if report.dropped != want.dropped:  # the library has no multi-token prediction
        assert all(name.startswith(("layers.2.", "mtp.")) for name in report.dropped)
        left_out = {f"model.{name}" for name in report.dropped}
        left_out |= {f"{name}.weight" for name in left_out}
        tensors = {n: t for n, t in load_file(file).items() if n not in left_out}
        save_file(tensors, file)
        want = convert(tiny.path, tmp_path / "want", "bf16", overwrite=True)
    assert weights(report.path) == weights(want.path)


def test_fp8_scales_are_applied(tmp_path: Path) -> None:
    path = directory(tmp_path, {})
    quantization = {"quant_method": "fp8", "weight_block_size": [2, 2]}
    (path / "config.json").write_text(json.dumps({"quantization_config": quantization}))
    weight = torch.tensor([[1.0, 2, 3], [4, 5, 6]]).to(torch.float8_e4m3fn)
    scale = torch.tensor([[0.5, 4.0]])
    torch.save({"w": weight, "w_scale_inv": scale}, path / "pytorch_model.bin")
    checkpoint = open_source(path)
    assert checkpoint.names() == ["w"]
    assert checkpoint.read("w").tolist() == [[0.5, 1, 12], [2, 2.5, 24]]


def test_files_beside_the_weights_or_beside_the_config(tmp_path: Path) -> None:
    tiny = tiny_checkpoint("llama", 0, tmp_path / "hf")
    (tmp_path / "pt").mkdir()
    path = tmp_path / "pt" / "model.pt"
    torch.save(load_file(tiny.path / "model.safetensors"), path)
    (tiny.path / "tokenizer.json").write_text('{"of": "config"}')
    (tiny.path / "merges.txt").write_text("of config")
    first = convert(path, tmp_path / "1", config=tiny.path / "config.json").path
    assert (first / "tokenizer.json").read_text() == '{"of": "config"}'
    assert (first / "merges.txt").exists()
    (tmp_path / "pt" / "tokenizer.json").write_text('{"of": "weights"}')
    second = convert(path, tmp_path / "2", config=tiny.path).path
    assert (second / "tokenizer.json").read_text() == '{"of": "weights"}'
    assert not (second / "merges.txt").exists(), "files of two tokenizers are never mixed"
    assert not (second / "model.pt").exists()
    shutil.copy(tiny.path / "config.json", tmp_path / "pt")
    assert weights(convert(path, tmp_path / "3").path) == weights(second)
    (tmp_path / "pt" / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ConfigError, match="gpt2"):
        convert(path, tmp_path / "4")
    assert not (tmp_path / "4").exists()
