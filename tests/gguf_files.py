"""GGUF files as llama.cpp's converter writes them, of tiny checkpoints, with the `gguf` package.

Names of tensors are the package's (`get_tensor_name_map`), keys are its writer's. What the
converter does to the numbers is written down again from it (conversion/llama.py and deepseek.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter

from deepmnn.backends.base import F32
from gguf_blocks import encoded
from tiny_models import TinyModel

ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "deepseek": "deepseek",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
}

Store = Callable[[str, F32], GGMLQuantizationType]
"""The type of a tensor, by its name in the file and its numbers."""


def floats(name: str, values: F32) -> GGMLQuantizationType:
    """Every tensor as float32."""
    return GGMLQuantizationType.F32


_Q = GGMLQuantizationType
KEPT = [
    *(_Q.Q4_0, _Q.Q4_1, _Q.Q5_0, _Q.Q5_1, _Q.Q8_0),
    *(_Q.Q4_K, _Q.Q5_K, _Q.Q6_K, _Q.MXFP4),
]
"""Types whose codes stay as they are."""


def mixed_types(name: str, values: F32) -> GGMLQuantizationType:
    """Another kept type for each matrix, as in files of llama.cpp's mixtures."""
    if values.ndim == 1 or "ffn_gate_inp" in name:
        return _Q.F32
    fitting = [k for k in KEPT if values.shape[-1] % gguf.GGML_QUANT_SIZES[k][0] == 0]
    return fitting[sum(name.encode()) % len(fitting)]


def write_gguf(
    tiny: TinyModel,
    path: Path,
    store: Store = floats,
    *,
    split_kv: bool = True,
    fuse_qkv: bool = False,
    max_tensors: int = 0,
    tokenizer: dict[str, Any] | None = None,
) -> dict[str, F32]:
    """Writes a checkpoint; returns its tensors as they are stored, decoded by the package.

    split_kv: as files are since April 2025. fuse_qkv: as with --fuse-qkv. max_tensors: of a part.
    tokenizer: keys of tokenizer.ggml.
    """
    config = tiny.config
    writer = GGUFWriter(path, ARCHITECTURES[config["model_type"]], split_max_tensors=max_tensors)
    add_config(writer, config, split_kv)
    for key, value in (tokenizer or {"model": "no_vocab"}).items():
        _add(writer, f"tokenizer.ggml.{key}", value)
    stored = {}
    for name, values in _tensors(tiny, split_kv, fuse_qkv):
        kind = store(name, values)
        data = encoded(values, kind)
        writer.add_tensor(name, data, raw_dtype=kind)
        stored[name] = np.asarray(gguf.dequantize(data, kind)).reshape(values.shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


def write_floats(
    tiny: TinyModel, stored: dict[str, F32], path: Path, rope: dict[str, Any] | None = None
) -> Path:
    """A file of these numbers. rope: instead of the config's; with keys of floats, too."""
    architecture = ARCHITECTURES[tiny.config["model_type"]]
    writer = GGUFWriter(path, architecture)
    add_config(writer, tiny.config | ({} if rope is None else {"rope_parameters": rope}))
    for key in (key for key in rope or {} if "." in key):
        writer.add_float32(f"{architecture}.{key}", (rope or {})[key])
    for name, values in stored.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)


# ------------------------------------------------------------------------------------- metadata


def add_config(writer: GGUFWriter, config: dict[str, Any], split_kv: bool = True) -> None:
    """What TextModel.set_gguf_parameters and its overrides write."""
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    rope = config.get("rope_parameters") or {}
    writer.add_rope_freq_base(float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0))
    _add_rope(writer, rope)
    if "kv_lora_rank" in config:
        _add_latent(writer, config, rope, split_kv)
    else:
        head_dim = _head_dim(config)
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
        writer.add_rope_dimension_count(head_dim)
    if config.get("n_routed_experts"):
        _add_experts(writer, config)


