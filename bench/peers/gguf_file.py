"""A GGUF file of random weights, laid out as by llama.cpp's converter and `Q4_0` quantisation.

Every matrix is Q4_0, lm_head and embedding table too; norms, biases and routers are float32. The
blocks are drawn in their stored form, so no 16-bit model is ever written.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.peers.engine import Config

NEEDS = ""

Shape = tuple[int, ...]
"""Rows before columns, as numpy has it."""

BLOCK, BLOCK_NBYTES = 32, 18
"""Columns and bytes of a Q4_0 block: an fp16 scale, then 32 codes of 4 bits, 8 meaning 0."""

CODE_DEVIATION = 4.6
"""Standard deviation of codes drawn evenly from -8 to 7. Half the scales are negative: otherwise
the codes' mean of -0.5 would pull every token's hidden state to the same vector, and all tokens
to the same experts."""


def build(config: Path, out: Path, needed: Path | None, source: Path | None) -> str:
    write(json.loads(config.read_text()), out / "model.gguf")
    return "model.gguf"


def write(config: Config, path: Path, vocabulary: Mapping[str, Any] | None = None) -> None:
    """Writes the model that a config.json describes: `qwen2` or `deepseek_v2` without q_lora.

    vocabulary: keys of a tokenizer, without "tokenizer." in front; None: it has none.
    """
    import gguf
    import numpy as np

    architecture = {"qwen2": "qwen2", "deepseek_v2": "deepseek2"}[config["model_type"]]
    writer = gguf.GGUFWriter(path, architecture)
    _add_common(writer, config)
    _add_vocabulary(writer, vocabulary or {"ggml.model": "no_vocab"})
    if architecture == "deepseek2":
        _add_deepseek2(writer, config)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for name, shape in tensors(config):
        if is_float(name):
            writer.add_tensor_info(name, shape, np.dtype(np.float32), 4 * math.prod(shape))
        else:
            stored = (*shape[:-1], shape[-1] // BLOCK * BLOCK_NBYTES)
            kind = gguf.GGMLQuantizationType.Q4_0
            writer.add_tensor_info(
                name, stored, np.dtype(np.uint8), math.prod(stored), raw_dtype=kind
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, shape in tensors(config):
        writer.write_tensor_data(draw(name, shape))
    writer.close()


def is_float(name: str) -> bool:
    """Whether a tensor stays float32."""
    return name.endswith(("norm.weight", "bias", "ffn_gate_inp.weight"))


def draw(name: str, shape: Shape) -> Any:
    """The stored numbers of a tensor; equal names and shapes give equal ones."""
    import numpy as np

    rng = np.random.Generator(np.random.SFC64(zlib.crc32(name.encode())))
    deviation = 0.05 if len(shape) == 1 else 1 / math.sqrt(shape[-1])
    if is_float(name):
        values = rng.standard_normal(shape, np.float32) * np.float32(deviation)
        return values + np.float32(name.endswith("norm.weight"))
    low, high = np.float16(deviation / CODE_DEVIATION).tobytes()
    blocks = rng.integers(0, 256, (math.prod(shape) // BLOCK, BLOCK_NBYTES), np.uint8)
    blocks[:, 0] = low
    blocks[:, 1] = high | blocks[:, 1] & 0x80
    return blocks.reshape(*shape[:-1], -1)


def _add_common(writer: Any, config: Config) -> None:
    writer.add_name("random")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    latent = "kv_lora_rank" in config  # one latent head is what is cached
    writer.add_head_count_kv(1 if latent else config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(float(config["rope_theta"]))


def _add_vocabulary(writer: Any, vocabulary: Mapping[str, Any]) -> None:
    add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}
    for key, value in vocabulary.items():
        add.get(type(value), writer.add_array)(f"tokenizer.{key}", value)


def _add_deepseek2(writer: Any, config: Config) -> None:
    import gguf

    rank, rope = config["kv_lora_rank"], config["qk_rope_head_dim"]
    writer.add_kv_lora_rank(rank)
    writer.add_key_length(rank + rope)
    writer.add_value_length(rank)
    writer.add_key_length_mla(config["qk_nope_head_dim"] + rope)
    writer.add_value_length_mla(config["v_head_dim"])
    writer.add_rope_dimension_count(rope)
    writer.add_leading_dense_block_count(config["first_k_dense_replace"])
    writer.add_expert_count(config["n_routed_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_shared_count(config["n_shared_experts"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_weights_scale(float(config["routed_scaling_factor"]))
    writer.add_expert_weights_norm(config["norm_topk_prob"])
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SOFTMAX)
    yarn = config["rope_scaling"]
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(float(yarn["factor"]))
    writer.add_rope_scaling_orig_ctx_len(yarn["original_max_position_embeddings"])
    writer.add_rope_scaling_yarn_log_mul(0.1 * yarn["mscale_all_dim"])


def tensors(config: Config) -> Iterator[tuple[str, Shape]]:
    """Every tensor's name and shape, in file order."""
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    yield "token_embd.weight", (vocab, hidden)
    for layer in range(config["num_hidden_layers"]):
        parts: list[tuple[str, Shape]] = [(f"{n}_norm.weight", (hidden,)) for n in ("attn", "ffn")]
        parts += _latent_attention(config) if "kv_lora_rank" in config else _attention(config)
        routed = layer >= config.get("first_k_dense_replace", layer + 1)
        parts += _experts(config) if routed else _ffn("", hidden, config["intermediate_size"])
        yield from ((f"blk.{layer}.{name}", shape) for name, shape in parts)
    yield "output_norm.weight", (hidden,)
    yield "output.weight", (vocab, hidden)


def _attention(config: Config) -> list[tuple[str, Shape]]:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    kv = hidden // heads * config["num_key_value_heads"]
    parts: list[tuple[str, Shape]] = [("attn_output.weight", (hidden, hidden))]
    for name, rows in (("attn_q", hidden), ("attn_k", kv), ("attn_v", kv)):
        parts += [(f"{name}.weight", (rows, hidden)), (f"{name}.bias", (rows,))]
    return parts


def _latent_attention(config: Config) -> list[tuple[str, Shape]]:
    hidden, heads, rank = (
        config[name] for name in ("hidden_size", "num_attention_heads", "kv_lora_rank")
    )
    nope, rope, value = (
        config[name] for name in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    )
    return [
        ("attn_q.weight", (heads * (nope + rope), hidden)),
        ("attn_kv_a_mqa.weight", (rank + rope, hidden)),
        ("attn_kv_a_norm.weight", (rank,)),
        ("attn_k_b.weight", (heads, rank, nope)),
        ("attn_v_b.weight", (heads, value, rank)),
        ("attn_output.weight", (hidden, heads * value)),
    ]


def _experts(config: Config) -> list[tuple[str, Shape]]:
    hidden, width, count = (
        config[name] for name in ("hidden_size", "moe_intermediate_size", "n_routed_experts")
    )
    return [
        ("ffn_gate_inp.weight", (count, hidden)),
        ("ffn_gate_exps.weight", (count, width, hidden)),
        ("ffn_up_exps.weight", (count, width, hidden)),
        ("ffn_down_exps.weight", (count, hidden, width)),
        *_ffn("_shexp", hidden, config["n_shared_experts"] * width),
    ]


def _ffn(suffix: str, hidden: int, width: int) -> list[tuple[str, Shape]]:
    return [
        (f"ffn_gate{suffix}.weight", (width, hidden)),
        (f"ffn_up{suffix}.weight", (width, hidden)),
        (f"ffn_down{suffix}.weight", (hidden, width)),
    ]
