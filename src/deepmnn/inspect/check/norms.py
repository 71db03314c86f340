"""The eps of every norm: rms_norm_eps, but 1e-6 for the norms of latent attention's latents.

As in transformers and in DeepSeek's modeling_deepseek.py, whose q_a_layernorm and kv_a_layernorm
are made without the config's eps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from deepmnn.graph.ir import Node
from deepmnn.inspect.check.line import Line, judged
from deepmnn.inspect.check.subject import Subject

NAME = "norms' eps"
LATENT_EPS = 1e-6
TOLERANCE = 0.05
"""Relative, of an eps as it is measured."""

_LATENT = ("q_a_layernorm", "kv_a_layernorm", "indexer.k_norm")
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
        if not _close(_eps(node), expected_eps(config, weight), 1e-6)
    ]
    tried = {(node.op, _eps(node)): (node, weight) for node, weight in reversed(found)}
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
    if wrong:
        node, weight = wrong[0]
        told = (_owner(weight), _eps(node), expected_eps(config, weight))
        return [judge_eps(told, len(found), len(wrong), _AGAIN)]
    _, weight, eps = (off or measured)[0]
    told = (_owner(weight), eps, expected_eps(config, weight))
    return [judge_eps(told, len(found), len(off), _AGAIN)]


def judge_eps(told: tuple[str, float, float], count: int, wrong: int, again: str) -> Line:
    """One line for all norms. told: whose, its eps and the one that is expected, of a wrong norm
    where there is one.
    """
    owner, eps, expected = told
    said = f"{eps:.3g} in {owner}"
    said += f", one of {wrong} that are wrong" if wrong > 1 else ""
    said += f", one of {count} that are right" if not wrong else ""
    advice = f"The norm's eps is not the one of its definition. {again}"
    return judged(NAME, not wrong, said, f"{expected:g}", advice, eps)


def _eps(node: Node) -> float:
    """Of the norm in it, where a fused op has another one, too."""
    return node.float_attr("norm_eps" if "norm_eps" in node.attrs else "eps")


def _owner(weight: str) -> str:
    return weight.removesuffix(".weight")


def _close(found: float, expected: float, tolerance: float) -> bool:
    return abs(found - expected) <= tolerance * expected


def _measured(subject: Subject, node: Node, weight: str) -> float | None:
    """The eps that a norm shows, where it stands alone: a row of √eps comes out as √½."""
    if any(key in node.attrs for key in ("scale", "inv_freq")):
        return None  # it is a part of an attention
    if len(node.weights) > 1:
        return None  # it takes the mean off first: equal numbers come out as its bias
    x, y = node.inputs[0], node.outputs[-1]
    size = np.sqrt(expected_eps(subject.config, weight))
    width = subject.graph.values[x].width
    out = subject.piece([y], node.inputs).run({x: np.full((1, width), size, np.float32)})[y][0]
    w = subject.weight(weight).astype(np.float64)
    w = np.tile(w, width // len(w))
    if not w.any():
        return None  # it gives zeros, whatever its eps
    share = float(out @ w / (w @ w))
    return float(size**2 * (1 / share**2 - 1))