def _head_dim(config: dict[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _add_rope(writer: GGUFWriter, rope: dict[str, Any]) -> None:
    kind = rope.get("rope_type")
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        if rope.get("attention_factor") is not None:
            writer.add_rope_scaling_yarn_attn_factor(rope["attention_factor"])
        writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
        writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])


def _add_latent(
    writer: GGUFWriter, config: dict[str, Any], rope: dict[str, Any], split_kv: bool
) -> None:
    rank, turned = config["kv_lora_rank"], config["qk_rope_head_dim"]
    head_dim = config["qk_nope_head_dim"] + turned
    writer.add_head_count_kv(1 if split_kv else config["num_attention_heads"])
    writer.add_kv_lora_rank(rank)
    if config.get("q_lora_rank"):
        writer.add_q_lora_rank(config["q_lora_rank"])
    writer.add_rope_dimension_count(turned)
    if split_kv:
        writer.add_key_length(rank + turned)
        writer.add_value_length(rank)
        writer.add_key_length_mla(head_dim)
        writer.add_value_length_mla(config["v_head_dim"])
    else:
        writer.add_key_length(head_dim)
        writer.add_value_length(config["v_head_dim"])
    if rope.get("mscale_all_dim") is not None:
        writer.add_rope_scaling_yarn_log_mul(0.1 * rope["mscale_all_dim"])


