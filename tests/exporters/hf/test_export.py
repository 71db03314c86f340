"""Hugging Face directories against transformers, which loads them."""

from __future__ import annotations

import json
import os
import resource
import signal
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

from byte_tokenizer import write_tokenizer
from deepmnn.artifact.manifest import MANIFEST
from deepmnn.artifact.reader import Artifact
from deepmnn.artifact.shards import plan_shards
from deepmnn.backends.base import F32
from deepmnn.backends.reference import ReferenceBackend
from deepmnn.conversion.convert import convert
from deepmnn.conversion.kept import converted, is_checkpoint, original
from deepmnn.errors import ArtifactError, CheckpointError, RequestError, StorageError
from deepmnn.exporters.exported import Exported
from deepmnn.exporters.hf import export as module
from deepmnn.exporters.hf.export import check_hf, export_hf
from deepmnn.quant.store import stored_values
from deepmnn.source.open import open_source
from exporters.folders import change_json, in_dying_child, tree
from parity import relative_error, run_schedule
from tiny_models import CONFIGS, TinyModel, checkpoint_of, tiny_checkpoint

IDS = [(13 * n) % 97 for n in range(23)]


def exported(model: Path | str, out: Path, **options: Any) -> Exported:
    with original(model) as source:
        return export_hf(source, out, **options)


