"""What llama.cpp must know of a model besides its tensors: config.json in GGUF's words.

Source: conversion/base.py and conversion/deepseek.py of llama.cpp, and what src/models/*.cpp makes
of it. llama.cpp computes some options in another way than the models' makers, or not at all. What
would give other numbers is refused here by name, or comes as a note where such files are common.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from deepmnn.errors import UnsupportedModelError
from deepmnn.exporters.gguf.tensors import head_dim
from deepmnn.models.config import ModelConfig
from deepmnn.models.deepseek_v2 import DeepseekV2Config
from deepmnn.models.deepseek_v3 import DeepseekV3Config
from deepmnn.models.mla import LATENT_NORM_EPS, MlaConfig, rope_scale
from deepmnn.models.moe import MoeConfig
from deepmnn.models.rope import yarn_mscale
from deepmnn.source.gguf.names import KEYS, SCORING, SIZES, YARN

Value = int | float | bool | str

_LITE_LAYERS = (26, 27)
"""deepseek2 models with so many layers have no q_lora_rank, whatever their metadata says."""

_NO_BIAS = ("deepseek", "qwen3")
"""Architectures that read no attn_output.bias."""


@dataclass(frozen=True)
class Metadata:
    """What stands in the file.

    Attributes:
        fields: key without the architecture in front → value.
        notes: what llama.cpp does otherwise.
    """

    fields: dict[str, Value]
    notes: tuple[str, ...] = ()


def metadata(architecture: str, config: ModelConfig) -> Metadata:
    """Raises UnsupportedModelError for a model that llama.cpp would not run as it is meant."""
    fields: dict[str, Value] = {field: getattr(config, field) for field in SIZES}
    fields |= {
        "vocab_size": config.vocab_size,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_parameters.rope_theta,
    }
    notes: list[str] = []
    if isinstance(config, MlaConfig):
        fields |= _latent_attention(config, notes)
    else:
        fields |= _attention(architecture, config)
    if isinstance(config, MoeConfig):
        fields |= _experts(architecture, config, notes)
    return Metadata({KEYS.get(name, name): value for name, value in fields.items()}, tuple(notes))


def _attention(architecture: str, config: ModelConfig) -> dict[str, Value]:
    dim = head_dim(config)
    if architecture in _NO_BIAS and getattr(config, "attention_bias", False):
        raise _other("attention_bias is true", "false", architecture)
    rope_type = config.rope_parameters.rope_type
    if rope_type == "llama3" and architecture != "llama":
        raise _other(f"rope_type is {rope_type}", "default, linear or yarn", architecture)
    return {
        "num_key_value_heads": config.kv_heads,
        "attention.key_length": dim,
        "attention.value_length": dim,
        "rope.dimension_count": dim,
        **_scaling(config, config.rope_parameters.rope_scale()),
    }


def _latent_attention(config: MlaConfig, notes: list[str]) -> dict[str, Value]:
    """As multi-query attention over latents, which is what llama.cpp runs."""
    if config.attention_bias:
        raise _other("attention_bias is true", "false", "deepseek2")
    if isinstance(config, DeepseekV3Config) and not config.rope_interleave:
        raise _other("rope_interleave is false", "true", "deepseek2")
    if config.q_lora_rank is not None and config.num_hidden_layers in _LITE_LAYERS:
        raise _other(
            f"q_lora_rank is {config.q_lora_rank} in a model of {config.num_hidden_layers} layers",
            "null",
            "deepseek2",
        )
    if config.rms_norm_eps != LATENT_NORM_EPS:
        notes.append(
            f"llama.cpp norms latents with rms_norm_eps, {config.rms_norm_eps:g}; the model has "
            f"{LATENT_NORM_EPS:g} there"
        )
    rank, rope = config.kv_lora_rank, config.qk_rope_head_dim
    return {
        "num_key_value_heads": 1,
        # 0 is what llama.cpp takes for a missing projection; without the key it stops.
        "q_lora_rank": config.q_lora_rank or 0,
        "kv_lora_rank": rank,
        "attention.key_length": rank + rope,
        "attention.value_length": rank,
        "attention.key_length_mla": config.qk_nope_head_dim + rope,
        "attention.value_length_mla": config.v_head_dim,
        "qk_rope_head_dim": rope,
        **_latent_scaling(config),
    }


def _scaling(config: ModelConfig, scale: float) -> dict[str, Value]:
    """RoPE's scaling. scale: what multiplies cos and sin; llama.cpp has YaRN's own already."""
    rope = config.rope_parameters
    if rope.rope_type == "linear":
        return {"rope_type": "linear", "factor": rope.factor}
    if rope.rope_type != "yarn":
        return {}
    if not rope.truncate:
        raise _other("truncate is false in YaRN's parameters", "true", "YaRN")
    fields: dict[str, Value] = {
        "rope_type": "yarn",
        **{name: getattr(rope, name) for name in YARN},
    }
    own = yarn_mscale(rope.factor, 1.0)
    if abs(scale - own) > 1e-9:
        fields["rope.scaling.attn_factor"] = scale / own
    return fields


def _latent_scaling(config: MlaConfig) -> dict[str, Value]:
    """RoPE's scaling of deepseek2, from src/llama-context.cpp and src/models/deepseek2.cpp.

    With a factor f and m(x) = 1 + 0.1 x ln f llama.cpp multiplies cos and sin by attn_factor, and
    scores by (attn_factor * m(10 * yarn_log_multiplier))². The model wants rope_scale and
    m(mscale_all_dim)²; where mscale and mscale_all_dim are equal, as published, rope_scale is 1.
    A yarn_log_multiplier of 0 makes llama.cpp multiply cos and sin by m(1) as well.
    """
    rope = config.rope_parameters
    if rope.rope_type == "default":
        return {}
    if rope.rope_type != "yarn" or rope.factor == 1.0:
        found = f"rope_type is {rope.rope_type} with a factor of {rope.factor:g}"
        raise _other(found, "default, or yarn with a larger factor", "deepseek2")
    scale, slope = rope_scale(rope), 0.1 * math.log(rope.factor)
    multiplier = (yarn_mscale(rope.factor, rope.mscale_all_dim or 0.0) / scale - 1.0) / slope
    if abs(multiplier) < 1e-6:
        return _scaling(config, scale)
    fields = _scaling(config, scale * yarn_mscale(rope.factor, 1.0))
    return fields | {"rope.scaling.yarn_log_multiplier": 0.1 * multiplier}


def _experts(architecture: str, config: MoeConfig, notes: list[str]) -> dict[str, Value]:
    layers = [config.has_experts(layer) for layer in range(config.num_hidden_layers)]
    dense = layers.index(True) if True in layers else len(layers)
    fields: dict[str, Value] = {
        "first_k_dense_replace": dense,
        "moe_intermediate_size": config.moe_intermediate_size,
        "n_shared_experts": config.n_shared_experts or 0,
    }
    if dense == len(layers):
        return fields
    if not all(layers[dense:]):
        raise _other(f"moe_layer_freq is {config.moe_layer_freq}", "1", architecture)
    if not config.n_shared_experts:
        raise _other(f"n_shared_experts is {config.n_shared_experts}", "1 or more", architecture)
    fields |= {
        "n_routed_experts": config.n_routed_experts or 0,
        "num_experts_per_tok": config.top_k,
    }
    if not isinstance(config, DeepseekV2Config | DeepseekV3Config):
        if config.normalize:
            raise _other("norm_topk_prob is true", "false", architecture)
        return fields | {"routed_scaling_factor": 1.0}
    routing = config.routing
    fields |= {
        "routed_scaling_factor": routing.factor,
        "norm_topk_prob": routing.normalize,
        "scoring_func": SCORING[routing.scoring],
    }
    if routing.topk_group < routing.n_group:
        fields |= {"n_group": routing.n_group, "topk_group": routing.topk_group}
        if routing.n_group == config.n_routed_experts:
            raise _other(f"n_group is {routing.n_group}", "groups of 2 experts", architecture)
        if routing.group_score == "max":
            notes.append(
                "llama.cpp ranks groups of experts by the sum of their two best scores, "
                "the model by the best alone"
            )
    return fields


def _other(found: str, expected: str, architecture: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{found}, which llama.cpp does not compute ({architecture})",
        expected,
        "Run the model on deepmnn, or export it as a Hugging Face directory.",
    )
