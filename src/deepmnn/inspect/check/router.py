"""Routing: which experts a token goes to, and with which weights.

The definition: MoEGate of DeepSeek's modeling_deepseek.py, in float64. Its parts are options here,
so that a router that computes something else can be told what: the variant that it agrees with.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepmnn.errors import ArtifactError
from deepmnn.formats import F32
from deepmnn.graph.ir import Graph
from deepmnn.inspect.check.line import Line, judged, skipped
from deepmnn.inspect.check.piece import Piece
from deepmnn.inspect.check.subject import Subject

F64 = NDArray[np.float64]
Chosen = tuple[NDArray[np.int64], F64]
"""Experts in ascending order and their weights, [rows, top_k] each."""

ROWS = 256
TOLERANCE = 1e-4
"""Relative, of weights."""

CLOSE = 1e-6
"""Scores that are no further apart may change places: float32 has no more digits."""

_GATE = re.compile(r"layers\.(\d+)\.mlp\.gate")
_LAST = ("scale", "normalize", "gather")
_AGAIN = "Convert the checkpoint again with this version; if it stays, the model file is wrong."


@dataclass(frozen=True)
class Routing:
    """What config.json says of a router; `biased_weights` is what no published one does."""

    scoring: str
    top_k: int
    n_group: int
    topk_group: int
    top2_sum: bool
    normalize: bool
    factor: float
    has_bias: bool
    biased_weights: bool = False

    @staticmethod
    def of(config: Mapping[str, Any]) -> Routing:
        """Of DeepSeek-MoE, V2, V3 (and R1) and V4."""
        kind, top_k = config["model_type"], int(config.get("num_experts_per_tok") or 8)
        if kind == "deepseek_v4":
            top_k = int(config.get("num_experts_per_tok", 6))
            scoring = str(config.get("scoring_func", "sqrtsoftplus"))
            factor = float(config.get("routed_scaling_factor", 1.5))
            return Routing(scoring, top_k, 1, 1, False, True, factor, has_bias=True)
        is_v3, is_v2 = kind in ("deepseek_v3", "deepseek_v32"), kind == "deepseek_v2"
        normalize = bool(config.get("norm_topk_prob", is_v3)) and top_k > 1
        scale = float(config.get("routed_scaling_factor", 2.5 if is_v3 else 1.0))
        limited = is_v3 or config.get("topk_method") == "group_limited_greedy"
        groups = config.get("n_group", 8 if is_v3 else 1) if limited and (is_v2 or is_v3) else 1
        return Routing(
            scoring="sigmoid" if is_v3 else "softmax",
            top_k=top_k,
            n_group=int(groups or 1),
            topk_group=int(config.get("topk_group", 4 if is_v3 else 1) or 1),
            top2_sum=is_v3,
            normalize=normalize,
            factor=scale if is_v3 or (is_v2 and not normalize) else 1.0,
            has_bias=is_v3,
        )

    def choose(self, logits: F64, bias: F64) -> tuple[Chosen, F64]:
        """What is chosen, and how close the closest call was [rows]."""
        if self.scoring == "sigmoid":
            scores = 1 / (1 + np.exp(-logits))
        elif self.scoring == "sqrtsoftplus":
            scores = np.sqrt(np.logaddexp(0, logits))
        else:
            scores = np.exp(logits - logits.max(axis=1, keepdims=True))
            scores /= scores.sum(axis=1, keepdims=True)
        choice = scores + bias if self.has_bias else scores
        margin = np.full(len(logits), np.inf)
        if self.n_group > 1:
            choice, margin = self._limited(choice)
        ranked = np.sort(choice, axis=1)[:, ::-1]
        if self.top_k < ranked.shape[1]:
            margin = np.minimum(margin, ranked[:, self.top_k - 1] - ranked[:, self.top_k])
        indices = np.sort(np.argsort(-choice, axis=1, kind="stable")[:, : self.top_k], axis=1)
        given = scores + bias if self.biased_weights else scores
        weights = np.take_along_axis(given, indices, axis=1)
        if self.normalize:
            weights = weights / (weights.sum(axis=1, keepdims=True) + 1e-20)
        return (indices, weights * self.factor), margin

    def _limited(self, choice: F64) -> tuple[F64, F64]:
        """−∞ outside the best groups, and how close the choice of groups was."""
        rows, experts = choice.shape
        groups = np.sort(choice.reshape(rows, self.n_group, -1), axis=2)
        strength = groups[:, :, -2:].sum(axis=2) if self.top2_sum else groups[:, :, -1]
        order = np.argsort(-strength, axis=1, kind="stable")
        ranked, margin = np.take_along_axis(strength, order, axis=1), np.full(rows, np.inf)
        if self.topk_group < self.n_group:
            margin = ranked[:, self.topk_group - 1] - ranked[:, self.topk_group]
        kept = np.zeros((rows, self.n_group), bool)
        np.put_along_axis(kept, order[:, : self.topk_group], True, axis=1)
        mask = np.repeat(kept, experts // self.n_group, axis=1)
        return np.where(mask, choice, -np.inf), margin

    def variants(self) -> Iterator[tuple[str, Routing]]:
        """What routers get wrong, one thing at a time."""
        if self.has_bias:
            yield "the bias is added to the weights, too", replace(self, biased_weights=True)
            yield "the bias is left out", replace(self, has_bias=False)
        if self.n_group > 1:
            other = "their best" if self.top2_sum else "the sum of their two best"
            yield f"groups are scored by {other}", replace(self, top2_sum=not self.top2_sum)
            yield "groups are left out", replace(self, n_group=1)
        if self.factor != 1:
            yield "routed_scaling_factor is left out", replace(self, factor=1.0)
        for other in ("softmax", "sigmoid", "sqrtsoftplus"):
            if other != self.scoring:
                yield f"scores are {other}", replace(self, scoring=other)
        if self.top_k > 1:
            said = "are not normalised" if self.normalize else "are normalised"
            yield f"the weights {said}", replace(self, normalize=not self.normalize)


def routers(graph: Graph) -> list[tuple[int, str]]:
    """Layer and name of the router logits, of every layer that routes."""
    found = [(match, name) for name in graph.values if (match := _GATE.fullmatch(name))]
    return [(int(match[1]), name) for match, name in found]


def check_routers(subject: Subject) -> list[Line]:
    """Every layer's router on random logits, and on what its own matrix makes of random rows."""
    routing, lines, hashed = Routing.of(subject.config), [], []
    rng = np.random.default_rng(3)
    for layer, gate in routers(subject.graph):
        if f"{gate}.tid2eid" in subject.graph.weights:
            hashed.append(str(layer))
            continue
        experts = subject.graph.values[gate].width
        logits = rng.standard_normal((ROWS, experts)).astype(np.float32) * 2
        matrix = _matrix(subject, gate)
        own = rng.standard_normal((ROWS, matrix.shape[1])) @ matrix.T
        logits = np.concatenate([logits, own.astype(np.float32)])
        found, bias = _routed(subject, gate, logits)
        name = f"router, layer {layer}"
        lines.append(judge_router(name, routing, logits.astype(np.float64), bias, found))
    told = together(lines)
    if hashed:
        told.append(skipped(f"router, layers {', '.join(hashed)}", "the token's id chooses there"))
    return told


