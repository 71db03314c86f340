"""DeepSeek-V4's own names of tensors, and what transformers' save_pretrained makes of them.

Published checkpoints have `layers.0.attn.wq_a.weight`; transformers' model has
`model.layers.0.self_attn.q_a_proj.weight`, and writes a mixture: `model.` in front of most names,
`attn.norm` for `attn.kv_norm`. All of them are read under transformers' names; those of
multi-token prediction, which it has not got, as if it called their parts like a layer's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_PARTS = ("fn", "base", "scale")
_TOP = {
    "embed.weight": "model.embed_tokens.weight",
    "head.weight": "lm_head.weight",
    "norm.weight": "model.norm.weight",
    **{f"hc_head_{part}": f"model.hc_head.hc_{part}" for part in _PARTS},
}
_COMPRESSOR = {"wkv": "kv_proj", "wgate": "gate_proj", "ape": "position_bias", "norm": "kv_norm"}
_ATTENTION = {
    "wq_a": "q_a_proj",
    "q_norm": "q_a_norm",
    "wq_b": "q_b_proj",
    "wkv": "kv_proj",
    "norm": "kv_norm",
    "wo_a": "o_a_proj",
    "wo_b": "o_b_proj",
    "attn_sink": "sinks",
    "indexer.wq_b": "compressor.indexer.q_b_proj",
    "indexer.weights_proj": "compressor.indexer.scorer.weights_proj",
    **{f"compressor.{old}": f"compressor.{new}" for old, new in _COMPRESSOR.items()},
    **{
        f"indexer.compressor.{old}": f"compressor.indexer.{new}" for old, new in _COMPRESSOR.items()
    },
}
_PROJECTIONS = {
    f"w{number}": name for number, name in enumerate(("gate_proj", "down_proj", "up_proj"), start=1)
}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn.gate.bias": "mlp.gate.e_score_correction_bias",
    **{f"hc_{block}_{part}": f"{block}_hc.{part}" for block in ("attn", "ffn") for part in _PARTS},
    **{f"hc_head_{part}": f"hc_head.hc_{part}" for part in _PARTS},
    **{f"attn.{old}": f"self_attn.{new}" for old, new in _ATTENTION.items()},
}
_LAYER = re.compile(r"(?:model\.)?((?:layers|mtp)\.\d+)\.(.+)")
_EXPERT = re.compile(r"ffn\.((?:experts\.\d+|shared_experts)\.)(w[123])(\..+)")


def has_own_names(names: Iterable[str]) -> bool:
    """Whether these are a checkpoint of DeepSeek-V4 under names of its own."""
    return any(name.endswith((".hc_attn_fn", ".attn.attn_sink")) for name in names)


def transformers_name(name: str) -> str:
    """What transformers calls a tensor; itself where that is its name already."""
    if name in _TOP:
        return _TOP[name]
    found = _LAYER.fullmatch(name)
    if found is None:
        return name
    layer, rest = found.groups()
    if expert := _EXPERT.fullmatch(rest):
        of, projection, kind = expert.groups()
        return f"model.{layer}.mlp.{of}{_PROJECTIONS[projection]}{kind}"
    return f"model.{layer}.{_block_name(rest)}"


def _block_name(name: str) -> str:
    """Inside a layer: its module by the longest name that is known, then what follows."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        module = ".".join(parts[:end])
        if module in _BLOCK:
            return ".".join([_BLOCK[module], *parts[end:]])
    for own, theirs in (("attn.", "self_attn."), ("ffn.", "mlp.")):
        if name.startswith(own):
            return theirs + name.removeprefix(own)
    return name
