"""GGUF files read back: by the gguf package, and by transformers' own loader of GGUF."""

from __future__ import annotations

import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from byte_tokenizer import R1_TEMPLATE, write_tokenizer
from deepmnn.conversion.convert import convert
from deepmnn.conversion.kept import original
from deepmnn.errors import (
    CheckpointError,
    MissingDependencyError,
    RequestError,
    StorageError,
    UnsupportedModelError,
)
from deepmnn.exporters.exported import Exported
from deepmnn.exporters.gguf.export import check_gguf, export_gguf
from exporters.folders import change_json, in_dying_child, tree
from tiny_models import CONFIGS, MLA, YARN, Config, TinyModel, checkpoint_of, tiny_checkpoint

gguf = pytest.importorskip("gguf")

EVEN: Config = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
EVEN |= {"num_key_value_heads": 2, "head_dim": 16}
IDS = [(11 * n) % 97 for n in range(40)]


def exported(model: Path, out: Path, **options: Any) -> Exported:
    with original(model) as source:
        return export_gguf(source, out, **options)


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keys, and tensors as gguf.GGUFReader has them."""
    reader = gguf.GGUFReader(path)
    keys = {key: field.contents() for key, field in reader.fields.items()}
    return keys, {tensor.name: tensor for tensor in reader.tensors}


def numbers(tensor: Any) -> np.ndarray:
    flat = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    return np.asarray(flat, np.float32).reshape([int(n) for n in reversed(tensor.shape)])


# ----------------------------------------------------------------------------- what is in it


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("index", [0, 1])
def test_transformers_reads_it(model_type: str, index: int, tmp_path: Path) -> None:
    tiny = tiny_checkpoint(model_type, index, tmp_path / "hf")
    exported(tmp_path / "hf", tmp_path / "model.gguf", type="F32")
    path = str(tmp_path / "model.gguf")
    fields = load_gguf_checkpoint(path)["config"]
    if model_type == "qwen3":  # which transformers forgets
        fields["head_dim"] = read(tmp_path / "model.gguf")[0]["qwen3.attention.key_length"]
    config = transformers.AutoConfig.for_model(**fields)
    loaded = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    tensors = load_gguf_checkpoint(path, return_tensors=True, model_to_load=loaded)["tensors"]
    missing, unexpected = loaded.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert missing == (["lm_head.weight"] if index == 1 else [])
    loaded.tie_weights()
    with torch.no_grad():
        found = loaded.float()(input_ids=torch.tensor([IDS])).logits[0].numpy()
    assert np.abs(found - tiny.logits(IDS)).max() < 1e-4


def test_latent_attention_and_experts(tmp_path: Path) -> None:
    """Every tensor of deepseek2 by a formula of its own."""
    tiny = tiny_checkpoint("deepseek_v3", 0, tmp_path / "hf")
    report = exported(tmp_path / "hf", tmp_path / "m.gguf", type="F32")
    keys, tensors = read(tmp_path / "m.gguf")
    assert keys["general.architecture"] == "deepseek2"
    expected = {
        "attention.key_length_mla": 16,
        "attention.value_length_mla": 14,
        "attention.key_length": 24,
        "attention.head_count_kv": 1,
        "expert_count": 12,
        "expert_used_count": 3,
        "expert_gating_func": 2,
        "expert_weights_norm": True,
        "expert_group_count": 4,
        "expert_group_used_count": 2,
        "leading_dense_block_count": 1,
        "rope.dimension_count": 6,
    }
    assert {key: keys[f"deepseek2.{key}"] for key in expected} == expected
    assert keys["deepseek2.expert_weights_scale"] == 2.5
    kv_b = tiny.read("model.layers.1.self_attn.kv_b_proj.weight")
    for head in range(3):
        mine = kv_b[24 * head : 24 * head + 24]
        assert np.array_equal(numbers(tensors["blk.1.attn_k_b.weight"])[head], mine[:10].T)
        assert np.array_equal(numbers(tensors["blk.1.attn_v_b.weight"])[head], mine[10:])
    for kind in ("gate", "up", "down"):
        stacked = numbers(tensors[f"blk.1.ffn_{kind}_exps.weight"])
        for expert in range(12):
            name = f"model.layers.1.mlp.experts.{expert}.{kind}_proj.weight"
            assert np.array_equal(stacked[expert], tiny.read(name))
    bias = numbers(tensors["blk.1.exp_probs_b.bias"])
    assert np.array_equal(bias, tiny.read("model.layers.1.mlp.gate.e_score_correction_bias"))
    plain = {"attn_q_a": "self_attn.q_a_proj", "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa"}
    plain |= {"ffn_gate_inp": "mlp.gate", "ffn_up_shexp": "mlp.shared_experts.up_proj"}
    for ours, theirs in plain.items():
        found = numbers(tensors[f"blk.1.{ours}.weight"])
        assert np.array_equal(found, tiny.read(f"model.layers.1.{theirs}.weight"))
    assert not any(name.startswith("blk.2.") for name in tensors)
    assert "multi-token-prediction layers are left out" in report.note


def test_rows_that_are_rotated_together_are_neighbours(tmp_path: Path) -> None:
    tiny = tiny_checkpoint("deepseek", 3, tmp_path / "hf")
    change_json(tmp_path / "hf" / "config.json", norm_topk_prob=False)
    exported(tmp_path / "hf", tmp_path / "m.gguf", type="F32")
    _, tensors = read(tmp_path / "m.gguf")
    for ours, theirs, heads in (("attn_q", "q_proj", 6), ("attn_k", "k_proj", 2)):
        weight = tiny.read(f"model.layers.0.self_attn.{theirs}.weight")
        found = numbers(tensors[f"blk.0.{ours}.weight"])
        size = len(weight) // heads
        for head in range(heads):
            for row in range(size // 2):
                for half in range(2):
                    mine = weight[head * size + half * size // 2 + row]
                    assert np.array_equal(found[head * size + 2 * row + half], mine)


def test_llama3s_scaling_is_a_tensor(tmp_path: Path) -> None:
    tiny_checkpoint("llama", 2, tmp_path / "hf")
    exported(tmp_path / "hf", tmp_path / "m.gguf")
    _, tensors = read(tmp_path / "m.gguf")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "hf")
    scaled, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 500000.0 ** -(torch.arange(0, 10, 2) / 10)
    assert np.allclose(numbers(tensors["rope_freqs.weight"]), (plain / scaled).numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    ("mscale", "mscale_all_dim"), [(1.0, 1.0), (0.707, 0.707), (1.0, 0.5), (None, None)]
)
def test_yarn_of_latent_attention(
    tmp_path: Path, mscale: float | None, mscale_all_dim: float | None
) -> None:
    """What llama.cpp makes of the keys (its src/llama-context.cpp and src/models/deepseek2.cpp) is
    what the model has.
    """
    scaling = YARN | {"rope_theta": 1e4, "mscale": mscale, "mscale_all_dim": mscale_all_dim}
    tiny_checkpoint("deepseek_v3", 0, tmp_path / "hf")
    rope = {key: value for key, value in scaling.items() if value is not None}
    change_json(tmp_path / "hf" / "config.json", rope_parameters=rope)
    exported(tmp_path / "hf", tmp_path / "m.gguf")
    keys, _ = read(tmp_path / "m.gguf")
    log = np.log(keys["deepseek2.rope.scaling.factor"])
    multiplier = keys.get("deepseek2.rope.scaling.yarn_log_multiplier", 0.0) / 0.1
    factor = keys.get("deepseek2.rope.scaling.attn_factor", 1.0)
    on_angles = factor if multiplier else factor * (1 + 0.1 * log)
    on_scores = (on_angles * (1 + 0.1 * multiplier * log)) ** 2

    def m(x: float | None, default: float) -> float:
        return 1 + 0.1 * (default if x is None else x) * np.log(4.0)

    assert np.isclose(on_angles, m(mscale, 1.0) / m(mscale_all_dim, 0.0), rtol=1e-5)
    assert np.isclose(on_scores, m(mscale_all_dim, 0.0) ** 2, rtol=1e-5)
    assert keys["deepseek2.rope.scaling.original_context_length"] == 48


# ------------------------------------------------------------------------------------- types


@pytest.fixture(scope="module")
def even(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A model whose rows are whole blocks, with a tokenizer."""
    fields = CONFIGS["llama"][0] | EVEN | {"vocab_size": 288}
    path = tmp_path_factory.mktemp("even") / "hf"
    tiny = checkpoint_of("llama", fields, path)
    write_tokenizer(path)
    return tiny


