"""Rotary position embeddings: the frequencies of each published scaling, from a config's fields.

Frequencies: RoFormer (arXiv:2104.09864). linear: position interpolation (arXiv:2306.15595).
llama3: Llama 3.1's reference code. yarn: YaRN (arXiv:2309.00071), as DeepSeek's
modeling_deepseek.py and transformers compute it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deepmnn.errors import ConfigError, UnsupportedModelError
from deepmnn.models.fields import boolean, number, shown, whole

_FACTORS: dict[str, dict[str, float | None]] = {
    # rope_type → its own fields and their defaults (None: required)
    "linear": {},
    "llama3": {"low_freq_factor": None, "high_freq_factor": None},
    "yarn": {"beta_fast": 32.0, "beta_slow": 1.0},
}


@dataclass(frozen=True)
class RopeParameters:
    """What a config says about positions; field names are those of rope_scaling / rope_parameters.

    mscale, mscale_all_dim and attention_factor are None when the config does not give them: the
    published codes differ in what that means (see `rope_scale` and models/mla.py).
    """

    rope_theta: float = 10000.0
    rope_type: str = "default"
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], max_position_embeddings: int) -> RopeParameters:
        """Reads rope_scaling and rope_theta, or rope_parameters (transformers 5), which holds both.

        As in transformers, rope_scaling wins where a config has the two; the original length that
        a config does not name is max_position_embeddings, and YaRN's factor the ratio of the two.

        Args:
            config: the whole config.json.
            max_position_embeddings: its value, or the model's default.

        Raises:
            ConfigError: a field has the wrong type or range, or is missing.
            UnsupportedModelError: a scaling we do not run.
        """
        key = "rope_parameters" if config.get("rope_scaling") in (None, {}) else "rope_scaling"
        fields = _object(key, config.get(key))
        rope_type = _rope_type(key, fields)
        theta = _first(fields.get("rope_theta"), config.get("rope_theta"), cls.rope_theta)
        values: dict[str, Any] = {"rope_theta": number("rope_theta", theta, high=1e18)}
        partial = _first(
            fields.get("partial_rotary_factor"), config.get("partial_rotary_factor"), 1.0
        )
        if number("partial_rotary_factor", partial) != 1.0:
            raise UnsupportedModelError(f"partial_rotary_factor is {shown(partial)}", "1.0")
        if rope_type != "default":
            values |= _scaling(key, rope_type, config, fields, max_position_embeddings)
        return cls(rope_type=rope_type, **values)._checked(key)

    def _checked(self, key: str) -> RopeParameters:
        """Itself, when its fields fit one another."""
        low, high = self.low_freq_factor, self.high_freq_factor
        if self.rope_type == "llama3" and high <= low:
            raise ConfigError(
                f"{key}.high_freq_factor is {high}", f"more than low_freq_factor, {low}"
            )
        if self.rope_theta <= 1.0:
            raise ConfigError(f"rope_theta is {self.rope_theta}", "a number above 1")
        return self

    @property
    def extended_length(self) -> int:
        """Tokens that YaRN extends the original length to; 0 with other scalings, whose factor is
        no ratio of lengths or already in max_position_embeddings.
        """
        yarn = self.rope_type == "yarn"
        return int(self.original_max_position_embeddings * self.factor) if yarn else 0

    def inv_freq(self, dim: int) -> tuple[float, ...]:
        """The dim / 2 angular frequencies, radians per position."""
        base = [self.rope_theta ** (-2 * i / dim) for i in range(dim // 2)]
        if self.rope_type == "linear":
            return tuple(f / self.factor for f in base)
        if self.rope_type == "llama3":
            return tuple(self._llama3(f) for f in base)
        if self.rope_type == "yarn":
            return self._yarn(base, dim)
        return tuple(base)

    def _llama3(self, frequency: float) -> float:
        """Long waves are interpolated, short ones kept, those between blended."""
        turns = self.original_max_position_embeddings * frequency / (2 * math.pi)
        low, high = self.low_freq_factor, self.high_freq_factor
        if turns < low:
            return frequency / self.factor
        if turns > high:
            return frequency
        blend = (turns - low) / (high - low)
        return (1 - blend) * frequency / self.factor + blend * frequency

    def _yarn(self, base: list[float], dim: int) -> tuple[float, ...]:
        """A ramp over the dimensions from extrapolation (many turns) to interpolation (few)."""

        def dimension(turns: float) -> float:
            length = self.original_max_position_embeddings
            return dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(self.rope_theta))

        low, high = dimension(self.beta_fast), dimension(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        span = high - low if high != low else 0.001
        ramp = [min(max((i - low) / span, 0.0), 1.0) for i in range(len(base))]
        return tuple(f / self.factor * r + f * (1 - r) for f, r in zip(base, ramp, strict=True))

    def rope_scale(self) -> float:
        """What multiplies cos and sin, as transformers has it (llama, qwen2, qwen3).

        DeepSeek's own code differs when only one of mscale and mscale_all_dim is given
        (models/mla.py).
        """
        if self.rope_type != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            numerator = yarn_mscale(self.factor, self.mscale)
            return numerator / yarn_mscale(self.factor, self.mscale_all_dim)
        return yarn_mscale(self.factor, 1.0)


def yarn_mscale(factor: float, mscale: float) -> float:
    """YaRN's attention temperature, √(1/t) in the paper: 0.1 · mscale · ln(factor) + 1."""
    return 1.0 if factor <= 1.0 else 0.1 * mscale * math.log(factor) + 1.0


