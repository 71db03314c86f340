"""A GGUF file's metadata as the fields of config.json, under Hugging Face's names.

Each architecture has a function here that undoes what llama.cpp's converter does
(conversion/llama.py, qwen.py, deepseek.py). What a model of Hugging Face cannot say is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from deepmnn.errors import CheckpointError, UnsupportedModelError, shown
from deepmnn.source.gguf.contents import Contents
from deepmnn.source.gguf.names import KEYS, SCORING, SIZES
from deepmnn.source.gguf.rope import rope_scaling
from deepmnn.source.gguf.tensor import Tensor

_GROUPS = {160: (8, 3), 256: (8, 4)}
"""Experts of DeepSeek-V2 and of V3 → their n_group and topk_group: files from before September 2025
do not say them, and no other model has so many experts and gate."""

_MODEL = "model"
_OTHER_TYPES = {
    "adapter": "Merge it into its model with llama.cpp's llama-export-lora.",
    "mmproj": "It belongs beside the language model; name that one's file.",
    "imatrix": "It says how to quantise a model; name the model's file.",
}
"""general.type of files that are no model → what to do."""

_NOT_RUN = (
    "attention.temperature_scale",
    "attention.max_alibi_bias",
    "attention.clamp_kqv",
    "attn_logit_softcapping",
    "final_logit_softcapping",
)
"""Keys that change the numbers of a model, and that none here has."""

Fields = dict[str, Any]


class Keys:
    """The metadata of one architecture.

    Args:
        contents: the file's.
        path: in messages.

    A value is called by its field of config.json, or, where it has none, by its key (names.py).
    Every method raises CheckpointError for a value of the wrong type, or a missing one.
    """

    def __init__(self, contents: Contents, path: object) -> None:
        self.metadata, self.tensors, self.path = contents.metadata, contents.tensors, path
        self.arch = self._typed("general.architecture", str, "a text")

    def integer(self, name: str, default: int | None = None) -> int:
        """An integer of the architecture; of a list with one for each layer the one they share."""
        key = self.key(name)
        value = self.metadata.get(key, default)
        if isinstance(value, np.ndarray):
            different = sorted(set(value.tolist()))
            if len(different) != 1:
                raise UnsupportedModelError(
                    f"{key} in {self.path} is {different!r:.80}, different from layer to layer",
                    "one for all layers",
                )
            value = different[0]
        if type(value) is not int:
            raise self._wrong(key, value, "an integer")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A number of the architecture."""
        key = self.key(name)
        value: Any = self.metadata.get(key, default)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise self._wrong(key, value, "a number")
        return float(value)

    def has(self, name: str) -> bool:
        """Whether the architecture has that value."""
        return self.key(name) in self.metadata

    def get(self, name: str, default: Any) -> Any:
        """A value of the architecture as it is."""
        return self.metadata.get(self.key(name), default)

    def key(self, name: str) -> str:
        """The key of a value."""
        return f"{self.arch}.{KEYS.get(name, name)}"

    def tensor(self, name: str) -> Tensor:
        """A tensor of the file."""
        if name not in self.tensors:
            raise CheckpointError(
                f"{self.path} has no tensor {name}",
                "a language model's file",
                "Check that it is no vision projector, adapter or vocabulary alone.",
            )
        return self.tensors[name]

    def any_layer(self, *names: str) -> bool:
        """Whether some layer has one of these tensors."""
        ends = tuple(f".{name}" for name in names)
        return any(name.startswith("blk.") and name.endswith(ends) for name in self.tensors)

    def _typed(self, key: str, kind: type, what: str) -> Any:
        value = self.metadata.get(key)
        if not isinstance(value, kind):
            raise self._wrong(key, value, what)
        return value

    def _wrong(self, key: str, value: object, expected: str) -> CheckpointError:
        found = f"{self.path} has no {key}"
        if value is not None:
            found = f"{key} in {self.path} is {shown(value)}"
        return CheckpointError(found, expected)


