"""The names of llama.cpp: architectures and tensors, beside those of Hugging Face.

Source: gguf's MODEL_ARCH_NAMES and TENSOR_NAMES, which tests compare this with.
"""

from __future__ import annotations

import re

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

TENSORS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
"""Hugging Face's module → llama.cpp's tensor, without the suffix ".weight" or ".bias"."""

LAYER_TENSORS = {
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
    "self_attn.k_b_proj": "attn_k_b",
    "self_attn.v_b_proj": "attn_v_b",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
    "mlp.gate.e_score_correction": "exp_probs_b",
}
"""The same after "model.layers.N." and "blk.N.". Three names are no modules: k_b_proj and v_b_proj,
the halves of kv_b_proj; experts.gate_proj and the like, the matrices of all experts in one tensor;
and e_score_correction, whose bias is a parameter of its own.
"""

ROPE_FACTORS = "rope_freqs.weight"
"""What the frequencies of RoPE are divided by, [head_dim / 2]."""

_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


def architecture(model_type: object) -> str:
    """Raises UnsupportedModelError for a model that llama.cpp has no name for."""
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"model_type {model_type!r:.80} has no name in GGUF",
            f"one of {', '.join(ARCHITECTURES)}",
        )
    return ARCHITECTURES[model_type]


def tensor_name(name: str) -> str:
    """GGUF's name of a tensor. Raises UnsupportedModelError where it has none."""
    stem, _, suffix = name.replace("e_score_correction_bias", "e_score_correction.bias").rpartition(
        "."
    )
    if layer := _LAYER.fullmatch(stem):
        found = LAYER_TENSORS.get(layer[2])
        found = found and f"blk.{layer[1]}.{found}"
    else:
        found = TENSORS.get(stem)
    if found is None:
        raise UnsupportedModelError(f"the tensor {name!r:.200} has no name in GGUF")
    return f"{found}.{suffix}"