def _add_experts(writer: GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_leading_dense_block_count(config["first_k_dense_replace"])
    writer.add_expert_count(config["n_routed_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_shared_count(config.get("n_shared_experts") or 0)
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    if config["model_type"] == "deepseek":
        writer.add_expert_weights_scale(1.0)
        return
    writer.add_expert_weights_scale(float(config["routed_scaling_factor"]))
    if config.get("norm_topk_prob"):
        writer.add_expert_weights_norm(True)
    if config.get("n_group") is not None:
        writer.add_expert_group_count(config["n_group"])
        writer.add_expert_group_used_count(config["topk_group"])
    if config["model_type"] == "deepseek_v3":
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)


# -------------------------------------------------------------------------------------- tensors


def _tensors(tiny: TinyModel, split_kv: bool, fuse_qkv: bool) -> Iterator[tuple[str, F32]]:
    """The tensors of the file, by name."""
    config = tiny.config
    arch = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(
        arch[ARCHITECTURES[config["model_type"]]], config["num_hidden_layers"]
    )
    skipped = f"model.layers.{config['num_hidden_layers']}."  # multi-token prediction
    experts: dict[str, dict[int, F32]] = {}
    fused: dict[str, list[tuple[str, F32]]] = {}
    for name in tiny.names():
        if name == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        if name.startswith(skipped):
            continue
        for part, values in _parts(tiny, name, split_kv):
            if ".experts." in part:
                stem, _, rest = part.partition(".experts.")
                stacked = f"{stem}.experts.{rest.split('.')[1]}.weight"
                experts.setdefault(stacked, {})[int(rest.split(".")[0])] = values
                continue
            found = names.get_name(part, (".weight", ".bias"))
            if found is None and part.endswith("e_score_correction_bias"):
                found = names.get_name(part.replace("_bias", ".bias"), (".bias",))
            assert found is not None, part
            parts = found.split(".")
            if fuse_qkv and parts[0] == "blk" and parts[2] in ("attn_q", "attn_k", "attn_v"):
                fused.setdefault(f"blk.{parts[1]}.attn_qkv.{parts[3]}", []).append((found, values))
            else:
                yield found, values
    for name, matrices in experts.items():
        yield (
            names.get_name(name, (".weight",)),
            np.stack([matrices[expert] for expert in sorted(matrices)]),
        )
    for name, rows in fused.items():
        order = ["attn_q", "attn_k", "attn_v"]
        rows.sort(key=lambda row: order.index(row[0].split(".")[2]))
        yield name, np.concatenate([values for _, values in rows])
    if (config.get("rope_parameters") or {}).get("rope_type") == "llama3":
        yield "rope_freqs.weight", _rope_freqs(config)


def _parts(tiny: TinyModel, name: str, split_kv: bool) -> Iterator[tuple[str, F32]]:
    """A tensor as the converter changes it, or the tensors that it cuts it into."""
    config, values = tiny.config, tiny.read(name)
    if config["model_type"] in ("llama", "deepseek"):
        for projection, heads in (("q", "num_attention_heads"), ("k", "num_key_value_heads")):
            if f".{projection}_proj." in name:
                values = permuted(values, config[heads])
    if split_kv and name.endswith("kv_b_proj.weight"):
        nope, v = config["qk_nope_head_dim"], config["v_head_dim"]
        heads = values.reshape(config["num_attention_heads"], nope + v, -1)
        yield name.replace("kv_b", "k_b"), heads[:, :nope].swapaxes(1, 2)
        yield name.replace("kv_b", "v_b"), heads[:, nope:]
    else:
        yield name, values


def permuted(values: F32, heads: int) -> F32:
    """LlamaModel.permute."""
    rows = values.shape[0]
    return (
        values.reshape(heads, 2, rows // heads // 2, *values.shape[1:])
        .swapaxes(1, 2)
        .reshape(values.shape)
    )


def _rope_freqs(config: dict[str, Any]) -> F32:
    """LlamaModel.generate_extra_tensors."""
    rope, dim = config["rope_parameters"], _head_dim(config)
    factors = []
    for freq in 1.0 / (rope["rope_theta"] ** (np.arange(0, dim, 2) / dim)):
        wavelength = 2 * math.pi / freq
        length = rope["original_max_position_embeddings"]
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        if wavelength < length / high:
            factors.append(1.0)
        elif wavelength > length / low:
            factors.append(rope["factor"])
        else:
            smooth = (length / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, np.float32)


# ------------------------------------------------------------------------------------- tokenizer


def tokenizer_keys(spec: dict[str, Any], pre: str, size: int = 0) -> dict[str, Any]:
    """What get_vocab_base and SpecialVocab make of a byte-level tokenizer.json.

    size: of the vocabulary, if it is filled up.
    """
    vocab: dict[str, int] = dict(spec["model"]["vocab"])
    added = {token["content"]: token for token in spec["added_tokens"]}
    vocab |= {content: token["id"] for content, token in added.items()}
    by_id = {index: token for token, index in vocab.items()}
    tokens, kinds = [], []
    for index in range(max(size, max(by_id) + 1)):
        token = by_id.get(index)
        tokens.append(f"[PAD{index}]" if token is None else token)
        if token is None:
            kinds.append(gguf.TokenType.UNUSED)
        elif token in added:
            looks = token.startswith(("<|", "<｜")) and token.endswith(("|>", "｜>"))
            control = added[token]["special"] or looks
            kinds.append(gguf.TokenType.CONTROL if control else gguf.TokenType.USER_DEFINED)
        else:
            kinds.append(gguf.TokenType.NORMAL)
    merges = spec["model"]["merges"]
    return {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "token_type": [int(kind) for kind in kinds],
        "merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in merges],
    }


def write_vocabulary(path: Path, keys: dict[str, Any], **more: Any) -> None:
    """A file with a tokenizer and nothing else."""
    writer = GGUFWriter(path, "llama")
    for key, value in (keys | more).items():
        _add(writer, key if key.startswith("tokenizer.") else f"tokenizer.ggml.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def metadata(path: Path) -> dict[str, Any]:
    """A file's metadata, as the package reads it."""
    reader = gguf.GGUFReader(path)
    return {name: field.contents() for name, field in reader.fields.items()}


def as_json(data: bytes) -> dict[str, Any]:
    """The fields of a JSON file."""
    found: dict[str, Any] = json.loads(data)
    return found
