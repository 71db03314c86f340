"""A tiny converted model with random weights and a byte tokenizer: it talks, if only nonsense."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from byte_tokenizer import write_tokenizer
from deepmnn.conversion.convert import convert

CONFIG: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "architectures": ["DeepseekV3ForCausalLM"],
    "vocab_size": 271,
    "hidden_size": 40,
    "intermediate_size": 53,
    "moe_intermediate_size": 19,
    "num_hidden_layers": 2,
    "num_nextn_predict_layers": 0,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "max_position_embeddings": 192,
    "n_routed_experts": 6,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 21,
    "kv_lora_rank": 18,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "v_head_dim": 14,
    "eos_token_id": 1,
}


def write_config(directory: Path, tokenizer: bool = True, **config: Any) -> None:
    """A checkpoint directory without weights."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({**CONFIG, **config}))
    if tokenizer:
        write_tokenizer(directory)


def tiny_artifact(directory: Path, quant: str = "fp32", tokenizer: bool = True) -> Path:
    """Converts it to `directory / "model"` and returns that path."""
    write_config(directory / "source", tokenizer)
    out = directory / "model"
    convert(directory / "source", out, quant=quant, random_weights=True, seed=3)
    return out
