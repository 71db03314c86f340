"""Models written as llama.cpp's converter does: the logits of transformers, whatever is stored."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType

from deepmnn.backends.base import F32
from deepmnn.backends.reference import ReferenceBackend
from deepmnn.errors import CheckpointError, UnsupportedModelError
from deepmnn.models import build
from deepmnn.source.gguf.config import config_of
from deepmnn.source.gguf.contents import read_contents
from deepmnn.source.open import has_weights, open_source
from deepmnn.source.source import Source
from gguf_files import write_floats, write_gguf
from parity import Runner, prompts_for, relative_error
from tiny_models import CONFIGS, DENSE, MLA, YARN, TinyModel, checkpoint_of, tiny_checkpoint

NOT_SAID = {("deepseek_v3", 2), ("deepseek", 2), ("deepseek", 3), ("deepseek_v2", 4)}
"""Configs with what no GGUF file says: rope_interleave false, moe_layer_freq, norm_topk_prob (of
deepseek), and an mscale that is not mscale_all_dim."""

WRITTEN = [case for case in DENSE if case not in NOT_SAID and case != ("deepseek", 0)]
"""deepseek without experts is no model of llama.cpp's."""


def logits(source: Source, ids: list[int]) -> F32:
    """Of a prompt, by the reference backend."""
    graph = build(source.config)
    backend = ReferenceBackend(graph, lambda name: graph.weights[name].expr.read(source))
    return Runner(backend).step({0: ids})[0]


def check(tiny: TinyModel, path: Path, tolerance: float = 1e-5) -> Source:
    """Asserts that the file's logits are the model's."""
    source = open_source(path)
    (ids,) = prompts_for([19], tiny.config["vocab_size"])
    assert relative_error(logits(source, ids), tiny.logits(ids)) <= tolerance
    return source


@pytest.mark.parametrize(("model_type", "index"), WRITTEN)
def test_logits_are_those_of_transformers(tmp_path: Path, model_type: str, index: int) -> None:
    tiny = tiny_checkpoint(model_type, index, tmp_path / "hf")
    write_gguf(tiny, tmp_path / "model.gguf")
    source = check(tiny, tmp_path / "model.gguf")
    assert source.config["model_type"] == model_type
    for name in source.names():
        np.testing.assert_array_equal(source.read(name), tiny.read(name), strict=True)
        assert source.shape(name) == tiny.read(name).shape
    layers = tiny.config["num_hidden_layers"]
    kept = {n for n in tiny.names() if f".layers.{layers}." not in n}
    assert set(source.names()) == kept - set(
        ["lm_head.weight"] if tiny.config.get("tie_word_embeddings") else []
    )


@pytest.mark.parametrize("model_type", ["deepseek_v2", "deepseek_v3"])
def test_files_from_before_keys_and_values_were_cut(tmp_path: Path, model_type: str) -> None:
    tiny = tiny_checkpoint(model_type, 1, tmp_path / "hf")
    write_gguf(tiny, tmp_path / "model.gguf", split_kv=False)
    check(tiny, tmp_path / "model.gguf")


@pytest.mark.parametrize(("model_type", "index"), [("llama", 2), ("qwen2", 1), ("qwen3", 1)])
def test_fused_queries_keys_and_values(tmp_path: Path, model_type: str, index: int) -> None:
    tiny = tiny_checkpoint(model_type, index, tmp_path / "hf")
    write_gguf(tiny, tmp_path / "model.gguf", fuse_qkv=True)
    check(tiny, tmp_path / "model.gguf")


ROUND = {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 96}
QUANTISED: dict[str, dict[str, Any]] = {
    "llama": ROUND | {"num_attention_heads": 4, "num_key_value_heads": 2},
    "qwen2": ROUND | {"num_attention_heads": 8, "num_key_value_heads": 2},
    "deepseek_v2": MLA
    | ROUND
    | {"moe_intermediate_size": 256, "kv_lora_rank": 256, "q_lora_rank": 256, "n_group": 1}
    | {"num_attention_heads": 4, "num_key_value_heads": 4, "topk_group": 1}
    | {"qk_nope_head_dim": 32, "qk_rope_head_dim": 32, "v_head_dim": 64},
}
KINDS = [
    *(GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q4_1, GGMLQuantizationType.Q5_0),
    *(GGMLQuantizationType.Q5_1, GGMLQuantizationType.Q8_0, GGMLQuantizationType.BF16),
    *(GGMLQuantizationType.TQ1_0, GGMLQuantizationType.TQ2_0, GGMLQuantizationType.F16),
]
"""What the package can write."""


