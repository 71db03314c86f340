"""Routing and experts on MNN. Any router works: MNN's MoE op takes indices and weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from deepmnn.exporters.mnn.lower import Lowering
from deepmnn.exporters.mnn.model import Block, expert_name
from deepmnn.exporters.mnn.values import ROUTED, beside
from deepmnn.exporters.mnn.weights import Rows
from deepmnn.formats import BLOCK_ROWS
from deepmnn.graph.ir import Node
from deepmnn.graph.signatures import padded
from deepmnn.graph.weights import Interleave, Tensor

FAR = 1e4
"""Taken off the scores of groups that lost: no two scores, biases included, are so far apart. In
float16 several times this is −inf, which loses as well."""


def route(low: Lowering, node: Node) -> None:
    """The whole chain from router logits to indices and weights."""
    a: Any = node.attrs
    model, logits = low.model, low.plain(node.inputs[0])
    scores = model.unary("SIGMOID", logits) if a["scoring"] == "sigmoid" else model.softmax(logits)
    choice = _add_bias(low, scores, node.weights[0]) if node.weights else scores
    if a["n_group"] > 1:
        choice = _limit(low, choice, low.width(node.inputs[0]), a)
    indices = model.top_k(choice, a["top_k"])[1]
    weights = model.gather_elements(scores, indices, 1)
    if a["normalize"]:
        weights = _normalized(low, weights, a["eps"])
    if a["factor"] != 1.0:
        weights = model.binary("MUL", weights, model.floats(np.array([a["factor"]], np.float32)))
    low.set_plain(node.outputs[0], indices)
    low.set_plain(node.outputs[1], weights)


def bias_add(low: Lowering, node: Node) -> None:
    """x plus a vector."""
    total = _add_bias(low, low.plain(node.inputs[0]), node.weights[0])
    low.set_plain(node.outputs[0], total)


def group_limit(low: Lowering, node: Node) -> None:
    """Scores far below zero outside the chosen groups."""
    x = node.inputs[0]
    low.set_plain(node.outputs[0], _limit(low, low.plain(x), low.width(x), node.attrs))


def top_k(low: Lowering, node: Node) -> None:
    """Indices of the largest."""
    made = low.model.top_k(low.plain(node.inputs[0]), node.int_attr("top_k"))
    low.set_plain(node.outputs[0], made[1])


def gather(low: Lowering, node: Node) -> None:
    """x[i, indices[i, j]]."""
    x, indices = (low.plain(name) for name in node.inputs)
    low.set_plain(node.outputs[0], low.model.gather_elements(x, indices, 1))


def normalize(low: Lowering, node: Node) -> None:
    """Rows that sum to one."""
    x = low.plain(node.inputs[0])
    low.set_plain(node.outputs[0], _normalized(low, x, node.float_attr("eps")))


def moe(low: Lowering, node: Node) -> None:
    """MNN's MoE op over one subgraph for each expert."""
    a: Any = node.attrs
    x, indices, weights, *shared = node.inputs
    layer = low.next_expert_layer()
    inputs = (low.plain(x), low.plain(weights), low.plain(indices))
    out = low.model.moe(inputs, a["experts"], a["top_k"], layer)
    hidden = low.width(x)
    for expert in range(a["experts"]):
        _expert(
            low,
            expert_name(layer, expert),
            hidden,
            a["intermediate_size"],
            *node.weights[2 * expert : 2 * expert + 2],
        )
    packed = low.model.pack(low.model.reshape(out, (-1, hidden, 1, 1)))
    if shared:
        low.name(out, beside(node, ROUTED))
        packed = low.model.binary("ADD", packed, low.packed(shared[0]))
    low.set_packed(node.outputs[0], packed)


def gate_and_up(
    low: Lowering, block: Block, x: int, weight: tuple[str, int], prefix: str
) -> tuple[int, int]:
    """Both of packed x, by a gate-and-up weight of this intermediate size."""
    gate, up = (
        low.linear(block, x, (stored, rows, None), prefix + part)
        for (stored, rows), part in zip(_gate_up_rows(low, *weight), ("gate", "up"), strict=True)
    )
    return gate, up


def _gate_up_rows(low: Lowering, weight: str, size: int) -> tuple[tuple[str, Rows], ...]:
    """Where gate's and up's rows lie: interleaved in one stored weight, or each in its own."""
    if weight in low.stored:
        blocks = np.arange(2 * padded(size)).reshape(-1, 2, BLOCK_ROWS)
        return tuple((weight, blocks[:, part].reshape(-1)[:size]) for part in (0, 1))
    expr = low.graph.weights[weight].expr
    assert isinstance(expr, Interleave)
    return tuple((part.name, np.arange(size)) for part in expr.parts if isinstance(part, Tensor))


def _expert(low: Lowering, name: str, hidden: int, size: int, gate_up: str, down: str) -> None:
    """The subgraph of one expert: x [n, hidden] → [n, hidden]."""
    block = Block()
    x = block.input("x", (-1, hidden))
    packed = block.pack(block.reshape(x, (-1, hidden, 1, 1)))
    gate, up = gate_and_up(low, block, packed, (gate_up, size), f"{name}/")
    gated = block.binary("MUL_SILU", up, gate)
    out = low.linear(block, gated, (down, np.arange(hidden), None), f"{name}/down")
    out = block.reshape(block.unpack(out), (-1, hidden))
    low.model.subgraphs.append((name, block, [x], [out]))


def _add_bias(low: Lowering, x: int, weight: str) -> int:
    return low.model.binary("ADD", x, low.model.floats(low.values(weight)[None]))


def _normalized(low: Lowering, x: int, eps: float) -> int:
    model = low.model
    total = model.binary("ADD", model.sum(x, 1, True), model.floats(np.array([eps], np.float32)))
    return model.binary("REALDIV", x, total)


def _limit(low: Lowering, scores: int, experts: int, a: Any) -> int:
    """Scores − FAR outside the topk_group groups whose best, or sum of two best, is highest."""
    model, groups, kept = low.model, a["n_group"], a["topk_group"]
    if kept == groups:
        return scores
    size = experts // groups
    grouped = model.reshape(scores, (-1, groups, size))
    best = model.top_k(grouped, 1 if a["group_score"] == "max" else 2)[0]
    strength = model.sum(best, 2, False)  # [tokens, groups]
    chosen = model.top_k(strength, kept)[1]
    ids = model.floats(np.arange(groups, dtype=np.float32).reshape(1, 1, groups))
    chosen = model.reshape(model.cast(chosen, "DT_INT32", "DT_FLOAT"), (-1, kept, 1))
    # By index, not by a threshold: groups of equal strength must not both stay.
    distance = model.unary("ABS", model.binary("SUB", chosen, ids))  # [tokens, kept, groups]
    mask = model.minimum(distance, 1)  # [tokens, groups]: 0 where chosen, at least 1 elsewhere
    penalty = model.binary("MUL", mask, model.floats(np.array([-FAR], np.float32)))
    penalised = model.binary("ADD", grouped, model.reshape(penalty, (-1, groups, 1)))
    return model.reshape(penalised, (-1, experts))