def _routed(subject: Subject, gate: str, logits: F32) -> tuple[Chosen, F64]:
    """What the model's own nodes make of router logits, and the bias that they read."""
    chosen = f"{gate}.top_k"
    known = [f"{gate}.{part}" for part in _LAST if f"{gate}.{part}" in subject.graph.values]
    if not known or chosen not in subject.graph.values:
        raise ArtifactError(f"nothing chooses experts by {gate}", "indices and weights")
    weights = known[0]
    piece: Piece = subject.piece([chosen, weights], [gate])
    out = piece.run({gate: logits})
    order = np.argsort(out[chosen], axis=1)
    indices = np.take_along_axis(out[chosen], order, axis=1).astype(np.int64)
    values = np.take_along_axis(out[weights], order, axis=1).astype(np.float64)
    names = [name for node in piece.graph.nodes for name in node.weights]
    bias = np.zeros(logits.shape[1])
    if names:
        bias = subject.weight(names[0]).astype(np.float64)
    return (indices, values), bias


def judge_router(name: str, routing: Routing, logits: F64, bias: F64, found: Chosen) -> Line:
    """What a router gave for logits [rows, experts], against the definition."""
    moved, error = _distance(routing, logits, bias, found)
    said = f"{moved} of {len(logits)} rows choose others, weights off by {error:.1e}"
    right = not moved and error <= TOLERANCE
    if not right:
        agreeing = [
            what
            for what, variant in routing.variants()
            if (found_by := _distance(variant, logits, bias, found))[0] == 0
            and found_by[1] <= TOLERANCE
        ]
        said += f": {agreeing[0]}" if agreeing else ""
    kind = f"{routing.scoring}, top {routing.top_k}"
    if routing.n_group > 1:
        by = "two best" if routing.top2_sum else "best"
        kind += f" in {routing.topk_group} of {routing.n_group} groups by their {by}"
    kind += ", bias in the choice only" if routing.has_bias else ""
    kind += ", normalised" if routing.normalize else ""
    kind += f", times {routing.factor:g}" if routing.factor != 1 else ""
    return judged(name, right, said, kind, "The router is not config.json's. " + _AGAIN, error)


def _distance(routing: Routing, logits: F64, bias: F64, found: Chosen) -> tuple[int, float]:
    """Rows that choose other experts though the call was not close; and the largest relative error
    of the others' weights.
    """
    (indices, weights), margin = routing.choose(logits, bias)
    if indices.shape != found[0].shape:
        return len(logits), float("inf")
    same = (indices == found[0]).all(axis=1)
    moved = int((~same & (margin > CLOSE)).sum())
    if not same.any():
        return moved, float("inf")
    scale = np.abs(weights[same]).max(axis=1, keepdims=True) + 1e-30
    return moved, float((np.abs(found[1][same] - weights[same]) / scale).max())


def together(lines: Sequence[Line]) -> list[Line]:
    """One line where all are right, with the largest error."""
    if not lines or any(line.verdict != "ok" for line in lines):
        return [line for line in lines if line.verdict != "ok"]
    worst = max(lines, key=lambda line: line.figure or 0.0)
    name = "router" if len(lines) == 1 else f"router, {len(lines)} layers"
    return [replace(worst, name=name)]


def _matrix(subject: Subject, gate: str) -> F64:
    """The router's matrix: [experts, hidden]."""
    names = [n for node in subject.graph.nodes if gate in node.outputs for n in node.weights]
    if not names:
        raise ArtifactError(f"{gate} has no matrix", "the router's")
    return subject.weight(names[0]).astype(np.float64)
