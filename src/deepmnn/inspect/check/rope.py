"""Rotary positions: the pairs that turn, how fast, and to which positions that holds.

The definition is Hugging Face's: modeling_rope_utils.py of transformers (default, linear, llama3,
yarn), and DeepSeek's modeling_deepseek.py for the factor of cos and sin where only one of mscale
and mscale_all_dim is given. All of it in float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepmnn.inspect.check.line import Line, judged
from deepmnn.inspect.check.probe import Probe

F64 = NDArray[np.float64]

TOLERANCE = 5e-4
"""Of cos and sin: a thousandth of a full turn is 6e-3."""

_AGAIN = "Convert the checkpoint again with this version; if it stays, the model file is wrong."
_LATENT = ("deepseek_v2", "deepseek_v3", "deepseek_v32")


def scaling(config: Mapping[str, Any]) -> dict[str, Any]:
    """rope_scaling of older configs, or rope_parameters."""
    return dict(config.get("rope_scaling") or config.get("rope_parameters") or {})


def rope_type(config: Mapping[str, Any]) -> str:
    """ "default" where there is no scaling."""
    fields = scaling(config)
    return str(fields.get("rope_type") or fields.get("type") or "default")


def theta(config: Mapping[str, Any]) -> float:
    """The base."""
    return float(scaling(config).get("rope_theta") or config.get("rope_theta") or 10000.0)


def original_length(config: Mapping[str, Any]) -> int:
    """Positions of the training before a scaling."""
    name, fields = "original_max_position_embeddings", scaling(config)
    longest = int(config.get("max_position_embeddings") or 2048)
    return int(config.get(name) or fields.get(name) or longest)


def factor(config: Mapping[str, Any]) -> float:
    """By which a scaling extends them."""
    longest = int(config.get("max_position_embeddings") or 2048)
    return float(scaling(config).get("factor") or longest / original_length(config))


def frequencies(config: Mapping[str, Any], dim: int) -> F64:
    """Radians for each position, of every pair: [dim / 2]."""
    plain = 1.0 / theta(config) ** (np.arange(0, dim, 2, dtype=np.float64) / dim)
    kind, fields = rope_type(config), scaling(config)
    if kind == "linear":
        return plain / factor(config)
    if kind == "llama3":
        low, high = float(fields["low_freq_factor"]), float(fields["high_freq_factor"])
        turns = original_length(config) * plain / (2 * math.pi)
        smooth = np.clip((turns - low) / (high - low), 0, 1)
        return np.asarray((1 - smooth) * plain / factor(config) + smooth * plain)
    if kind == "yarn":
        kept = 1 - _yarn_ramp(config, dim)
        return np.asarray(plain / factor(config) * (1 - kept) + plain * kept)
    return np.asarray(plain)


def _yarn_ramp(config: Mapping[str, Any], dim: int) -> F64:
    """0 where a pair is extrapolated, 1 where it is interpolated (arXiv:2309.00071)."""
    fields, length = scaling(config), original_length(config)

    def pair(turns: float) -> float:
        return dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta(config)))

    low, high = pair(fields.get("beta_fast") or 32), pair(fields.get("beta_slow") or 1)
    if fields.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    high = high if high != low else high + 0.001
    return np.clip((np.arange(dim // 2) - low) / (high - low), 0, 1)


def yarn_mscale(scale: float, mscale: float = 1.0) -> float:
    """The published get_mscale."""
    return 0.1 * mscale * math.log(scale) + 1.0 if scale > 1 else 1.0


def amplitude(config: Mapping[str, Any]) -> float:
    """What multiplies cos and sin: YaRN's attention_factor."""
    fields = scaling(config)
    if rope_type(config) != "yarn":
        return 1.0
    if fields.get("attention_factor") is not None:
        return float(fields["attention_factor"])
    found, all_dim = fields.get("mscale"), fields.get("mscale_all_dim")
    scale = factor(config)
    if config["model_type"] in _LATENT:  # DeepSeek's own defaults: 1 and 0
        top = yarn_mscale(scale, 1.0 if found is None else found)
        return top / yarn_mscale(scale, all_dim or 0.0)
    if found and all_dim:
        return yarn_mscale(scale, found) / yarn_mscale(scale, all_dim)
    # YaRN's own code multiplies by attn_factor, which DeepSeek-R1-0528-Qwen3-8B gives.
    return yarn_mscale(scale) * float(fields.get("attn_factor") or 1.0)


def interleaved(config: Mapping[str, Any]) -> bool:
    """Whether 2i and 2i + 1 are a pair, or i and i + dim / 2."""
    if config["model_type"] == "deepseek_v3":
        return bool(config.get("rope_interleave", True))
    return bool(config["model_type"] in ("deepseek_v2", "deepseek_v32"))