@pytest.mark.parametrize("type", ["Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "BF16", "F16", "F32"])
def test_types(even: TinyModel, type: str, tmp_path: Path) -> None:
    report = exported(even.path, tmp_path / "m.gguf", type=type.lower())
    keys, tensors = read(tmp_path / "m.gguf")
    assert keys["general.file_type"] == {
        "Q8_0": 7, "Q5_1": 9, "Q5_0": 8, "Q4_1": 3, "Q4_0": 2, "BF16": 32, "F16": 1, "F32": 0
    }[type]  # fmt: skip
    head = tensors["output.weight"]
    wide = type if type in ("BF16", "F16", "F32") else "Q8_0"
    assert (head.tensor_type.name, tensors["token_embd.weight"].tensor_type.name) == (wide, type)
    up = tensors["blk.1.ffn_up.weight"]
    assert up.tensor_type.name == type
    assert all(t.tensor_type.name == "F32" for n, t in tensors.items() if "norm" in n)
    weight = even.read("model.layers.1.mlp.up_proj.weight")
    whole = gguf.quants.quantize(weight, up.tensor_type)
    assert np.array_equal(up.data.reshape(-1).view(np.uint8), whole.reshape(-1).view(np.uint8))
    assert report.nbytes == sum(int(tensor.n_bytes) for tensor in tensors.values())
    assert f", {type}" in report.contents


def test_rows_of_no_whole_blocks_are_f16(tmp_path: Path) -> None:
    tiny = tiny_checkpoint("qwen2", 0, tmp_path / "hf")
    exported(tmp_path / "hf", tmp_path / "m.gguf", type="Q4_0")
    _, tensors = read(tmp_path / "m.gguf")
    down = tensors["blk.0.ffn_down.weight"]
    assert down.tensor_type.name == "F16"
    assert np.array_equal(down.data, tiny.read("model.layers.0.mlp.down_proj.weight").astype("f2"))
    assert tensors["blk.0.attn_q.bias"].tensor_type.name == "F32"


def test_a_head_that_is_the_embedding(tmp_path: Path) -> None:
    checkpoint_of("llama", CONFIGS["llama"][1] | EVEN, tmp_path / "hf")
    exported(tmp_path / "hf", tmp_path / "m.gguf", type="Q4_0")
    _, tensors = read(tmp_path / "m.gguf")
    assert "output.weight" not in tensors
    assert tensors["token_embd.weight"].tensor_type.name == "Q8_0"
    assert tensors["blk.0.attn_q.weight"].tensor_type.name == "Q4_0"


def test_a_converted_model(even: TinyModel, tmp_path: Path) -> None:
    """Its numbers, whatever rounding and fusing made of them."""
    convert(even.path, tmp_path / "w8", "w8", report=False)
    exported(tmp_path / "w8", tmp_path / "w8.gguf", type="F32")
    exported(even.path, tmp_path / "hf.gguf", type="F32")
    _, ours = read(tmp_path / "w8.gguf")
    keys, theirs = read(tmp_path / "hf.gguf")
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        wanted = numbers(theirs[name])
        assert np.abs(numbers(tensor) - wanted).max() <= 0.01 * np.abs(wanted).max()
    assert keys["tokenizer.chat_template"] == R1_TEMPLATE


# ------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("model_type", "index", "what"),
    [
        ("qwen3", 2, "attention_bias"),
        ("deepseek", 2, "moe_layer_freq"),
        ("deepseek_v2", 3, "attention_bias"),
        ("deepseek_v3", 2, "attention_bias"),
        ("deepseek_v32", 0, "'deepseek_v32' has no name in GGUF"),
    ],
)
def test_what_llama_cpp_does_not_compute(
    model_type: str, index: int, what: str, tmp_path: Path
) -> None:
    tiny_checkpoint(model_type, index, tmp_path / "hf")
    with pytest.raises(UnsupportedModelError, match=what):
        exported(tmp_path / "hf", tmp_path / "out" / "m.gguf")
    assert os.listdir(tmp_path) == ["hf"]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"rope_interleave": False}, "rope_interleave"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "linear"),
        ({"rope_parameters": YARN | {"rope_theta": 1e4, "truncate": False}}, "truncate"),
        ({"n_shared_experts": None}, "n_shared_experts"),
        ({"num_hidden_layers": 27, "first_k_dense_replace": 27}, "q_lora_rank"),
    ],
)
def test_configs_that_llama_cpp_has_no_words_for(change: Config, what: str) -> None:
    from deepmnn.exporters.gguf.metadata import metadata
    from deepmnn.models import read_config

    config = read_config({"model_type": "deepseek_v3", **MLA, "n_group": 1, **change})
    with pytest.raises(UnsupportedModelError, match=what):
        metadata("deepseek2", config)