def logits(path: Path, **options: Any) -> F32:
    """Of transformers."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path, attn_implementation="eager", experts_implementation="eager", **options
    )
    with torch.no_grad():
        out = model(input_ids=torch.tensor([IDS])).logits[0]
    return np.asarray(out.float(), np.float32)


@pytest.mark.parametrize("level", [None, 0, 3])
@pytest.mark.parametrize(
    "model_type", ["llama", "qwen2", "qwen3", "deepseek_v2", "deepseek_v3", "deepseek_v32"]
)
def test_transformers_gives_the_same_logits(
    model_type: str, level: int | None, tmp_path: Path
) -> None:
    """From the checkpoint, and from what it was converted to."""
    tiny = tiny_checkpoint(model_type, 1, tmp_path / "hf")
    model = tmp_path / "hf"
    if level is not None:
        model = tmp_path / "model"
        convert(tmp_path / "hf", model, "fp32", level, report=False)
    report = exported(model, tmp_path / "out", type="fp32")
    assert relative_error(logits(tmp_path / "out", dtype="auto"), tiny.logits(IDS)) < 1e-5
    assert report.contents.endswith("tensors, float32")
    assert report.note == ""


def test_a_rounded_model_gives_what_deepmnn_gives(tmp_path: Path) -> None:
    tiny_checkpoint("deepseek_v3", 0, tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "w4", "w4", report=False)
    exported(tmp_path / "w4", tmp_path / "out", type="fp32")
    artifact = Artifact.open(tmp_path / "w4")
    weights = artifact.graph().weights
    backend = ReferenceBackend(
        artifact.graph(), lambda name: stored_values(weights[name], artifact.tensor(name))
    )
    (expected,) = run_schedule(backend, [IDS], [(len(IDS),)])
    assert relative_error(logits(tmp_path / "out", dtype="auto"), expected) < 1e-5


@pytest.mark.parametrize(
    ("type", "dtype", "code"),
    [
        ("bf16", ml_dtypes.bfloat16, "BF16"),
        ("fp16", np.float16, "F16"),
        ("FP32", np.float32, "F32"),
    ],
)
def test_types(type: str, dtype: Any, code: str, tmp_path: Path) -> None:
    tiny = tiny_checkpoint("deepseek_v3", 0, tmp_path / "hf")
    exported(tmp_path / "hf", tmp_path / "out", type=type)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    names = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
    assert config["torch_dtype"] == names[code]
    assert "dtype" not in config
    source = open_source(tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", "np") as file:
        for name in file.keys():  # noqa: SIM118
            kept = name.endswith("e_score_correction_bias")
            assert file.get_slice(name).get_dtype() == ("F32" if kept else code)
            wanted = tiny.read(name).astype(np.float32 if kept else dtype).astype(np.float32)
            assert np.array_equal(source.read(name), wanted)


def test_what_config_json_says(tmp_path: Path) -> None:
    """Quantised weights come out as numbers, and config.json no longer speaks of a scheme."""
    tiny_checkpoint("llama", 0, tmp_path / "hf")
    file = tmp_path / "hf" / "model.safetensors"
    tensors = {name: torch.tensor(value) for name, value in load_file(file).items()}
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    tensors[f"{name}_scale_inv"] = torch.full((1, 1), 0.5)
    save_torch(tensors, file, {"format": "pt"})
    scheme = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    change_json(
        tmp_path / "hf" / "config.json",
        quantization_config=scheme,
        auto_map={"AutoConfig": "configuration_llama.Config"},
        architectures=None,
        tie_word_embeddings=True,
    )
    exported(tmp_path / "hf", tmp_path / "out", type="fp32")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert not {"quantization_config", "auto_map"} & config.keys()
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["tie_word_embeddings"] is False
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert np.array_equal(found[name], tensors[name].float().numpy() * 0.5)
    assert f"{name}_scale_inv" not in found


def test_files_of_the_tokenizer_go_along(tmp_path: Path) -> None:
    tiny_checkpoint("llama", 0, tmp_path / "hf")
    write_tokenizer(tmp_path / "hf")
    (tmp_path / "hf" / "generation_config.json").write_text('{"temperature": 0.6}')
    convert(tmp_path / "hf", tmp_path / "w8", "w8", report=False)
    for model in ("hf", "w8"):
        out = tmp_path / f"{model}-out"
        exported(tmp_path / model, out)
        for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            assert (out / name).read_bytes() == (tmp_path / "hf" / name).read_bytes()
        tokenizer = transformers.AutoTokenizer.from_pretrained(out)
        assert tokenizer.decode(tokenizer.encode("Hej!", add_special_tokens=False)) == "Hej!"


def test_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = tiny_checkpoint("deepseek_v2", 1, tmp_path / "hf")
    monkeypatch.setattr(module, "plan_shards", partial(plan_shards, max_shard_bytes=50_000))
    calls: list[tuple[int, int, str]] = []
    progress = lambda *call: calls.append(call)  # noqa: E731
    exported(tmp_path / "hf", tmp_path / "out", type="fp32", progress=progress)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 2
    assert files == {path.name for path in (tmp_path / "out").glob("*.safetensors")}
    assert index["metadata"]["total_size"] == calls[-1][0] == calls[-1][1]
    assert [call[2] for call in calls] == list(index["weight_map"])
    assert relative_error(logits(tmp_path / "out", dtype="auto"), tiny.logits(IDS)) < 1e-5


def test_it_is_a_checkpoint_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tiny_checkpoint("qwen3", 0, tmp_path / "hf")
    exported(tmp_path / "hf", tmp_path / "out", type="fp32")
    assert is_checkpoint(tmp_path / "out")
    with converted(tmp_path / "out", "fp32") as again:
        exported(again.path, tmp_path / "back", type="fp32")
    first, second = (load_file(tmp_path / n / "model.safetensors") for n in ("hf", "back"))
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_what_the_model_does_not_read_is_left_out(tmp_path: Path) -> None:
    tiny_checkpoint("llama", 0, tmp_path / "hf")
    file = tmp_path / "hf" / "model.safetensors"
    save_file(load_file(file) | {"model.extra": np.zeros(3, "f4")}, file, {"format": "pt"})
    report = exported(tmp_path / "hf", tmp_path / "out")
    assert report.note == "left out, since the model does not read it: model.extra"
    assert "model.extra" not in open_source(tmp_path / "out")


def test_the_bundled_model_and_names_that_mean_nothing(tmp_path: Path) -> None:
    exported("tiny-r1", tmp_path / "r1")
    assert open_source(tmp_path / "r1").config["model_type"] == "deepseek_v3"
    with pytest.raises(ArtifactError, match="is missing"), original(tmp_path / "none"):
        pass


# ------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("number", "type", "what"),
    [(np.nan, "fp32", "NaN"), (np.inf, "bf16", "infinity"), (1e5, "fp16", "at most 65504")],
)
def test_numbers_that_have_no_place(number: float, type: str, what: str, tmp_path: Path) -> None:
    tiny_checkpoint("llama", 0, tmp_path / "hf")
    file = tmp_path / "hf" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = number
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=what):
        exported(tmp_path / "hf", tmp_path / "out", type=type)
    assert os.listdir(tmp_path) == ["hf"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    path = tmp_path_factory.mktemp("tiny") / "hf"
    return checkpoint_of("qwen2", CONFIGS["qwen2"][0], path)


def test_what_may_be_replaced(tiny: TinyModel, tmp_path: Path) -> None:
    out = tmp_path / "out"
    exported(tiny.path, out, type="fp32")
    with pytest.raises(StorageError, match="already exists"):
        exported(tiny.path, out)
    with pytest.raises(StorageError, match="already exists"):
        check_hf(out, False, [])
    exported(tiny.path, out, overwrite=True)
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"
    (out / "notes.txt").write_text("mine")
    with pytest.raises(StorageError, match=r"notes\.txt is in the way"):
        exported(tiny.path, out, overwrite=True)
    (out / "notes.txt").unlink()
    change_json(out / "config.json", mine=1)
    with pytest.raises(StorageError, match="has been changed"):
        exported(tiny.path, out, overwrite=True)
    with pytest.raises(StorageError, match="the source"):
        exported(tiny.path, tiny.path, overwrite=True)
    convert(tiny.path, tmp_path / "model", "fp32", report=False)
    with pytest.raises(StorageError, match="has format 'deepmnn'"):
        exported(tiny.path, tmp_path / "model", overwrite=True)
    with pytest.raises(RequestError, match="bf16, fp16, fp32"):
        exported(tiny.path, tmp_path / "other", type="int8")
    assert sorted(os.listdir(tmp_path)) == ["model", "out"]


def test_a_killed_export_leaves_nothing_half_written(tiny: TinyModel, tmp_path: Path) -> None:
    out = tmp_path / "out"
    exported(tiny.path, out, type="fp16")
    old = tree(out)
    calls, finished = 0, False
    while not finished:
        finished = in_dying_child(lambda: exported(tiny.path, out, overwrite=True), calls)
        found = tree(out)
        assert found == old or b"bfloat16" in found["config.json"]
        assert MANIFEST in found
        assert calls < 80
        calls += 3
    exported(tiny.path, out, overwrite=True)
    assert os.listdir(tmp_path) == ["out"]


def test_a_full_disk(tiny: TinyModel, tmp_path: Path) -> None:
    """As far as a process can have one."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        with pytest.raises(StorageError, match="cannot be written"):
            exported(tiny.path, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not os.listdir(tmp_path)
