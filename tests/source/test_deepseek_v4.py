"""DeepSeek-V4's checkpoints: the published names, those of save_pretrained, FP8 and FP4."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from deepmnn import convert, export
from deepmnn.artifact.reader import Artifact
from deepmnn.artifact.restored import RestoredSource
from deepmnn.errors import CheckpointError, UnsupportedModelError
from deepmnn.graph.tensors import tensor_shapes
from deepmnn.models import build
from deepmnn.source.deepseek_v4_names import transformers_name
from deepmnn.source.open import open_source
from tiny_models import CONFIGS, TinyModel, checkpoint_of, tiny_checkpoint

PUBLISHED = {
    # names in model.safetensors.index.json of DeepSeek-V4-Flash, and those of transformers
    "embed.weight": "embed_tokens.weight",
    "norm.weight": "norm.weight",
    "hc_head_fn": "hc_head.hc_fn",
    "layers.3.attn_norm.weight": "layers.3.input_layernorm.weight",
    "layers.3.ffn_norm.weight": "layers.3.post_attention_layernorm.weight",
    "layers.3.hc_attn_scale": "layers.3.attn_hc.scale",
    "layers.3.hc_ffn_base": "layers.3.ffn_hc.base",
    "layers.3.attn.wq_a.scale": "layers.3.self_attn.q_a_proj.scale",
    "layers.3.attn.wq_b.weight": "layers.3.self_attn.q_b_proj.weight",
    "layers.3.attn.q_norm.weight": "layers.3.self_attn.q_a_norm.weight",
    "layers.3.attn.kv_norm.weight": "layers.3.self_attn.kv_norm.weight",
    "layers.3.attn.wkv.weight": "layers.3.self_attn.kv_proj.weight",
    "layers.3.attn.wo_a.weight": "layers.3.self_attn.o_a_proj.weight",
    "layers.3.attn.wo_b.weight": "layers.3.self_attn.o_b_proj.weight",
    "layers.3.attn.attn_sink": "layers.3.self_attn.sinks",
    "layers.3.attn.compressor.ape": "layers.3.self_attn.compressor.position_bias",
    "layers.3.attn.compressor.norm.weight": "layers.3.self_attn.compressor.kv_norm.weight",
    "layers.3.attn.compressor.wgate.weight": "layers.3.self_attn.compressor.gate_proj.weight",
    "layers.3.attn.indexer.compressor.wkv.weight": (
        "layers.3.self_attn.compressor.indexer.kv_proj.weight"
    ),
    "layers.3.attn.indexer.compressor.ape": ("layers.3.self_attn.compressor.indexer.position_bias"),
    "layers.3.attn.indexer.wq_b.weight": "layers.3.self_attn.compressor.indexer.q_b_proj.weight",
    "layers.3.attn.indexer.weights_proj.weight": (
        "layers.3.self_attn.compressor.indexer.scorer.weights_proj.weight"
    ),
    "layers.3.ffn.gate.tid2eid": "layers.3.mlp.gate.tid2eid",
    "layers.3.ffn.gate.bias": "layers.3.mlp.gate.e_score_correction_bias",
    "layers.3.ffn.experts.17.w2.weight": "layers.3.mlp.experts.17.down_proj.weight",
    "layers.3.ffn.shared_experts.w3.scale": "layers.3.mlp.shared_experts.up_proj.scale",
    "mtp.0.hc_head_fn": "mtp.0.hc_head.hc_fn",
    "mtp.0.e_proj.scale": "mtp.0.e_proj.scale",
    "mtp.0.attn.wkv.weight": "mtp.0.self_attn.kv_proj.weight",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_names(name: str) -> None:
    assert transformers_name(name) == f"model.{PUBLISHED[name]}"


@pytest.mark.parametrize("index", range(len(CONFIGS["deepseek_v4"])))
def test_what_transformers_saves_is_read(tmp_path: Path, index: int) -> None:
    """save_pretrained writes names that are neither the published nor its own."""
    tiny = tiny_checkpoint("deepseek_v4", index, tmp_path / "plain")
    tiny.model.save_pretrained(tmp_path / "saved")  # type: ignore[operator]
    (tmp_path / "saved" / "config.json").write_text(json.dumps(tiny.config))
    source = open_source(tmp_path / "saved")
    for name, shape in tensor_shapes(build(tiny.config)).items():
        if not name.startswith("model.mtp."):
            assert source.shape(name) == shape
            np.testing.assert_array_equal(source.read(name), tiny.read(name))


def own_name(name: str) -> str:
    """The published name of one of transformers' (the tests' own table, by hand)."""
    name = name.removeprefix("model.")
    pairs = [
        ("embed_tokens.", "embed."),
        ("lm_head.", "head."),
        ("hc_head.hc_", "hc_head_"),
        ("input_layernorm.", "attn_norm."),
        ("post_attention_layernorm.", "ffn_norm."),
        ("attn_hc.", "hc_attn_"),
        ("ffn_hc.", "hc_ffn_"),
        ("mlp.gate.e_score_correction_bias", "ffn.gate.bias"),
        ("compressor.indexer.scorer.weights_proj", "indexer.weights_proj"),
        ("compressor.indexer.q_b_proj", "indexer.wq_b"),
        ("compressor.indexer.", "indexer.compressor."),
        ("compressor.kv_norm", "compressor.norm"),
        ("position_bias", "ape"),
        ("q_a_proj", "wq_a"),
        ("q_a_norm", "q_norm"),
        ("q_b_proj", "wq_b"),
        ("kv_proj", "wkv"),
        ("o_a_proj", "wo_a"),
        ("o_b_proj", "wo_b"),
        ("sinks", "attn_sink"),
    ]
    gate = "wgate" if "compressor" in name else "w1"
    pairs += [("gate_proj", gate), ("down_proj", "w2"), ("up_proj", "w3")]
    for theirs, ours in [*pairs, ("self_attn.", "attn."), ("mlp.", "ffn.")]:
        name = name.replace(theirs, ours)
    return name


def fp4(values: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """[rows, cols] in FP4 by hand: bytes, exponents, and what they stand for."""
    levels = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], "f4")
    rows, cols = values.shape
    groups = values.reshape(rows, cols // 32, 32)
    exponents = np.ceil(np.log2(np.abs(groups).max(2) / 6)).astype(int)
    scaled = groups / np.exp2(exponents)[:, :, None]
    codes = np.abs(scaled[..., None] - levels).argmin(-1).reshape(rows, cols)
    packed = (codes[:, 0::2] | codes[:, 1::2] << 4).astype(np.uint8).view(np.int8)
    exact = levels[codes].reshape(groups.shape) * np.exp2(exponents).astype("f4")[:, :, None]
    scales = np.exp2(exponents.astype("f4")).astype(ml_dtypes.float8_e8m0fnu).view(np.uint8)
    return (
        torch.from_numpy(packed),
        torch.from_numpy(scales).view(torch.float8_e8m0fnu),
        exact.reshape(rows, cols),
    )


@pytest.fixture(name="published")
def _published(tmp_path: Path) -> tuple[Path, TinyModel, dict[str, np.ndarray]]:
    """A tiny checkpoint as published: its own names, experts in FP4, q_a_proj in FP8."""
    fields = CONFIGS["deepseek_v4"][0] | {"hidden_size": 64, "moe_intermediate_size": 32}
    tiny = checkpoint_of("deepseek_v4", fields, tmp_path / "plain")
    stored: dict[str, torch.Tensor] = {}
    exact: dict[str, np.ndarray] = {}
    for name in tiny.names():
        own, values = own_name(name), tiny.read(name)
        if ".experts." in name:
            stored[own], scale, exact[name] = fp4(values)
            stored[own.removesuffix("weight") + "scale"] = scale
        elif name.endswith("q_a_proj.weight"):
            codes = torch.from_numpy(values / 0.5).to(torch.float8_e4m3fn)
            stored[own] = codes
            scale = torch.full((1, 1), 0.5).to(torch.float8_e8m0fnu)
            stored[own.removesuffix("weight") + "scale"] = scale
            exact[name] = codes.float().numpy() * np.float32(0.5)
        elif name.endswith("tid2eid"):
            stored[own], exact[name] = torch.from_numpy(values).to(torch.int64), values
        else:
            stored[own], exact[name] = torch.from_numpy(values.copy()), values
    path = tmp_path / "published"
    path.mkdir()
    save_file(stored, path / "model.safetensors")
    quantization = {"quant_method": "fp8", "fmt": "e4m3", "scale_fmt": "ue8m0"}
    quantization |= {"weight_block_size": [128, 128]}
    config = tiny.config | {"quantization_config": quantization, "expert_dtype": "fp4"}
    (path / "config.json").write_text(json.dumps(config))
    return path, tiny, exact


def test_a_published_checkpoint_is_read_to_the_bit(published: Any) -> None:
    path, tiny, exact = published
    source = open_source(path)
    for name, shape in tensor_shapes(build(tiny.config)).items():
        assert source.shape(name) == shape
        np.testing.assert_array_equal(source.read(name), exact[name])
        if ".experts." in name:
            assert source.kept_format(name) == "mxfp4"
            np.testing.assert_array_equal(source.codes(name).values()[:, : shape[1]], exact[name])


def test_exponents_of_another_shape_are_refused(published: Any) -> None:
    path, _, _ = published
    tensors = load_file(path / "model.safetensors")
    name = "layers.0.ffn.experts.0.w1"
    tensors[f"{name}.scale"] = tensors[f"{name}.scale"][:, :1].clone()
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(CheckpointError, match="a scale for each 32 columns"):
        open_source(path).read("model.layers.0.mlp.experts.0.gate_proj.weight")


def test_v4_1_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModelError, match=r"DeepSeek-V4\.1"):
        build({"model_type": "deepseek_v41"})


@pytest.mark.parametrize(
    ("target", "match"),
    [
        ("mnn", "hyper-connections or compressed attention"),
        ("gguf", "'deepseek_v4' has no name in GGUF"),
        ("hf", "a model of type deepseek_v4"),
    ],
)
def test_it_is_not_exported(tmp_path: Path, target: str, match: str) -> None:
    tiny = tiny_checkpoint("deepseek_v4", 0, tmp_path / "source")
    convert(tiny.path, tmp_path / "model", "fp32")
    with pytest.raises(UnsupportedModelError, match=match):
        export(tmp_path / "model", tmp_path / "exported.gguf", target)


def test_a_converted_model_gives_its_tensors_back(tmp_path: Path) -> None:
    """Tables and biases of windows, too, which are stored as vectors."""
    tiny = tiny_checkpoint("deepseek_v4", 0, tmp_path / "source")
    convert(tiny.path, tmp_path / "model", "fp32")
    restored = RestoredSource(Artifact.open(tmp_path / "model"))
    for name in restored.names():
        np.testing.assert_array_equal(restored.read(name), tiny.read(name))