def config_of(contents: Contents, path: object) -> Fields:
    """The fields of config.json. path: in messages.

    Raises CheckpointError for values that are missing or of another type, UnsupportedModelError for
    an architecture or an option that is not run.
    """
    kind = contents.metadata.get("general.type", _MODEL)
    if kind != _MODEL:
        raise UnsupportedModelError(
            f"{path} is no model: its general.type is {shown(kind)}",
            "a language model's file",
            _OTHER_TYPES.get(kind, "") if isinstance(kind, str) else "",
        )
    keys = Keys(contents, path)
    if keys.arch not in _MODELS:
        raise UnsupportedModelError(
            f"the architecture of {path} is {shown(keys.arch)}",
            f"one of {', '.join(_MODELS)}",
            "Its kind of model is not run here.",
        )
    for name in _NOT_RUN:
        if keys.get(name, 0):
            raise UnsupportedModelError(
                f"{keys.arch}.{name} in {path} is {shown(keys.get(name, 0))}", "a model without"
            )
    causal = keys.get("attention.causal", True)
    if causal is not True:
        raise UnsupportedModelError(
            f"{keys.arch}.attention.causal in {path} is {shown(causal)}",
            "true: a model that writes text",
        )
    fields = _common(keys)
    window, length = keys.integer("attention.sliding_window", 0), fields["max_position_embeddings"]
    if 0 < window < length:
        raise UnsupportedModelError(
            f"{keys.arch}.attention.sliding_window in {path} is {window}",
            f"none, or at least {length}, the context length",
        )
    fields |= _MODELS[keys.arch](keys, fields)
    fields |= rope_scaling(keys, fields)
    for name in ("bos", "eos"):
        token = contents.metadata.get(f"tokenizer.ggml.{name}_token_id")
        if type(token) is int and 0 <= token < fields["vocab_size"]:
            fields[f"{name}_token_id"] = token
    return fields


def _common(keys: Keys) -> Fields:
    """What every architecture says alike."""
    vocab_size = keys.tensor("token_embd.weight").shape[0]
    sizes = {field: keys.integer(field) for field in SIZES}
    heads = sizes["num_attention_heads"]
    kv_heads = keys.integer("num_key_value_heads", heads)
    if min(heads, kv_heads) < 1:
        found = f"{keys.path} has {heads} attention heads, and {kv_heads} of keys"
        raise CheckpointError(found, "one or more")
    return sizes | {
        "vocab_size": vocab_size,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": keys.number("rms_norm_eps"),
        "rope_theta": keys.number("rope_theta", 10000.0),
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in keys.tensors,
    }


def _grouped(keys: Keys, fields: Fields, model_type: str, architecture: str) -> Fields:
    """Models with grouped-query attention."""
    head_dim = keys.integer(
        "attention.key_length", fields["hidden_size"] // fields["num_attention_heads"]
    )
    for name in ("attention.value_length", "rope.dimension_count"):
        if keys.integer(name, head_dim) != head_dim:
            raise UnsupportedModelError(
                f"{keys.arch}.{name} in {keys.path} is {keys.integer(name)}",
                f"{head_dim}, the size of a head",
            )
    return {
        "model_type": model_type,
        "architectures": [architecture],
        "head_dim": head_dim,
        "attention_bias": keys.any_layer("attn_q.bias", "attn_qkv.bias", "attn_output.bias"),
    }


def _llama(keys: Keys, fields: Fields) -> Fields:
    if keys.integer("n_routed_experts", 0):
        raise UnsupportedModelError(
            f"{keys.path} is a llama with experts (Mixtral)", "a dense llama", ""
        )
    found = _grouped(keys, fields, "llama", "LlamaForCausalLM")
    return found | {"mlp_bias": keys.any_layer("ffn_down.bias", "ffn_up.bias")}


def _qwen2(keys: Keys, fields: Fields) -> Fields:
    return _grouped(keys, fields, "qwen2", "Qwen2ForCausalLM")


def _qwen3(keys: Keys, fields: Fields) -> Fields:
    return _grouped(keys, fields, "qwen3", "Qwen3ForCausalLM")


