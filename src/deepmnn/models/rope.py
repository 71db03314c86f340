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

_FIELDS: dict[str, dict[str, float | None]] = {
    # rope_type → its fields and their defaults (None: required)
    "default": {},
    "linear": {"factor": None},
    "llama3": {
        "factor": None,
        "low_freq_factor": None,
        "high_freq_factor": None,
        "original_max_position_embeddings": None,
    },
    "yarn": {
        "factor": None,
        "original_max_position_embeddings": None,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
    },
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
    original_max_position_embeddings: float = 0.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> RopeParameters:
        """Reads rope_parameters (transformers 5) or rope_theta and rope_scaling (before).

        Args:
            config: the whole config.json.

        Raises:
            ConfigError: a field has the wrong type or range, or is missing.
            UnsupportedModelError: a scaling we do not run.
        """
        key = "rope_parameters" if config.get("rope_parameters") is not None else "rope_scaling"
        fields = config.get(key)
        if fields is None:
            fields = {}
        if not isinstance(fields, Mapping):
            raise ConfigError(f"{key} is {fields!r}", "an object", "Check config.json.")
        if any(isinstance(value, Mapping) for value in fields.values()):
            raise UnsupportedModelError(f"{key} differs from layer to layer", "one for all layers")
        rope_type = fields.get("rope_type", fields.get("type", "default"))
        if not isinstance(rope_type, str) or rope_type not in _FIELDS:
            raise UnsupportedModelError(
                f"{key}.rope_type is {rope_type!r}",
                f"one of {', '.join(_FIELDS)}",
                "Remove the scaling from config.json to run within the original context length.",
            )
        theta = fields.get("rope_theta", config.get("rope_theta"))
        values: dict[str, Any] = {
            "rope_theta": _number(key, "rope_theta", cls.rope_theta if theta is None else theta)
        }
        partial = fields.get("partial_rotary_factor", config.get("partial_rotary_factor"))
        if partial is not None and partial != 1.0:
            raise UnsupportedModelError(f"partial_rotary_factor is {partial!r}", "1.0")
        for name, default in _FIELDS[rope_type].items():
            found = fields.get(name)
            if found is None and name == "original_max_position_embeddings":
                found = config.get(name)
            values[name] = _number(key, name, default if found is None else found)
        if rope_type == "yarn":
            values |= _yarn_options(key, fields, values["factor"])
        return cls(rope_type=rope_type, **values)._checked(key)

    def _checked(self, key: str) -> RopeParameters:
        """Itself, when its fields fit one another."""
        if self.factor < 1.0:
            raise ConfigError(f"{key}.factor is {self.factor}", "a number of at least 1")
        if self.rope_type == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            raise ConfigError(
                f"{key}.high_freq_factor is {self.high_freq_factor}",
                f"more than low_freq_factor, {self.low_freq_factor}",
            )
        if self.rope_theta <= 1.0:
            raise ConfigError(f"rope_theta is {self.rope_theta}", "a number above 1")
        return self

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
        if turns < self.low_freq_factor:
            return frequency / self.factor
        if turns > self.high_freq_factor:
            return frequency
        blend = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
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


def _number(key: str, name: str, value: Any, positive: bool = True) -> float:
    valid = isinstance(value, int | float) and not isinstance(value, bool)
    if not valid or not 0 <= value < 1e18 or (positive and value == 0):
        found = "missing" if value is None else repr(value)
        raise ConfigError(f"{key}.{name} is {found}", "a positive number", "Check config.json.")
    return float(value)


def _yarn_options(key: str, fields: Mapping[str, Any], factor: float) -> dict[str, Any]:
    options: dict[str, Any] = {
        name: _number(key, name, fields[name], positive=False)
        for name in ("attention_factor", "mscale", "mscale_all_dim")
        if fields.get(name) is not None
    }
    if fields.get("attn_factor") is not None:
        # R1-0528-Qwen3-8B: as in YaRN's own code it multiplies the temperature (to 1, there).
        # transformers warns that it does not know the field, and goes on without it.
        attn_factor = _number(key, "attn_factor", fields["attn_factor"])
        options.setdefault("attention_factor", attn_factor * yarn_mscale(factor, 1.0))
    truncate = fields.get("truncate", True)
    if not isinstance(truncate, bool):
        raise ConfigError(f"{key}.truncate is {truncate!r}", "true or false")
    return {**options, "truncate": truncate}