def far_positions(config: Mapping[str, Any]) -> list[int]:
    """0, 1, 100, the end of the original length, the last one."""
    original, longest = original_length(config), int(config.get("max_position_embeddings") or 2048)
    if rope_type(config) == "yarn":
        longest = max(longest, int(original * factor(config)))
    return sorted({p for p in (0, 1, 100, original, longest - 1) if 0 <= p < longest})


def check_rope(probe: Probe, config: Mapping[str, Any], where: str) -> list[Line]:
    """Pairs and frequencies as the model turns them. where: which layers, for the lines' names."""
    dim = probe.sizes.rotary
    expected = frequencies(config, dim)
    positions = far_positions(config)
    sound, other = (_partners(dim, kind) for kind in (interleaved(config), not interleaved(config)))
    ours, theirs = (_misfit(probe, pairs, positions[1:3]) for pairs in (sound, other))
    words = {True: "2i with 2i+1", False: f"i with i+{dim // 2}"}
    right = ours <= theirs or dim == 2
    lines = [
        judged(
            f"RoPE pairs{where}",
            right,
            words[interleaved(config) == right],
            words[interleaved(config)],
            "Queries and keys turn in the wrong pairs. " + _AGAIN,
            ours,
        )
    ]
    cos, sin = turned(probe, sound if right else other, positions)
    angles = np.asarray(positions, np.float64)[:, None] * expected
    lines.append(judge_angles(config, where, positions, (cos, sin), angles))
    return lines


def judge_angles(
    config: Mapping[str, Any],
    where: str,
    positions: Sequence[int],
    measured: tuple[F64, F64],
    angles: F64,
) -> Line:
    """The largest difference of cos and sin [positions, pairs] from those of the angles."""
    cos, sin = measured
    errors = np.maximum(np.abs(cos - np.cos(angles)), np.abs(sin - np.sin(angles)))
    row, pair = divmod(int(np.argmax(errors)), errors.shape[1])
    worst = float(errors[row, pair])
    found = f"cos and sin off by {worst:.1e} at position {positions[row]}, pair {pair}"
    if worst > TOLERANCE:
        found += _as_base(config, positions, cos, sin)
    kind = rope_type(config)
    name = "base" if kind == "default" else f"{kind} table"
    expected = f"rope_theta {theta(config):g}" + (
        "" if kind == "default" else f", {kind} factor {factor(config):g}"
    )
    asked = ", ".join(map(str, positions))
    return judged(
        f"RoPE {name}{where}",
        worst <= TOLERANCE,
        found,
        f"{expected} at positions {asked}",
        "The frequencies are not those of config.json. " + _AGAIN,
        worst,
    )


def _as_base(config: Mapping[str, Any], positions: Sequence[int], cos: F64, sin: F64) -> str:
    """Which base the first two pairs turn by, as far as position 1 tells."""
    if 1 not in positions or cos.shape[1] < 2:
        return ""
    row = list(positions).index(1)
    first, second = np.arctan2(sin[row, :2], cos[row, :2])
    if not 0 < second < first:
        return ""
    return f"; it turns by a base of about {(second / first) ** -float(cos.shape[1]):.4g}"


def _partners(dim: int, is_interleaved: bool) -> list[tuple[int, int]]:
    half = dim // 2
    return [(2 * i, 2 * i + 1) if is_interleaved else (i, i + half) for i in range(half)]


def _misfit(probe: Probe, pairs: list[tuple[int, int]], positions: Sequence[int]) -> float:
    """How far the turned pairs are from the unit circle where they have turned."""
    cos, sin = turned(probe, pairs, positions)
    return float(np.abs(np.hypot(cos, sin) - 1).max())


def turned(
    probe: Probe, pairs: Sequence[tuple[int, int]], positions: Sequence[int]
) -> tuple[F64, F64]:
    """cos and sin of every pair at every position, [positions, pairs] each, as measured.

    They are over what the same pair gives at position 0, where cos is 1.
    """
    dim, count = probe.sizes.rotary, len(pairs)
    first, second = (np.eye(dim)[[pair[i] for pair in pairs]] for i in (0, 1))
    asked = [0, *positions]
    queries = np.concatenate([first, first] * len(asked))
    keys = np.concatenate([first, second] * len(asked))
    at = np.repeat(asked, 2 * count).tolist()
    found = probe.rotations(queries, keys, at).reshape(len(asked), 2, count)
    whole = found[0, 0]
    return found[1:, 0] / whole, found[1:, 1] / whole
