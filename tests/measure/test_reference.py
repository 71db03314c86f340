"""The reference: PyTorch's model beside ours, and what cannot be compared."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import deepmnn
from byte_tokenizer import write_tokenizer
from deepmnn import LLM
from deepmnn.conversion.bundled import CHECKPOINT
from deepmnn.errors import CheckpointError, MissingDependencyError, RequestError
from deepmnn.measure import torch_model
from deepmnn.measure.judge import judge
from deepmnn.measure.predictions import predictions
from deepmnn.measure.reference import check_comparable, reference_options
from deepmnn.measure.torch_model import TorchModel
from gguf_files import write_gguf
from tiny_artifact import tiny_artifact, write_config
from tiny_models import CONFIGS, LLAMA, MLA, checkpoint_of


@pytest.fixture(scope="module")
def tiny_r1() -> LLM:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("DEEPMNN_ISA", raising=False)
        return deepmnn.load(CHECKPOINT, quant="fp32", threads=1)


def test_float32_is_what_pytorch_computes(tiny_r1: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_model, "ROWS", 16)
    monkeypatch.setattr("deepmnn.measure.predictions.ROWS", 16)
    truth = TorchModel("tiny-r1", threads=1)
    check_comparable(tiny_r1, truth)
    ids = tiny_r1.tokenizer.encode("What is 12 + 30? 12 + 30 = 42. " * 2)
    found = judge(predictions(tiny_r1), [ids, ids[:5]], truth.predict)
    assert found.divergence is not None
    assert found.divergence.largest < 1e-6
    assert found.divergence.same_first_choice == 1
    assert found.loss_change == pytest.approx(0, abs=1e-5)


def test_without_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "deepmnn\[torch\]"'):
        TorchModel(CHECKPOINT)


def copy_of_tiny_r1(folder: Path) -> Path:
    shutil.copytree(CHECKPOINT, folder)
    return folder


def test_what_pytorch_cannot_load(tmp_path: Path, artifact: Path) -> None:
    with pytest.raises(CheckpointError, match="is a converted model"):
        TorchModel(artifact)
    with pytest.raises(CheckpointError, match="has no config"):
        TorchModel(tmp_path)
    write_config(tmp_path / "empty")
    with pytest.raises(CheckpointError, match="transformers cannot load"):
        TorchModel(tmp_path / "empty")
    lacking = copy_of_tiny_r1(tmp_path / "lacking")
    weights = load_file(lacking / "model.safetensors")
    del weights["model.layers.1.self_attn.o_proj.weight"]
    save_file(weights, lacking / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 weights.*o_proj"):
        TorchModel(lacking)


def logits_of(model: TorchModel, ids: list[int]) -> np.ndarray:
    return np.concatenate(list(model.predict(ids)))


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "deepseek_v2"])
def test_files_are_references(tmp_path: Path, model_type: str) -> None:
    """A GGUF file by its name and by its directory's, and PyTorch's own beside a config.json."""
    fields = CONFIGS[model_type][0]
    if model_type == "deepseek_v2":  # transformers' kernel of experts wants rows of 16 bytes
        sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4}
        fields = MLA | sizes | {"moe_intermediate_size": 16}
    tiny = checkpoint_of(model_type, fields, tmp_path / "hf")
    ids = [3, 1, 4, 1, 5, 9]
    want = tiny.logits(ids)
    (tmp_path / "gguf").mkdir()
    write_gguf(tiny, tmp_path / "gguf" / "model.gguf")
    weights = {name: torch.from_numpy(tiny.read(name)) for name in tiny.names()}
    torch.save(weights, tiny.path / "model.pt")
    for path in ("gguf/model.gguf", "gguf", "hf/model.pt"):
        made = TorchModel(tmp_path / path, threads=1)
        assert (made.vocab_size, made.has_tokenizer) == (want.shape[1], False)
        np.testing.assert_allclose(logits_of(made, ids), want, atol=1e-5 * np.abs(want).max())


def test_a_file_brings_its_tokenizer(tmp_path: Path) -> None:
    shutil.copytree(CHECKPOINT, tmp_path / "hf")
    made = TorchModel(tmp_path / "hf" / "model.safetensors", threads=1)
    assert made.has_tokenizer
    whole = TorchModel(CHECKPOINT, threads=1)
    ids = whole.tokenizer.encode("1 + 1 =")
    assert made.tokenizer.encode("1 + 1 =") == ids
    np.testing.assert_array_equal(logits_of(made, ids), logits_of(whole, ids))


def test_a_file_that_transformers_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(checkpoint_of("llama", LLAMA, tmp_path / "hf"), tmp_path / "model.gguf")
    import transformers

    monkeypatch.setattr(transformers, "MODEL_FOR_CAUSAL_LM_MAPPING", {})
    with pytest.raises(CheckpointError, match=r"transformers cannot load .*model\.gguf"):
        TorchModel(tmp_path / "model.gguf")
    with pytest.raises(CheckpointError, match=r"missing\.gguf"):
        TorchModel(tmp_path / "missing.gguf")


def test_code_of_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    path = copy_of_tiny_r1(tmp_path / "hostile")
    config = json.loads((path / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "code.Mine"}}
    config["auto_map"]["AutoConfig"] = "code.Config"
    (path / "config.json").write_text(json.dumps(config))
    (path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(CheckpointError, match="transformers cannot load"):
        TorchModel(path)
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_is_a_reference_in_float32(artifact: Path, tmp_path: Path) -> None:
    assert reference_options(str(CHECKPOINT)).quant == "fp32"
    assert reference_options("tiny-r1").quant == "fp32"
    assert reference_options("owner/name").quant == "fp32"
    assert reference_options(str(artifact)).quant is None
    made = reference_options(str(artifact), "reference", 2, 96)
    assert (made.backend, made.threads, made.cache_tokens) == ("reference", 2, 96)
    with pytest.raises(RequestError):
        reference_options(str(artifact), "nonsense")


def test_models_of_different_tokens_are_not_compared(tmp_path: Path, model: LLM) -> None:
    class Other:
        vocab_size = model.vocab_size + 1
        has_tokenizer = False
        tokenizer: Any = None

    other = Other()
    with pytest.raises(RequestError, match="the same vocabulary"):
        check_comparable(model, other)
    other.vocab_size = model.vocab_size
    check_comparable(model, other)
    other.has_tokenizer = True
    check_comparable(model, deepmnn.load(tiny_artifact(tmp_path), "reference"))
    write_tokenizer(tmp_path / "other")
    text = (tmp_path / "other" / "tokenizer.json").read_text()
    (tmp_path / "other" / "tokenizer.json").write_text(text.replace("<think>", "<thought>"))
    other.tokenizer = deepmnn.load(tmp_path / "model").tokenizer.__class__(tmp_path / "other")
    with pytest.raises(RequestError, match="tokenizer differs from the model's, first in '<th"):
        check_comparable(model, other)