def _mixed(name: str, values: F32) -> GGMLQuantizationType:
    """A type that fits the tensor: another for each."""
    if values.ndim == 1 or "ffn_gate_inp" in name:
        return GGMLQuantizationType.F32
    fitting = [k for k in KINDS if values.shape[-1] % gguf.GGML_QUANT_SIZES[k][0] == 0]
    return fitting[sum(name.encode()) % len(fitting)]


@pytest.mark.parametrize("model_type", QUANTISED)
def test_quantised_models(tmp_path: Path, model_type: str) -> None:
    """The oracle is transformers' model with what the package decodes."""
    fields = CONFIGS["llama"][0] | QUANTISED[model_type]
    tiny = checkpoint_of(model_type, fields, tmp_path / "hf")
    stored = write_gguf(tiny, tmp_path / "model.gguf", _mixed)
    source = open_source(tmp_path / "model.gguf")
    plain = write_gguf(tiny, tmp_path / "plain.gguf")
    assert any(not np.array_equal(stored[name], plain[name]) for name in stored)
    state = {name: torch.from_numpy(source.read(name).copy()) for name in tiny.names()}
    before = {name: value.clone() for name, value in tiny.model.state_dict().items()}
    assert state.keys() >= set(source.names()) - {"lm_head.weight"}
    # The package's numbers, in the file's order: the same as the source's, in Hugging Face's.
    written = open_source(write_floats(tiny, stored, tmp_path / "decoded.gguf"))
    for name in source.names():
        np.testing.assert_array_equal(source.read(name), written.read(name))
    try:
        tiny.model.load_state_dict(_stacked(tiny, state))
        (ids,) = prompts_for([19], tiny.config["vocab_size"])
        assert relative_error(logits(source, ids), tiny.logits(ids)) <= 1e-5
    finally:
        tiny.model.load_state_dict(before)


def _stacked(tiny: TinyModel, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Experts as transformers holds them."""
    found = {}
    for name, old in tiny.model.state_dict().items():
        layer, dot, projection = name.rpartition(".experts.")
        if not dot:
            found[name] = state.get(name, state["model.embed_tokens.weight"])
            continue
        experts = [f"{layer}.experts.{expert}" for expert in range(old.shape[0])]
        if projection == "down_proj":
            parts = [state[f"{expert}.down_proj.weight"] for expert in experts]
        else:
            halves = ("gate_proj", "up_proj")
            parts = [torch.cat([state[f"{e}.{half}.weight"] for half in halves]) for e in experts]
        found[name] = torch.stack(parts)
    return found


def test_a_split_model_is_read_whole(tmp_path: Path) -> None:
    tiny = tiny_checkpoint("llama", 1, tmp_path / "hf")
    write_gguf(tiny, tmp_path / "model.gguf", max_tensors=5)
    parts = sorted(tmp_path.glob("model-*.gguf"))
    assert len(parts) > 3
    for path in (parts[0], parts[2], tmp_path):
        check(tiny, path)
    assert open_source(parts[1]).paths == tuple(parts)
    parts[1].rename(tmp_path / "other.gguf")
    with pytest.raises(CheckpointError, match="is missing; expected all"):
        open_source(parts[0])
    with pytest.raises(CheckpointError, match="is part 1, from 0, of"):
        open_source(tmp_path / "other.gguf")
    (tmp_path / "other.gguf").write_bytes(parts[2].read_bytes())
    (tmp_path / "other.gguf").rename(parts[1])
    with pytest.raises(CheckpointError, match="is part 2, from 0"):
        open_source(parts[0])


def test_directories(tmp_path: Path) -> None:
    tiny = tiny_checkpoint("qwen2", 0, tmp_path / "hf")
    folder = tmp_path / "folder"
    folder.mkdir()
    write_gguf(tiny, folder / "a-F32.gguf")
    (folder / "mmproj-model-f16.gguf").write_bytes(b"GGUF")
    (folder / "config.json").write_text("{}")  # of another tool: the file's own counts
    check(tiny, folder)
    (folder / "b-Q8_0.gguf").write_bytes((folder / "a-F32.gguf").read_bytes())
    with pytest.raises(CheckpointError, match=r"several GGUF models.*a-F32\.gguf.*b-Q8_0\.gguf"):
        open_source(folder)
    check(tiny, folder / "b-Q8_0.gguf")
    write_gguf(tiny, tmp_path / "hf" / "beside.gguf")
    assert type(open_source(tmp_path / "hf")).__name__ == "Checkpoint", "as in transformers"


def test_a_given_config_comes_first(tmp_path: Path) -> None:
    """mscale, which no file says, is in the original config.json."""
    tiny = tiny_checkpoint("deepseek_v2", 4, tmp_path / "hf")
    write_gguf(tiny, tmp_path / "model.gguf")
    (ids,) = prompts_for([19], tiny.config["vocab_size"])
    alone = open_source(tmp_path / "model.gguf")
    assert relative_error(logits(alone, ids), tiny.logits(ids)) > 1e-4
    source = open_source(tmp_path / "model.gguf", config=tmp_path / "hf")
    assert relative_error(logits(source, ids), tiny.logits(ids)) <= 1e-5


@pytest.mark.parametrize("architecture", ["deepseek32", "deepseek4", "qwen3moe", "bert"])
def test_other_architectures_are_refused_by_name(tmp_path: Path, architecture: str) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", architecture)
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedModelError, match=f"'{architecture}'.*one of llama, qwen2"):
        open_source(tmp_path / "model.gguf")


@pytest.mark.parametrize("name", ["blk.0.attn_sinks.weight", "blk.7.attn_norm.weight", "extra"])
def test_a_tensor_that_nobody_knows_is_refused(tmp_path: Path, name: str) -> None:
    """It would change the model's numbers."""
    tiny = tiny_checkpoint("llama", 0, tmp_path / "hf")
    stored = write_gguf(tiny, tmp_path / "model.gguf")
    path = write_floats(tiny, stored | {name: np.ones(3, np.float32)}, tmp_path / "b.gguf")
    with pytest.raises(UnsupportedModelError, match=name.replace(".", r"\.")):
        open_source(path)


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("general.type", "imatrix", "general.type is 'imatrix'"),
        ("general.type", "adapter", "llama-export-lora"),
        ("llama.attention.causal", False, "attention.causal in .* is False"),
        ("llama.rope.scaling.attn_factor", 0.7, r"attn_factor in .* is 0\.7; expected 1"),
        ("llama.attention.layer_norm_rms_epsilon", None, "has no llama.attention.layer_norm"),
        ("llama.context_length", None, "has no llama.context_length; expected an integer"),
    ],
)
def test_keys_that_change_the_numbers_are_refused(
    tmp_path: Path, key: str, value: Any, match: str
) -> None:
    tiny = tiny_checkpoint("llama", 0, tmp_path / "hf")
    write_gguf(tiny, tmp_path / "model.gguf")
    contents = read_contents(tmp_path / "model.gguf")
    config_of(contents, "it")
    changed = contents.metadata | {key: value}
    if value is None:
        del changed[key]
    with pytest.raises((CheckpointError, UnsupportedModelError), match=match):
        config_of(replace(contents, metadata=changed), "it")


