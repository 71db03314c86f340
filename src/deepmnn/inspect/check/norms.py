"""The eps of every norm: rms_norm_eps, but 1e-6 for the norms of latent attention's latents.

As in transformers and in DeepSeek's modeling_deepseek.py, whose q_a_layernorm and kv_a_layernorm are
made without the config's eps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from deepmnn.graph.ir import Node
from deepmnn.inspect.check.line import Line, judged
from deepmnn.inspect.check.subject import Subject

LATENT_EPS = 1e-6
TOLERANCE = 0.05
"""Relative, of an eps as it is measured."""

_LATENT = ("q_a_layernorm", "kv_a_layernorm")
_AGAIN = "Convert the checkpoint again with this version; if it stays, the model file is wrong."


def expected_eps(config: Mapping[str, Any], weight: str) -> float:
    """Of the norm with this weight."""
    if any(f".{name}." in weight for name in _LATENT):
        return LATENT_EPS
    return float(config.get("rms_norm_eps", 1e-6))


def norms(nodes: list[Node]) -> list[tuple[Node, str]]:
    """The nodes that norm, with the weight they do it by."""
    found = []
    for node in nodes:
        own = [name for name in node.weights if name.endswith("norm.weight")]
        if "eps" in node.attrs and own:
            found.append((node, own[0]))
    return found


def check_norms(subject: Subject) -> list[Line]:
    """What every norm says, and what the first of each kind does."""
    config, found = subject.config, norms(subject.graph.nodes)
    wrong = [
        (node, weight)
        for node, weight in found
        if not _close(node.float_attr("eps"), expected_eps(config, weight), 1e-6)
    ]
    tried = {(node.op, node.attrs["eps"]): (node, weight) for node, weight in reversed(found)}
    measured = [
        (node, weight, eps)
        for node, weight in reversed(tried.values())
        if (eps := _measured(subject, node, weight)) is not None
    ]
    off = [
        (node, weight, eps)
        for node, weight, eps in measured
        if not _close(eps, expected_eps(config, weight), TOLERANCE)
    ]
    sound = {expected_eps(config, weight) for _, weight in found}
    expected = " and ".join(f"{eps:g}" for eps in sorted(sound))
    if wrong or off:
        node, weight = wrong[0] if wrong else off[0][:2]
        eps = node.float_attr("eps") if wrong else off[0][2]
        said = f"{eps:.3g} in {weight.removesuffix('.weight')}"
        said += f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        wanted = f"{expected_eps(config, weight):g}"
        advice = f"The norm's eps is not config.json's. {_AGAIN}"
        return [judged("norms' eps", False, said, wanted, advice, eps)]
    said = f"{len(found)} norms, measured {', '.join(f'{eps:.4g}' for *_, eps in measured)}"
    return [judged("norms' eps", True, said, expected, figure=measured[0][2] if measured else None)]


def _close(found: float, expected: float, tolerance: float) -> bool:
    return abs(found - expected) <= tolerance * expected


def _measured(subject: Subject, node: Node, weight: str) -> float | None:
    """The eps that a norm shows, where it stands alone: a row of √eps comes out as √½."""
    if any(key in node.attrs for key in ("scale", "inv_freq")):
        return None  # it is a part of an attention
    x, y = node.inputs[0], node.outputs[-1]
    size = np.sqrt(expected_eps(subject.config, weight))
    width = subject.graph.values[x].width
    out = subject.piece([y], node.inputs).run({x: np.full((1, width), size, np.float32)})[y][0]
    w = subject.weight(weight).astype(np.float64)
    w = np.tile(w, width // len(w))
    share = float(out @ w / (w @ w))
    return float(size**2 * (1 / share**2 - 1))
