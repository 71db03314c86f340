"""config.json of DeepSeek-V4, in the words of the published files and in those of transformers.

published                                   transformers 5 (save_pretrained)
compress_ratios: 0, 4, 128 of each layer    layer_types, compress_rates
num_hash_layers                             mlp_layer_types
qk_rope_head_dim                            partial_rotary_factor, of head_dim
rope_theta, compress_rope_theta,            rope_parameters: {"main": ..., "compress": ...}
rope_scaling
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from deepmnn.errors import ConfigError, UnsupportedModelError
from deepmnn.models.config import MAX_HEAD_DIM, MAX_LAYERS, ModelConfig, bounded
from deepmnn.models.fields import number, require, shown, supported, whole
from deepmnn.models.moe import MAX_EXPERTS, Routing
from deepmnn.models.rope import RopeParameters

SLIDING = "sliding_attention"
SPARSE = "compressed_sparse_attention"
HEAVILY = "heavily_compressed_attention"
KINDS = (SLIDING, SPARSE, HEAVILY)
HASHED, ROUTED = "hash_moe", "moe"

_RATES = {SPARSE: "compress_rate_csa", HEAVILY: "compress_rate_hca"}
_PARTIAL = "partial_rotary_factor"
_ROTARY_PART = 64 / 512
"""Of a head, where a config does not say how much of it is rotated."""

_THETA = 160000.0
_HASH_LAYERS = 3
"""Whose experts the id chooses, where a config does not say."""


@dataclass(frozen=True)
class DeepseekV4Config(ModelConfig):
    """transformers' DeepseekV4Config, and its old names of the two rates.

    rope_parameters are those of the layers with entries; sliding ones rotate by rope_theta alone.
    """

    vocab_size: int = 129280
    hidden_size: int = 4096
    moe_intermediate_size: int = 2048
    num_hidden_layers: int = bounded(43, 1, MAX_LAYERS)
    num_attention_heads: int = 64
    num_key_value_heads: int = 1
    head_dim: int = bounded(512, 2, MAX_HEAD_DIM)
    qk_rope_head_dim: int = bounded(64, 2, MAX_HEAD_DIM)
    q_lora_rank: int = 1024
    o_groups: int = 8
    o_lora_rank: int = 1024
    num_experts_per_tok: int = 6
    n_routed_experts: int = bounded(256, 1, MAX_EXPERTS)
    n_shared_experts: int = 1
    scoring_func: str = "sqrtsoftplus"
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.5
    swiglu_limit: float = bounded(10.0, 0)
    max_position_embeddings: int = 1048576
    rope_theta: float = bounded(10000.0, 1, 1e18)  # type: ignore[arg-type]
    compress_rate_csa: int = 4
    compress_rate_hca: int = 128
    mlp_layer_types: tuple[str, ...] | None = None
    sliding_window: int = bounded(128, 1)
    index_n_heads: int = 64
    index_head_dim: int = bounded(128, 2, MAX_HEAD_DIM)
    index_topk: int = 512
    hc_mult: int = bounded(4, 1, 64)
    hc_sinkhorn_iters: int = bounded(20, 1, 1000)
    hc_eps: float = bounded(1e-6, 0, 1)
    num_nextn_predict_layers: int = bounded(1, 0, 64)
    attention_bias: bool = False
    mlp_bias: bool = False

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """Reads either kind of config. Raises ConfigError or UnsupportedModelError."""
        fields = {name: value for name, value in config.items() if name not in _ROPE_FIELDS}
        fields |= _rates(config) | _layers(config) | _rope_dim(config)
        return super().from_dict(fields | _ropes(config))

    def check(self) -> None:
        """Raises ConfigError when the fields contradict one another."""
        super().check()
        supported("num_key_value_heads", self.num_key_value_heads, 1)
        supported("n_shared_experts", self.n_shared_experts, 1)
        supported("norm_topk_prob", self.norm_topk_prob, True)
        supported("attention_bias", self.attention_bias, False)
        supported("mlp_bias", self.mlp_bias, False)
        supported("scoring_func", self.scoring_func, "sqrtsoftplus", "sigmoid")
        experts, heads = self.n_routed_experts, self.num_attention_heads
        fits = self.num_experts_per_tok <= experts
        expected = f"an integer from 1 to n_routed_experts, {experts}"
        require(fits, "num_experts_per_tok", self.num_experts_per_tok, expected)
        require(
            heads % self.o_groups == 0, "o_groups", self.o_groups, f"a divisor of {heads} heads"
        )
        heads_of = [self.head_dim, *([self.index_head_dim] if SPARSE in self.kinds else [])]
        rope, most = self.qk_rope_head_dim, min(heads_of)
        even = rope % 2 == 0 and rope <= most
        expected = f"an even number up to {most}, the size of a head"
        require(even, "qk_rope_head_dim", rope, expected)

    def _check_windows(self) -> None:
        """layer_types and mlp_layer_types have a known kind for each layer."""
        layers = self.num_hidden_layers
        for name, found, kinds in (
            ("layer_types", self.layer_types, KINDS),
            ("mlp_layer_types", self.mlp_layer_types, (HASHED, ROUTED)),
        ):
            if found is not None:
                require(len(found) >= layers, name, found, f"one for each of {layers} layers")
                for kind in found[:layers]:
                    supported(name, kind, *kinds)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kind of attention of every layer. Without layer_types: two heavily compressed ones,
        then both kinds of entries in turn, as transformers has it.
        """
        if self.layer_types is not None:
            return self.layer_types[: self.num_hidden_layers]
        rest = range(max(0, self.num_hidden_layers - 2))
        turns = (SPARSE if index % 2 else HEAVILY for index in rest)
        return (HEAVILY, HEAVILY, *turns)[: self.num_hidden_layers]

    def ratio(self, kind: str) -> int:
        """Tokens of an entry in a layer of this kind; 1 where there are none."""
        return int(getattr(self, _RATES[kind])) if kind in _RATES else 1

    def is_hashed(self, layer: int) -> bool:
        """Whether a token's id alone chooses the experts of a layer."""
        if self.mlp_layer_types is None:
            return layer < _HASH_LAYERS
        return self.mlp_layer_types[layer] == HASHED

    @property
    def main_rope(self) -> RopeParameters:
        """The rotation of sliding layers."""
        return RopeParameters(rope_theta=self.rope_theta)

    @property
    def routing(self) -> Routing:
        """A bias that is not in the weights chooses; no groups."""
        return Routing(
            self.scoring_func,
            self.num_experts_per_tok,
            normalize=True,
            factor=self.routed_scaling_factor,
            correction_bias=True,
        )


