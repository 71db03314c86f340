"""A converted model as a checkpoint again: every tensor under its own name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from deepmnn.artifact.manifest import MANIFEST
from deepmnn.artifact.reader import Artifact
from deepmnn.artifact.restored import RestoredSource
from deepmnn.backends.reference import ReferenceBackend
from deepmnn.conversion.convert import convert
from deepmnn.errors import ArtifactError, TensorNotFoundError
from deepmnn.models import build
from deepmnn.quant.recipe import Recipe, Rule
from deepmnn.quant.store import stored_values
from deepmnn.source.open import open_source
from exporters.folders import change_json, reseal
from parity import prompts_for, relative_error, run_schedule
from tiny_models import ALL, CONFIGS, checkpoint_of, tiny_checkpoint


def restored(path: Path, out: Path, quant: str | Recipe = "fp32", level: int = 3) -> RestoredSource:
    convert(path, out, quant, level, calibration=False, report=False)
    return RestoredSource(Artifact.open(out))


@pytest.mark.parametrize(("model_type", "index"), ALL)
def test_float32_tensors_are_the_checkpoints(model_type: str, index: int, tmp_path: Path) -> None:
    tiny_checkpoint(model_type, index, tmp_path / "hf")
    checkpoint = open_source(tmp_path / "hf")
    for level in (3, index % 3):
        source = restored(tmp_path / "hf", tmp_path / str(level), level=level)
        # transformers may write an output head beside tied embeddings, which nobody reads
        assert {*checkpoint.names()} - {*source.names()} <= {"lm_head.weight"}
        assert {*source.names()} <= {*checkpoint.names()}
        for name in source.names():
            assert source.shape(name) == checkpoint.shape(name)
            assert np.array_equal(source.read(name), checkpoint.read(name))
        assert source.side_files() == checkpoint.side_files()
    with pytest.raises(TensorNotFoundError, match="no tensor"):
        source.read("model.layers.9.none")


@pytest.mark.parametrize("quant", ["w4", "w8", "bf16"])
@pytest.mark.parametrize("model_type", ["qwen2", "deepseek_v3"])
def test_rounded_tensors_make_the_same_logits(model_type: str, quant: str, tmp_path: Path) -> None:
    """The stored graph with its stored numbers, and the graph of config.json with these."""
    tiny_checkpoint(model_type, 0, tmp_path / "hf")
    source = restored(tmp_path / "hf", tmp_path / "model", quant)
    artifact = Artifact.open(tmp_path / "model")
    weights = artifact.graph().weights
    stored = ReferenceBackend(
        artifact.graph(), lambda name: stored_values(weights[name], artifact.tensor(name))
    )
    naive = build(source.config)
    plain = ReferenceBackend(naive, lambda name: naive.weights[name].expr.read(source))
    prompts = prompts_for([23], 97)
    (found,), (expected,) = (run_schedule(b, prompts, [(23,)]) for b in (plain, stored))
    assert relative_error(found, expected) < 1e-5


def test_matrices_of_different_formats(tmp_path: Path) -> None:
    """What is not fused, because its formats differ, comes back as well."""
    tiny = tiny_checkpoint("llama", 1, tmp_path / "hf")
    recipe = Recipe("mixed", (Rule("*.k_proj.*", "bf16"), Rule("role:linear", "w8")))
    source = restored(tmp_path / "hf", tmp_path / "model", recipe)
    for name in source.names():
        numbers = tiny.read(name)
        assert relative_error(source.read(name), numbers) < 0.02


def test_equal_tensors_are_stored_once_and_come_back_twice(tmp_path: Path) -> None:
    tiny_checkpoint("llama", 0, tmp_path / "hf")
    file = tmp_path / "hf" / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    layers = [f"model.layers.{layer}.mlp.down_proj.weight" for layer in (0, 1)]
    tensors[layers[1]] = tensors[layers[0]]
    save_file(tensors, file, {"format": "pt"})
    source = restored(tmp_path / "hf", tmp_path / "model")
    assert len(source._artifact.graph().weights) < len(build(source.config).weights)
    for name, numbers in tensors.items():
        assert np.array_equal(source.read(name), numbers)


@pytest.mark.parametrize("level", [0, 3])
def test_a_head_that_is_not_tied_after_all(tmp_path: Path, level: int) -> None:
    tiny_checkpoint("llama", 0, tmp_path / "hf")
    change_json(tmp_path / "hf" / "config.json", tie_word_embeddings=True)
    source = restored(tmp_path / "hf", tmp_path / "model", level=level)
    assert source.config["tie_word_embeddings"] is False
    assert "lm_head.weight" in source
    tiny_checkpoint("llama", 1, tmp_path / "tied")
    tied = restored(tmp_path / "tied", tmp_path / "tied-model", level=level)
    assert tied.config["tie_word_embeddings"] is True
    assert "lm_head.weight" not in tied


def test_layers_that_the_checkpoint_came_without(tmp_path: Path) -> None:
    fields = CONFIGS["deepseek_v3"][0] | {"num_nextn_predict_layers": 0}
    checkpoint_of("deepseek_v3", fields, tmp_path / "hf")
    change_json(tmp_path / "hf" / "config.json", num_nextn_predict_layers=1)
    source = restored(tmp_path / "hf", tmp_path / "model")
    assert set(source.names()) == set(open_source(tmp_path / "hf").names())


def test_what_other_passes_made_is_refused(tmp_path: Path) -> None:
    tiny_checkpoint("deepseek_v3", 0, tmp_path / "hf")
    restored(tmp_path / "hf", tmp_path / "model")
    manifest = tmp_path / "model" / MANIFEST
    reseal(manifest, lambda fields: fields.update(optimize_level=1))
    refused(tmp_path / "model", "nodes")
    reseal(manifest, lambda fields: fields.update(optimize_level=3))
    change_json(tmp_path / "model" / "config.json", kv_lora_rank=20)
    reseal(manifest)
    refused(tmp_path / "model", "kv_a")


def refused(path: Path, what: str) -> None:
    with pytest.raises(ArtifactError, match="as this version makes") as error:
        RestoredSource(Artifact.open(path))
    assert what in str(error.value)
    assert "checkpoint" in str(error.value.hint)