def test_wishes(even: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="Q8_0"):
        exported(even.path, tmp_path / "m.gguf", type="Q4_K_M")
    with pytest.raises(StorageError, match=r"ends in \.gguf"):
        exported(even.path, tmp_path / "model")
    monkeypatch.setitem(sys.modules, "gguf", None)
    for call in (exported, lambda model, out: check_gguf(out, False, [])):
        with pytest.raises(MissingDependencyError, match="pip install"):
            call(even.path, tmp_path / "m.gguf")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(("number", "what"), [(np.nan, "NaN"), (1e5, "at most 65504")])
def test_numbers_that_have_no_place(number: float, what: str, tmp_path: Path) -> None:
    tiny_checkpoint("llama", 0, tmp_path / "hf")
    file = tmp_path / "hf" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = number
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=what):
        exported(tmp_path / "hf", tmp_path / "m.gguf", type="F16")
    assert os.listdir(tmp_path) == ["hf"]
    if np.isfinite(number):
        exported(tmp_path / "hf", tmp_path / "m.gguf", type="BF16")


# --------------------------------------------------------------------------------- the file


def test_what_may_be_replaced(even: TinyModel, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    exported(even.path, path)
    first = path.read_bytes()
    with pytest.raises(StorageError, match="already exists"):
        exported(even.path, path)
    exported(even.path, path, type="F16", overwrite=True)
    assert path.read_bytes() != first
    exported(even.path, path, overwrite=True)
    assert path.read_bytes() == first
    for place in (-1, 100, len(first) // 2):
        changed = bytearray(first)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(StorageError, match="has been changed"):
            exported(even.path, path, overwrite=True)
    for other in (b"", b"GGUF" + bytes(100), b"mine"):
        path.write_bytes(other)
        with pytest.raises(StorageError, match="no GGUF file of ours"):
            exported(even.path, path, overwrite=True)
        assert path.read_bytes() == other
    assert os.listdir(tmp_path) == ["m.gguf"]


def test_a_killed_export_leaves_nothing_half_written(even: TinyModel, tmp_path: Path) -> None:
    path, other = tmp_path / "m.gguf", tmp_path / "other" / "m.gguf"
    exported(even.path, path, type="F16")
    exported(even.path, other)
    old, new = path.read_bytes(), other.read_bytes()
    calls, finished = 0, False
    while not finished:
        finished = in_dying_child(lambda: exported(even.path, path, overwrite=True), calls)
        assert path.read_bytes() in (old, new)
        assert calls < 60
        calls += 2
    assert path.read_bytes() == new
    exported(even.path, path, overwrite=True)
    assert sorted(tree(tmp_path)) == ["m.gguf", "other/m.gguf"]


def test_a_full_disk(even: TinyModel, tmp_path: Path) -> None:
    """As far as a process can have one."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(StorageError, match="cannot be written"):
            exported(even.path, tmp_path / "m.gguf", type="F32")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not os.listdir(tmp_path)