_ROPES = ("main", "compress")
"""The parts of rope_parameters: that of sliding layers, that of the others."""

_ROPE_FIELDS = ("rope_parameters", "rope_scaling", "rope_theta", "compress_rope_theta", _PARTIAL)


def _rates(config: Mapping[str, Any]) -> dict[str, Any]:
    """The tokens of an entry of each kind, out of compress_rates; the old names win."""
    found = config.get("compress_rates")
    if found is None:
        return {}
    if not isinstance(found, Mapping) or not set(found) <= set(KINDS):
        raise ConfigError(
            f"compress_rates is {shown(found)}", f"an object with {', '.join(_RATES)}"
        )
    return {
        name: whole(f"compress_rates.{kind}", found[kind])
        for kind, name in _RATES.items()
        if found.get(kind) is not None and config.get(name) is None
    }


def _layers(config: Mapping[str, Any]) -> dict[str, Any]:
    """layer_types and mlp_layer_types, out of compress_ratios and num_hash_layers."""
    made: dict[str, Any] = {}
    ratios, count = config.get("compress_ratios"), config.get("num_hidden_layers")
    if config.get("layer_types") is None and ratios is not None:
        kinds = {0: SLIDING, 4: SPARSE, 128: HEAVILY}
        if not isinstance(ratios, list) or not all(
            type(ratio) in (int, float) and ratio in kinds for ratio in ratios
        ):
            raise ConfigError(f"compress_ratios is {shown(ratios)}", "a list of 0, 4 and 128")
        made["layer_types"] = [kinds[int(ratio)] for ratio in ratios]
    if (hashed := config.get("num_hash_layers")) is None:
        return made
    hashed = whole("num_hash_layers", hashed, low=0)
    if config.get("mlp_layer_types") is None:
        default = DeepseekV4Config.num_hidden_layers
        layers = whole("num_hidden_layers", default if count is None else count, 1, MAX_LAYERS)
        made["mlp_layer_types"] = [HASHED if i < hashed else ROUTED for i in range(layers)]
    return made


def _rope_dim(config: Mapping[str, Any]) -> dict[str, Any]:
    """qk_rope_head_dim, out of partial_rotary_factor where there is one; else as it is given, or
    as large a part of a head as transformers takes.
    """
    factors = {_PARTIAL: config.get(_PARTIAL)}
    for kind, part in _nested(config).items():
        factors[f"rope_parameters.{kind}.{_PARTIAL}"] = part.get(_PARTIAL)
    size = config.get("head_dim")
    head_dim = DeepseekV4Config.head_dim if size is None else whole("head_dim", size)
    found = {
        int(head_dim * number(name, factor, high=1.0) + 1e-6)
        for name, factor in factors.items()
        if factor is not None
    }
    if len(found) > 1:
        raise UnsupportedModelError(f"the rotated parts of a head are {sorted(found)}", "equal")
    if not found and config.get("qk_rope_head_dim") is None:
        found.add(int(head_dim * _ROTARY_PART))
    return {"qk_rope_head_dim": found.pop()} if found else {}


def _nested(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """rope_parameters by _ROPES, where it has such parts: it must have both, then."""
    found = config.get("rope_parameters")
    if not isinstance(found, Mapping) or not any(kind in found for kind in _ROPES):
        return {}
    for kind in _ROPES:
        if not isinstance(found.get(kind), Mapping):
            raise ConfigError(
                f"rope_parameters.{kind} is {shown(found.get(kind))}",
                "an object, beside that of the other layers",
                "Check config.json.",
            )
    return {kind: found[kind] for kind in _ROPES}


def _ropes(config: Mapping[str, Any]) -> dict[str, Any]:
    """rope_theta of sliding layers, and rope_parameters of the others.

    YaRN multiplies no cos and sin unless a config that has both parts says so.
    """
    if nested := _nested(config):
        main, compress = (_without_factor(nested[kind]) for kind in _ROPES)
        supported("rope_parameters.main.rope_type", main.get("rope_type", "default"), "default")
        return {"rope_theta": main.get("rope_theta"), "rope_parameters": compress}
    key = "rope_parameters" if config.get("rope_scaling") in (None, {}) else "rope_scaling"
    scaling = config.get(key)
    if scaling is not None and not isinstance(scaling, Mapping):
        raise ConfigError(f"{key} is {shown(scaling)}", "an object", "Check config.json.")
    theta = config.get("compress_rope_theta")
    theta = number("compress_rope_theta", _THETA if theta is None else theta, high=1e18)
    compress = _without_factor(scaling or {}) | {"rope_theta": theta}
    if compress.get("attention_factor") is None:
        compress["attention_factor"] = 1.0
    return {"rope_theta": config.get("rope_theta"), "rope_parameters": compress}


def _without_factor(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name != _PARTIAL}
