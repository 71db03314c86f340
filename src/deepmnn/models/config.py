"""What every model's config has, and how config.json becomes a typed, checked dataclass.

A model's config is a frozen dataclass whose fields carry HF's names and the defaults of
transformers' class for that model_type. A field that config.json lacks, or has as null where null
has no meaning of its own, takes its default. Fields that no dataclass names are ignored, as in
transformers.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, Self, get_args, get_type_hints

from deepmnn.errors import UnsupportedModelError
from deepmnn.models.fields import (
    MAX_INT,
    boolean,
    number,
    require,
    shown,
    supported,
    text,
    texts,
    whole,
)
from deepmnn.models.rope import RopeParameters

MAX_LAYERS = 1 << 9
"""The deepest published decoder has 126 layers."""

MAX_HEAD_DIM = 1 << 12
"""The largest size of a head, of which every node keeps the frequencies."""

_NOT_RUN = ("attn_logit_softcapping", "final_logit_softcapping", "clip_qkv")
"""Fields of other decoders that change the numbers. No model here has them, nor do transformers'
classes of these models read them: a config that sets one means another model."""

_KINDS: dict[Any, Callable[..., Any]] = {
    int: whole,
    float: number,
    bool: boolean,
    str: text,
    tuple[str, ...]: texts,
}


def bounded(default: Any, low: int, high: int = MAX_INT) -> Any:
    """A field whose number lies in low..high (without it: ints 1..MAX_INT, floats above 0)."""
    return field(default=default, metadata={"low": low, "high": high})


@dataclass(frozen=True)
class ModelConfig:
    """Fields all models share. Sliding windows are refused where a layer would use one."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = bounded(32, 1, MAX_LAYERS)
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    use_sliding_window: bool = False
    sliding_window: int | None = bounded(4096, -1)
    max_window_layers: int = bounded(28, 0)
    layer_types: tuple[str, ...] | None = None
    rope_parameters: RopeParameters = field(default_factory=RopeParameters)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """Reads the fields from a parsed config.json.

        Raises:
            ConfigError: a field has the wrong type, is out of range or contradicts another.
            UnsupportedModelError: an option deepmnn does not run.
        """
        for name in _NOT_RUN:
            supported(name, config.get(name), None)
        hints = get_type_hints(cls)
        values: dict[str, Any] = {
            spec.name: _typed(spec, hints[spec.name], config[spec.name])
            for spec in fields(cls)
            if spec.name in config and spec.name != "rope_parameters"
        }
        length = values.get("max_position_embeddings", cls.max_position_embeddings)
        result = cls(rope_parameters=RopeParameters.from_dict(config, length), **values)
        result.check()
        return result

    def check(self) -> None:
        """Raises ConfigError when fields contradict one another; models add their own rules."""
        supported("hidden_act", self.hidden_act, "silu", "swish")
        within = self.context_length <= MAX_INT
        require(within, "the context length", self.context_length, f"at most {MAX_INT} tokens")
        self._check_windows()

    def _check_windows(self) -> None:
        """Raises ConfigError when a layer would attend to a window only.

        As transformers' Qwen2Config reads the four fields: layer_types, where it is given, says
        which layers slide; otherwise, with use_sliding_window, those from max_window_layers on.
        """
        layers, window = self.num_hidden_layers, self.sliding_window
        used = self.use_sliding_window and window is not None
        kinds = self.layer_types
        if kinds is None:
            kinds = ("sliding_attention",) * max(0, layers - self.max_window_layers) if used else ()
        else:
            require(len(kinds) == layers, "layer_types", kinds, f"one for each of {layers} layers")
        for kind in kinds:
            supported("layer_types", kind, "full_attention", "sliding_attention")
        if "sliding_attention" not in kinds:
            return
        if not used or window is None or window < 1:
            raise UnsupportedModelError(
                f"layer_types names sliding_attention, use_sliding_window is "
                f"{shown(self.use_sliding_window)} and sliding_window {shown(window)}",
                "full_attention in every layer, or a window",
                "Check config.json.",
            )
        if window < self.context_length:
            raise UnsupportedModelError(
                f"sliding_window is {window} in some layers",
                f"full attention, or a window of at least {self.context_length} tokens, "
                "the context length",
                "deepmnn does not run sliding windows.",
            )

    @property
    def context_length(self) -> int:
        """The longest sequence the model is made for, in tokens.

        max_position_embeddings; with YaRN the original length times the factor, where that is more:
        Qwen's recipe for long texts adds rope_scaling (factor 4, 32768 tokens originally) and
        leaves max_position_embeddings at 32768, DeepSeek-V3 has 163840 = 40 · 4096 in it already.
        No other scaling multiplies: DeepSeek-Coder (linear, factor 4) and Llama 3.1 (llama3, factor
        8, which is no ratio of lengths) have the extended length in max_position_embeddings.
        """
        return max(self.max_position_embeddings, self.rope_parameters.extended_length)

    @property
    def kv_heads(self) -> int:
        """num_key_value_heads, which defaults to num_attention_heads."""
        return self.num_key_value_heads or self.num_attention_heads


def _typed(spec: Field[Any], hint: Any, value: Any) -> Any:
    """The value, when it has the field's type and range.

    null is the default, unless it is one of the field's types, or the default is true: transformers
    takes null for false there, so it could mean either.
    """
    options = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    if value is None and spec.default is not True:
        return spec.default
    return _KINDS[options[0]](spec.name, value, **spec.metadata)
