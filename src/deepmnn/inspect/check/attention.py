"""What an attention multiplies scores by, and the two forms of latent attention.

The definition: 1/√head_dim; of latent attention 1/√(nope + rope), times YaRN's mscale for
mscale_all_dim squared (DeepseekV3Attention in transformers, modeling_deepseek.py). YaRN's
attention_factor multiplies cos and sin, and so scores by its square.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deepmnn.formats import named
from deepmnn.inspect.check.line import Line, judged, skipped
from deepmnn.inspect.check.probe import Attention, Probe, Sizes, forms
from deepmnn.inspect.check.rope import (
    amplitude,
    check_rope,
    factor,
    rope_type,
    scaling,
    yarn_mscale,
)
from deepmnn.inspect.check.subject import Subject

SCALE_TOLERANCE = 0.02
"""Relative. The weights of a latent attention and the latents may be int8, at 1 % each."""

FORMS_TOLERANCE, INT8_FORMS_TOLERANCE = 1e-4, 2e-2
"""RMS over RMS: of weights that are floats (2e-7 is usual), and of codes, where one form multiplies
int8 latents: 2e-3 where these are no whole part of a panel."""

_AGAIN = "Convert the checkpoint again with this version; if it stays, the model file is wrong."


def softmax_scale(config: Mapping[str, Any]) -> float:
    """What multiplies the scores, without what multiplies cos and sin."""
    sizes = Sizes.of(config)
    plain = float(sizes.nope + sizes.rotary) ** -0.5
    all_dim = scaling(config).get("mscale_all_dim")
    if sizes.rank and rope_type(config) != "default" and all_dim:
        plain *= yarn_mscale(factor(config), float(all_dim)) ** 2
    return float(plain)


def check_attention(subject: Subject, attention: Attention, where: str) -> list[Line]:
    """Rotation, scale and forms of one attention. where: which layers, for the lines' names."""
    config = subject.config
    if attention.most == 1:
        words = "a token attends to one row, whatever its score"
        return [skipped(f"attention scale{where}", words)]
    expected, turns = softmax_scale(config), amplitude(config)
    probe = Probe(subject, attention, expected * turns**2)
    lines = check_rope(probe, config, where)
    first = np.eye(probe.sizes.rotary)
    whole = probe.rotations(first, first, [0] * len(first))
    product = float(np.median(whole)) * expected * turns**2
    if attention.is_latent:
        scale = probe.nope_scale() * expected * turns**2
        factor_found = (product / scale) ** 0.5
    else:  # an op gives their product: each by what the program says of the other
        scale = product / attention.number("rope_scale") ** 2
        factor_found = (product / attention.number("scale")) ** 0.5
    lines.append(judge_scale(where, [scale], expected))
    lines += judge_mscale(config, where, factor_found, turns)
    if attention.is_latent:
        lines.append(_check_forms(subject, attention, where))
    return lines


def judge_scale(where: str, found: Sequence[float], expected: float) -> Line:
    """What scores are multiplied by; of several attentions the worst."""
    worst = max(found, key=lambda scale: abs(scale / expected - 1))
    return _ratio(f"attention scale{where}", worst, expected, "Every score is multiplied by it.")


def judge_mscale(
    config: Mapping[str, Any], where: str, found: float, expected: float
) -> list[Line]:
    """What cos and sin are multiplied by: one with every other scaling than YaRN's."""
    advice = "YaRN's attention factor is left out or another one."
    line = _ratio(f"YaRN mscale{where}", found, expected, advice)
    return [line] if rope_type(config) == "yarn" or line.verdict == "wrong" else []


def _ratio(name: str, found: float, expected: float, advice: str) -> Line:
    right = abs(found / expected - 1) <= SCALE_TOLERANCE
    return judged(name, right, f"{found:.5g}", f"{expected:.5g}", f"{advice} {_AGAIN}", found)


def _check_forms(subject: Subject, attention: Attention, where: str) -> Line:
    name, graph = f"MLA absorbed against expanded{where}", attention.graph
    if "kv_lora_rank" not in attention.attrs:
        return skipped(name, "this model runs in plain ops, which are the expanded form")
    error = forms(subject, attention)
    floats = not any(named(weight.format).is_quantized for weight in graph.weights.values())
    most = FORMS_TOLERANCE if floats else INT8_FORMS_TOLERANCE
    return judged(
        name,
        error <= most,
        f"{error:.1e} apart (RMS over RMS)",
        f"at most {most:g}",
        "The two halves of kv_b_proj disagree. " + _AGAIN,
        error,
    )
