"""What every model's config has, and how config.json becomes a typed, checked dataclass.

A model's config is a frozen dataclass whose fields carry HF's names and defaults; fields of
config.json that no dataclass names are ignored, as in transformers.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, Self, get_args, get_type_hints

from deepmnn.errors import ConfigError, UnsupportedModelError
from deepmnn.models.rope import RopeParameters

MAX_INT = 1 << 24
"""No size in a config is larger; a damaged config must not make us allocate without end."""


MAX_HEAD_DIM = 1 << 16
"""The same for the size of a head, of which every node keeps the frequencies."""


def bounded(default: Any, low: int, high: int = MAX_INT) -> Any:
    """A field whose number lies in low..high (without it: ints 1..MAX_INT, floats above 0)."""
    return field(default=default, metadata={"low": low, "high": high})


@dataclass(frozen=True)
class ModelConfig:
    """Fields all models share."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = bounded(32, 1, 4096)
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    rope_parameters: RopeParameters = field(default_factory=RopeParameters)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """Reads the fields from a parsed config.json.

        Raises:
            ConfigError: a field has the wrong type, is out of range or contradicts another.
            UnsupportedModelError: an option deepmnn does not run.
        """
        hints = get_type_hints(cls)
        values: dict[str, Any] = {"rope_parameters": RopeParameters.from_dict(config)}
        for spec in fields(cls):
            if spec.name in config and spec.name != "rope_parameters":
                values[spec.name] = _typed(spec, hints[spec.name], config[spec.name])
        result = cls(**values)
        result.check()
        return result

    def check(self) -> None:
        """Raises ConfigError when fields contradict one another; models add their own rules."""
        supported("hidden_act", self.hidden_act, "silu")

    @property
    def kv_heads(self) -> int:
        """num_key_value_heads, which defaults to num_attention_heads."""
        return self.num_key_value_heads or self.num_attention_heads


def require(condition: bool, name: str, found: object, expected: str) -> None:
    """Raises ConfigError naming the field unless the condition holds."""
    if not condition:
        raise ConfigError(f"{name} is {found!r}", expected, "Check config.json.")


def supported(name: str, found: object, *choices: object) -> None:
    """Raises UnsupportedModelError unless `found` is one of the choices."""
    if found not in choices:
        expected = " or ".join(repr(choice) for choice in choices)
        raise UnsupportedModelError(f"{name} is {found!r}", expected, "deepmnn does not run it.")


def _typed(spec: Field[Any], hint: Any, value: Any) -> Any:
    """The value, when it has the field's type and range. An int is a number, a bool is not."""
    options = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    kind = options[0]
    names = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}
    accepts = (int, float) if kind is float else kind
    if not isinstance(value, accepts) or (kind is not bool and isinstance(value, bool)):
        raise ConfigError(f"{spec.name} is {value!r}", names[kind], "Check config.json.")
    if kind in (int, float):
        return kind(_in_range(spec, kind, value))
    return value


def _in_range(spec: Field[Any], kind: type, value: float) -> float:
    low, high = spec.metadata.get("low", 1), spec.metadata.get("high", MAX_INT)
    if kind is float and "low" not in spec.metadata:
        require(0 < value < high, spec.name, value, f"a number above 0 and below {high}")
    else:
        require(low <= value <= high, spec.name, value, f"a number from {low} to {high}")
    return value