def _object(key: str, value: Any) -> Mapping[str, Any]:
    """The scaling's fields; null is none."""
    fields = {} if value is None else value
    if not isinstance(fields, Mapping):
        raise ConfigError(f"{key} is {shown(fields)}", "an object", "Check config.json.")
    if any(isinstance(inner, Mapping) for inner in fields.values()):
        raise UnsupportedModelError(f"{key} differs from layer to layer", "one for all layers")
    return fields


def _rope_type(key: str, fields: Mapping[str, Any]) -> str:
    """rope_type, which older configs call type."""
    found = _first(fields.get("rope_type"), fields.get("type"), "default")
    types = ("default", *_FACTORS)
    if found not in types:
        raise UnsupportedModelError(
            f"{key}.rope_type is {shown(found)}",
            f"one of {', '.join(types)}",
            "Remove the scaling from config.json to run within the original context length.",
        )
    return str(found)


def _first(*values: Any) -> Any:
    """The first that is not null."""
    return next((value for value in values if value is not None), None)


def _scaling(
    key: str,
    rope_type: str,
    config: Mapping[str, Any],
    fields: Mapping[str, Any],
    max_position_embeddings: int,
) -> dict[str, Any]:
    """The fields that extend the context."""
    name = "original_max_position_embeddings"
    length = whole(name, _first(config.get(name), fields.get(name), max_position_embeddings))
    factor = fields.get("factor")
    if factor is None and rope_type == "yarn":
        factor = max_position_embeddings / length
    factor = number(f"{key}.factor", factor, low=1.0)
    values: dict[str, Any] = {"factor": factor, name: length}
    for option, default in _FACTORS[rope_type].items():
        values[option] = number(f"{key}.{option}", _first(fields.get(option), default))
    for option in ("mscale", "mscale_all_dim"):
        if fields.get(option) is not None:
            values[option] = number(f"{key}.{option}", fields[option], low=0.0)
    if rope_type == "yarn":
        if fields.get("attention_factor") is not None:
            found = number(f"{key}.attention_factor", fields["attention_factor"])
            values["attention_factor"] = found
        values["truncate"] = boolean(f"{key}.truncate", fields.get("truncate", True))
        if fields.get("attn_factor") is not None:
            # R1-0528-Qwen3-8B: as in YaRN's own code it multiplies the temperature (to 1, there).
            # transformers warns that it does not know the field, and goes on without it.
            attn_factor = number(f"{key}.attn_factor", fields["attn_factor"])
            values.setdefault("attention_factor", attn_factor * yarn_mscale(factor, 1.0))
    return values