def test_a_file_by_another_name(tmp_path: Path) -> None:
    """Ollama calls its models sha256-…"""
    tiny = tiny_checkpoint("llama", 0, tmp_path / "hf")
    write_gguf(tiny, tmp_path / "model.gguf")
    for name in ("sha256-00ff", "MODEL.GGUF"):
        (tmp_path / "model.gguf").rename(tmp_path / name)
        assert has_weights(tmp_path / name)
        check(tiny, tmp_path / name)
        (tmp_path / name).rename(tmp_path / "model.gguf")


def test_the_scale_of_a_tensor_multiplies_it(tmp_path: Path) -> None:
    """NVFP4's second scale: one for a matrix, one for each expert."""
    tiny = tiny_checkpoint("deepseek_v2", 0, tmp_path / "hf")
    stored = write_gguf(tiny, tmp_path / "model.gguf")
    experts = stored["blk.1.ffn_up_exps.weight"].shape[0]
    scales = {
        "blk.0.attn_output.scale": np.array([0.5], np.float32),
        "blk.0.attn_output.input_scale": np.array([3.0], np.float32),
        "blk.1.ffn_up_exps.scale": np.arange(1, experts + 1, dtype=np.float32),
    }
    source = open_source(write_floats(tiny, stored | scales, tmp_path / "b.gguf"))
    name = "model.layers.0.self_attn.o_proj.weight"
    np.testing.assert_array_equal(source.read(name), tiny.read(name) * np.float32(0.5))
    name = "model.layers.1.mlp.experts.4.up_proj.weight"
    np.testing.assert_array_equal(source.read(name), tiny.read(name) * np.float32(5))


def test_yarn_with_a_factor_that_cancels_the_default(tmp_path: Path) -> None:
    """R1-0528-Qwen3-8B: attn_factor, under either of its keys."""
    rope = YARN | {"rope_theta": 1e4, "attention_factor": 1.0}
    fields = CONFIGS["qwen3"][0] | {"rope_parameters": rope}
    tiny = checkpoint_of("qwen3", fields, tmp_path / "hf")
    stored = write_gguf(tiny, tmp_path / "model.gguf")
    for key in ("rope.scaling.yarn_attn_factor", "rope.scaling.attn_factor"):
        said = {**rope, "attention_factor": None, key: 1 / (1 + 0.1 * math.log(4))}
        check(tiny, write_floats(tiny, stored, tmp_path / f"{key}.gguf", said))