def _deepseek(keys: Keys, fields: Fields) -> Fields:
    """DeepSeek-MoE-16B. Its experts' weights are softmax's, as they are."""
    found = _grouped(keys, fields, "deepseek", "DeepseekForCausalLM")
    return found | _experts(keys) | {"scoring_func": "softmax"}


def _deepseek2(keys: Keys, fields: Fields) -> Fields:
    """DeepSeek-V2, V3 and R1, which the scores of their experts tell apart."""
    experts = _experts(keys)
    biased = keys.any_layer("exp_probs_b.bias")
    gate = keys.integer("scoring_func", SCORING["sigmoid" if biased else "softmax"])
    if gate not in SCORING.values():
        raise UnsupportedModelError(
            f"{keys.key('scoring_func')} in {keys.path} is {gate}",
            f"{SCORING['softmax']} (softmax, V2) or {SCORING['sigmoid']} (sigmoid, V3)",
        )
    layers = fields["num_hidden_layers"] - keys.integer("num_nextn_predict_layers", 0)
    if layers != fields["num_hidden_layers"]:
        raise UnsupportedModelError(
            f"{keys.path} has layers that predict later tokens", "a file without", ""
        )
    found = experts | _latent(keys) | _groups(keys, experts["n_routed_experts"], gate)
    return found | {
        "num_key_value_heads": fields["num_attention_heads"],
        "attention_bias": keys.any_layer("attn_q_a.bias", "attn_kv_a_mqa.bias"),
        "routed_scaling_factor": keys.number("routed_scaling_factor", 0.0) or 1.0,
    }


def _experts(keys: Keys) -> Fields:
    count = keys.integer("n_routed_experts", 0)
    return {
        "n_routed_experts": count or None,
        "num_experts_per_tok": keys.integer("num_experts_per_tok") if count else None,
        "n_shared_experts": keys.integer("n_shared_experts", 0) or None,
        "moe_intermediate_size": keys.integer("moe_intermediate_size") if count else 1,
        "first_k_dense_replace": keys.integer("first_k_dense_replace", 0),
        "moe_layer_freq": 1,
        "norm_topk_prob": keys.get("norm_topk_prob", False) is True,
    }


def _groups(keys: Keys, experts: int | None, gate: int) -> Fields:
    """How experts are chosen by groups."""
    before = _GROUPS.get(experts or 0, (1, 1))
    groups = keys.integer("n_group", before[0])
    chosen = keys.integer("topk_group", before[1])
    found: Fields = {"n_group": groups, "topk_group": chosen}
    if gate == SCORING["sigmoid"]:
        return found | {
            "model_type": "deepseek_v3",
            "architectures": ["DeepseekV3ForCausalLM"],
            "scoring_func": "sigmoid",
            "topk_method": "noaux_tc",
            "num_nextn_predict_layers": 0,
        }
    return found | {
        "model_type": "deepseek_v2",
        "architectures": ["DeepseekV2ForCausalLM"],
        "scoring_func": "softmax",
        "topk_method": "group_limited_greedy" if groups > 1 else "greedy",
    }


def _latent(keys: Keys) -> Fields:
    """The sizes of latent attention. Since April 2025 files have those of its keys and values
    under names of their own, and call the sizes of what is cached the length of keys and values.
    """
    rope = keys.integer("qk_rope_head_dim")
    mla = "_mla" if keys.has("attention.key_length_mla") else ""
    return {
        "q_lora_rank": keys.integer("q_lora_rank", 0) or None,
        "kv_lora_rank": keys.integer("kv_lora_rank"),
        "qk_rope_head_dim": rope,
        "qk_nope_head_dim": keys.integer(f"attention.key_length{mla}") - rope,
        "v_head_dim": keys.integer(f"attention.value_length{mla}"),
    }


_MODELS: Mapping[str, Callable[[Keys, Fields], Fields]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "deepseek": _deepseek,
    "deepseek2": _deepseek2,
}
"""Architectures that are read."""
