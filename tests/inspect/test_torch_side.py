"""PyTorch's values under the names of our graph, against the reference backend's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepmnn.errors import CheckpointError, RequestError
from deepmnn.inspect.sides.torch import TorchSide
from deepmnn.measure.torch_model import TorchModel
from gguf_files import write_gguf
from tiny_models import LOADED, WHOLE_BLOCKS, checkpoint_of, tiny_checkpoint
from whole_values import checkpoint_values, merged

SAMPLES = [np.array(ids, np.int32) for ids in ([5, 1, 7, 88, 3, 19, 2], [42], [0, 96, 11, 11])]
ALWAYS = {"input_layernorm", "post_attention_layernorm", "attention_residual", "mlp_residual"} | {
    f"self_attn.{name}" for name in ("q_rope", "k_rope", "attention", "o_proj")
}
GROUPED = {f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj")}
LATENT = {f"self_attn.{name}" for name in ("kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj")}
LOW_RANK = {f"self_attn.{name}" for name in ("q_a_proj", "q_a_layernorm", "q_b_proj")}
INDEXER = {f"self_attn.indexer.{name}" for name in ("wq_b", "wk", "k_norm", "weights_proj")}
MLP = ("gate_proj", "up_proj", "silu", "mul", "down_proj")


def expected(config: dict[str, Any], has_experts: bool) -> set[str]:
    """What must show of a layer."""
    names = set(ALWAYS)
    if "kv_lora_rank" in config:
        names |= LATENT | (LOW_RANK if config.get("q_lora_rank") else {"self_attn.q_proj"})
    else:
        names |= GROUPED
    if "index_topk" in config:
        names |= INDEXER
    if config["model_type"] == "qwen3":
        names |= {"self_attn.q_norm", "self_attn.k_norm"}
    if not has_experts:
        return names | {f"mlp.{name}" for name in MLP}
    names |= {"mlp.gate", "mlp.gate.top_k", "mlp.experts.combine"}
    if config.get("n_shared_experts"):
        names |= {"mlp.add", *(f"mlp.shared_experts.{name}" for name in MLP)}
    return names


@pytest.mark.parametrize(("model_type", "index"), LOADED)
def test_values_are_the_reference_s(model_type: str, index: int, tmp_path: Path) -> None:
    tiny = tiny_checkpoint(model_type, index, tmp_path)
    side = TorchSide(TorchModel(tmp_path, threads=1))
    found = list(side.layers(SAMPLES))
    want = checkpoint_values(tmp_path, SAMPLES)
    for name, value in merged(found).items():
        assert value.shape == want[name].shape, name
        if value.dtype == np.int32:
            np.testing.assert_array_equal(value, want[name], err_msg=name)
        else:
            assert value.dtype == np.float32
            largest = np.abs(want[name]).max()
            np.testing.assert_allclose(value, want[name], atol=1e-5 * largest, err_msg=name)
    assert len(found) == tiny.config["num_hidden_layers"] + 1
    assert set(found[-1]) == {"hidden", "logits"}
    for number, layer in enumerate(found[:-1]):
        has_experts = f"layers.{number}.mlp.gate" in want
        names = {f"layers.{number}.{name}" for name in expected(tiny.config, has_experts)}
        shown = set(layer) - {"embed_tokens"}
        weights = {name for name in shown if name.startswith(f"layers.{number}.mlp.gate.")} - names
        assert shown - weights == names
        assert len(weights) == has_experts
        assert ("embed_tokens" in layer) == (number == 0)
    logits = np.concatenate([tiny.logits(sample.tolist()) for sample in SAMPLES])
    np.testing.assert_allclose(found[-1]["logits"], logits, atol=1e-5 * np.abs(logits).max())


def error(a: Any, b: Any) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def test_a_fault_shows_first_where_it_is(tmp_path: Path) -> None:
    """RoPE's base, which only one of the two reads."""
    checkpoint_of("deepseek_v3", WHOLE_BLOCKS["deepseek_v3"], tmp_path)
    side = TorchSide(TorchModel(tmp_path, threads=1))
    config = json.loads((tmp_path / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] *= 1.5
    (tmp_path / "config.json").write_text(json.dumps(config))
    want = checkpoint_values(tmp_path, SAMPLES)
    found = merged(list(side.layers(SAMPLES)))
    wrong = {name for name, value in found.items() if error(value, want[name]) > 1e-3}
    layer = "layers.0.self_attn."
    assert wrong >= {layer + "q_rope", layer + "k_rope", layer + "attention", "logits"}
    assert not wrong & {layer + "q_b_proj", layer + "kv_b_proj", "layers.0.input_layernorm"}


@pytest.mark.parametrize("model_type", ["qwen2", "deepseek"])
def test_a_gguf_file(model_type: str, tmp_path: Path) -> None:
    tiny = checkpoint_of(model_type, WHOLE_BLOCKS[model_type], tmp_path / "hf")
    write_gguf(tiny, tmp_path / "model.gguf")
    found = merged(list(TorchSide(TorchModel(tmp_path / "model.gguf", threads=1)).layers(SAMPLES)))
    want = checkpoint_values(tmp_path / "hf", SAMPLES)
    assert len(found) >= 35
    for name, value in found.items():
        np.testing.assert_allclose(value, want[name], atol=1e-5 * np.abs(want[name]).max())


def test_a_consumer_may_stop_and_begin_again(tmp_path: Path) -> None:
    tiny = tiny_checkpoint("deepseek_v2", 0, tmp_path)
    model = TorchModel(tmp_path, threads=1)
    side = TorchSide(model)
    layers = side.layers(SAMPLES)
    first = next(layers)
    assert not torch.is_inference_mode_enabled()
    layers.close()
    assert not any(module._forward_hooks for module in model.model.modules())
    again = next(side.layers(SAMPLES[:1]))
    for name, value in again.items():
        np.testing.assert_allclose(value, first[name][: len(value)], rtol=1e-4, atol=1e-5)
    ids = SAMPLES[0].tolist()
    logits = np.concatenate(list(model.predict(ids)))
    np.testing.assert_allclose(logits, tiny.logits(ids), atol=1e-5 * np.abs(logits).max())


def test_ids_of_another_vocabulary(tmp_path: Path) -> None:
    tiny_checkpoint("llama", 0, tmp_path)
    side = TorchSide(TorchModel(tmp_path, threads=1))
    assert (side.label, side.vocab_size) == ("PyTorch, float32", 97)
    for samples in ([], [np.empty(0, np.int32)], [np.array([97], np.int32)]):
        with pytest.raises(RequestError):
            next(side.layers(samples))


def test_fields_that_deepseek_moe_cannot_have(tmp_path: Path) -> None:
    tiny_checkpoint("deepseek", 1, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for wrong in ({"n_routed_experts": "many"}, {"num_experts_per_tok": None}):
        (tmp_path / "config.json").write_text(json.dumps(config | wrong))
        with pytest.raises(CheckpointError):
            TorchModel(tmp_path)
