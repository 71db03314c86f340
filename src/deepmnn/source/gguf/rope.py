"""How a GGUF file says that a context was extended, as rope_scaling of config.json.

Linear and YaRN scaling are keys. Llama 3's is a tensor, rope_freqs.weight, which divides each
frequency by a number; config.json has the four parameters that those come from.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from deepmnn.errors import CheckpointError, UnsupportedModelError, shown
from deepmnn.graph.weights import F32
from deepmnn.source.gguf.names import ROPE_FACTORS

if TYPE_CHECKING:
    from deepmnn.source.gguf.config import Fields, Keys

_TOLERANCE = 1e-5
"""Between the stored divisors and those of the parameters: both are float32."""

_LLAMA_3 = (1.0, 4.0)
"""low_freq_factor and high_freq_factor of all published models."""


def rope_scaling(keys: Keys, fields: Fields) -> Fields:
    """{"rope_scaling": ...}, or nothing where the context was not extended.

    Args:
        keys: the file's.
        fields: of config.json, so far.

    Raises CheckpointError or UnsupportedModelError.
    """
    if ROPE_FACTORS in keys.tensors:
        _check_no_attention_factor(keys)
        return _llama3(keys, fields)
    factor = keys.number("factor", keys.number("rope.scale_linear", 0.0)) or 1.0
    kind = keys.get("rope_type", "linear")
    if kind in ("none", "linear"):
        _check_no_attention_factor(keys)
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return {}
    if kind == "linear":
        return {"rope_scaling": {"rope_type": "linear", "factor": factor}}
    if kind == "yarn":
        return {"rope_scaling": _yarn(keys, fields, factor)}
    raise UnsupportedModelError(
        f"{keys.key('rope_type')} in {keys.path} is {shown(kind)}",
        "none, linear or yarn",
    )


def _check_no_attention_factor(keys: Keys) -> None:
    """llama.cpp multiplies cos and sin by it, whatever the type; config.json has it for YaRN."""
    if (found := keys.number("rope.scaling.attn_factor", 1.0)) != 1.0:
        raise UnsupportedModelError(
            f"{keys.arch}.rope.scaling.attn_factor in {keys.path} is {found}",
            "1, or rope.scaling.type yarn",
        )


def _yarn(keys: Keys, fields: Fields, factor: float) -> dict[str, Any]:
    """YaRN's fields. Where the converter does not write one, it has the default of both."""
    name = "original_max_position_embeddings"
    found: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": factor,
        name: keys.integer(name, fields["max_position_embeddings"]),
    }
    for field in ("beta_fast", "beta_slow"):
        if keys.has(field):
            found[field] = keys.number(field, 0.0)
    if keys.has("rope.scaling.yarn_log_multiplier"):
        return found | _latent_yarn(keys, factor)
    attention = _attention_factor(keys, 1 + 0.1 * math.log(max(factor, 1.0)))
    return found if attention is None else found | {"attention_factor": attention}


def _latent_yarn(keys: Keys, factor: float) -> dict[str, float]:
    """The temperatures of deepseek2, which have a key of their own: a tenth of mscale_all_dim.

    With m(x) = 1 + 0.1 x ln(factor), llama.cpp multiplies cos and sin by attn_factor and scores by
    (attn_factor · m(mscale_all_dim))²; without a multiplier cos and sin by m(1), too. Published
    models have no attn_factor, since their mscale is mscale_all_dim.
    """
    multiplier = keys.number("rope.scaling.yarn_log_multiplier", 0.0)
    attention = keys.number("rope.scaling.attn_factor", 1.0)
    slope = 0.1 * math.log(max(factor, 1.0))
    every = round(multiplier * 10, 6)
    if attention == 1.0 or slope == 0.0:
        return {"mscale": every or 1.0, "mscale_all_dim": every}
    temperature = attention * (1 + slope * every)
    own = 1.0 if every else 1 + slope
    return {
        "mscale_all_dim": (temperature - 1) / slope,
        "attention_factor": attention * own,
    }


def _attention_factor(keys: Keys, default: float) -> float | None:
    """What multiplies cos and sin, where the file says it.

    attn_factor multiplies the default. yarn_attn_factor is config.json's attention_factor, or
    else its attn_factor: R1-0528-Qwen3-8B has one that cancels the default.
    """
    if keys.has("rope.scaling.attn_factor"):
        return default * keys.number("rope.scaling.attn_factor", 1.0)
    if not keys.has("rope.scaling.yarn_attn_factor"):
        return None
    found = keys.number("rope.scaling.yarn_attn_factor", 1.0)
    return 1.0 if abs(found * default - 1) < 1e-4 else found


def _llama3(keys: Keys, fields: Fields) -> Fields:
    tensor = keys.tensor(ROPE_FACTORS)
    head_dim = fields.get("head_dim", 0)
    if tensor.shape != (head_dim // 2,):
        raise CheckpointError(
            f"{ROPE_FACTORS} in {keys.path} has the shape {list(tensor.shape)}",
            f"[{head_dim // 2}], half of a head",
        )
    divisors = tensor.read()
    if np.array_equal(divisors, np.ones_like(divisors)):
        return {}
    theta = fields["rope_theta"]
    turns = theta ** (-2 * np.arange(head_dim // 2) / head_dim) / (2 * math.pi)
    known = keys.integer("original_max_position_embeddings", 8192)
    for candidate in _candidates(divisors, turns, known):
        low, high, length = candidate
        got = _divisors(float(divisors.max()), low, high, length, turns)
        if np.allclose(got, divisors, rtol=_TOLERANCE, atol=0):
            return {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": float(divisors.max()),
                    "low_freq_factor": low,
                    "high_freq_factor": high,
                    "original_max_position_embeddings": length,
                }
            }
    raise UnsupportedModelError(
        f"{ROPE_FACTORS} in {keys.path} divides the frequencies by {divisors.tolist()!r:.80}",
        "what Llama 3.1's scaling gives",
    )


def _candidates(
    divisors: F32, turns: np.ndarray[Any, Any], known: int
) -> list[tuple[float, float, int]]:
    """low_freq_factor, high_freq_factor and original length that may be meant, likely ones first.

    Between the two factors 1 / divisor is linear in the turns of a wave over the original length;
    (low, high, length) and k · (low, high, length) are the same function.
    """
    low, high = _LLAMA_3
    found = [(low, high, known)] + [(low, high, 1 << n) for n in range(2, 21)]
    factor = float(divisors.max())
    inside = (divisors > 1 + 1e-4) & (divisors < factor * (1 - 1e-4))
    if np.count_nonzero(inside) >= 2 and factor > 1:
        smooth = (1 / divisors[inside].astype(np.float64) - 1 / factor) / (1 - 1 / factor)
        slope, offset = np.polyfit(turns[inside], smooth, 1)
        if offset < -1e-6 and slope > 0:
            span = -1 / offset
            found.append((1.0, round(1 + span, 4), max(1, round(slope * span))))
    return found


def _divisors(
    factor: float, low: float, high: float, length: int, turns: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """What Llama 3.1's scaling divides the frequencies by."""
    smooth = np.clip((length * turns - low) / (high - low), 0, 1)
    divisors: np.ndarray[Any, Any] = 1 / ((1 - smooth) / factor + smooth)
    return divisors
