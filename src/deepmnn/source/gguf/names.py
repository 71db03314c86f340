"""llama.cpp's names beside those of Hugging Face: architectures, tensors, keys, special tokens.

Reading and exporting use the same tables. Source: MODEL_ARCH_NAMES, TENSOR_NAMES, Keys and
TokenType of the gguf package, which tests compare these with.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from deepmnn.errors import UnsupportedModelError

ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "deepseek": "deepseek",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
}
"""model_type of config.json → general.architecture."""

_TOP = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
"""Module of Hugging Face → the tensor, without the suffix ".weight" or ".bias"."""

_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.kv_b_proj": "attn_kv_b",
    "self_attn.k_b_proj": "attn_k_b",
    "self_attn.v_b_proj": "attn_v_b",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.gate.e_score_correction": "exp_probs_b",
    "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
}
"""The same behind "model.layers.N." and "blk.N.". Some names are no modules: k_b_proj and v_b_proj
are the halves of kv_b_proj, experts.gate_proj and the like the matrices of all experts in one
tensor, and e_score_correction has a bias that is a parameter of its own.
"""

_TOP_MODULES = {theirs: ours for ours, theirs in _TOP.items()}
_LAYER_MODULES = {theirs: ours for ours, theirs in _LAYER.items()}
_KINDS = ("weight", "bias")
_CORRECTION = "e_score_correction"
_HF_LAYER, _GGUF_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)"), re.compile(r"blk\.(\d+)\.(.+)")

ROPE_FACTORS = "rope_freqs.weight"
"""What the frequencies of RoPE are divided by, [head_dim / 2]."""

KEYS = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "rope_type": "rope.scaling.type",
    "factor": "rope.scaling.factor",
    "original_max_position_embeddings": "rope.scaling.original_context_length",
    "beta_fast": "rope.scaling.yarn_beta_fast",
    "beta_slow": "rope.scaling.yarn_beta_slow",
    "q_lora_rank": "attention.q_lora_rank",
    "kv_lora_rank": "attention.kv_lora_rank",
    "qk_rope_head_dim": "rope.dimension_count",
    "n_routed_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "n_shared_experts": "expert_shared_count",
    "moe_intermediate_size": "expert_feed_forward_length",
    "first_k_dense_replace": "leading_dense_block_count",
    "routed_scaling_factor": "expert_weights_scale",
    "norm_topk_prob": "expert_weights_norm",
    "scoring_func": "expert_gating_func",
    "n_group": "expert_group_count",
    "topk_group": "expert_group_used_count",
    "num_nextn_predict_layers": "nextn_predict_layers",
}
"""Field of config.json → the key behind the architecture. Keys without a field are called by their
own names.
"""

SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)
"""Fields that every model has, and whose key says the same."""

YARN = ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow")
"""Fields of YaRN's scaling, the same."""

SCORING = {"softmax": 1, "sigmoid": 2}
"""scoring_func → its number."""

SPECIAL_TOKENS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",  # so spelled there
    "pad_token": "padding_token_id",
    "mask_token": "mask_token_id",
}
"""Field of tokenizer_config.json → the key behind "tokenizer.ggml."."""

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Kinds of tokens, tokenizer.ggml.token_type."""

PAIRED = ("llama", "deepseek")
"""Architectures that rotate neighbouring rows (0, 1), (2, 3), ... of a head; Hugging Face's
checkpoints pair row i with row i + head_dim / 2."""


def architecture(model_type: object) -> str:
    """Raises UnsupportedModelError for a model that llama.cpp has no name for."""
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"model_type {model_type!r:.80} has no name in GGUF",
            f"one of {', '.join(ARCHITECTURES)}",
        )
    return ARCHITECTURES[model_type]


def gguf_name(name: str) -> str:
    """GGUF's name of a tensor of Hugging Face's. Raises UnsupportedModelError where it has none."""
    stem, _, kind = name.replace(f"{_CORRECTION}_", f"{_CORRECTION}.").rpartition(".")
    layer = _HF_LAYER.fullmatch(stem)
    found = _TOP.get(stem) if layer is None else _LAYER.get(layer[2])
    if found is None:
        raise UnsupportedModelError(f"the tensor {name!r:.200} has no name in GGUF")
    return f"{found}.{kind}" if layer is None else f"blk.{layer[1]}.{found}.{kind}"


def layer_of(name: str) -> tuple[int | None, str]:
    """A GGUF tensor's layer, and its name in it; None: of none."""
    match = _GGUF_LAYER.fullmatch(name)
    return (None, name) if match is None else (int(match[1]), match[2])


def hf_name(name: str) -> str | None:
    """Hugging Face's name of a GGUF tensor; None where nobody knows it here."""
    layer, inner = layer_of(name)
    stem, _, kind = inner.rpartition(".")
    if layer is None:
        return f"{_TOP_MODULES[stem]}.weight" if stem in _TOP_MODULES and kind == "weight" else None
    found = _LAYER_MODULES.get(stem)
    if found is None or kind not in (("bias",) if found.endswith(_CORRECTION) else _KINDS):
        return None
    return f"model.layers.{layer}.{found}.{kind}".replace(f"{_CORRECTION}.", f"{_CORRECTION}_")


def paired_rows(rows: int, heads: int) -> NDArray[np.intp]:
    """Row of a tensor of PAIRED → which row of Hugging Face's it is."""
    return np.arange(rows).reshape(heads, 2, -1).swapaxes(1, 2).ravel()
