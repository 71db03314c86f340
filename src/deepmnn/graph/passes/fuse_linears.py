"""Linears that read the same value become one with several outputs.

    x ─┬─ linear W₀ (b₀) ─ y₀               x ─ linear Concat(W₀, W₁, W₂) ─┬─ y₀
       ├─ linear W₁ ────── y₁       →           bias Concat(b₀, 0, b₂)     ├─ y₁
       └─ linear W₂ (b₂) ─ y₂                                              └─ y₂

So q/k/v, and q_a/kv_a (or q/kv_a) of MLA, are one pass over x. Weights of different roles stay
apart: a quantisation recipe may treat them differently. Routers are never touched.
"""

from __future__ import annotations

from collections.abc import Sequence

from deepmnn.graph.ir import Graph, Node, Weight
from deepmnn.graph.rewrite import Rewrite, View, add_weight, apply, join_names
from deepmnn.graph.weights import Concat, Constant, Expr


def run(graph: Graph) -> int:
    """Returns the number of groups fused."""
    view = View(graph)
    groups: dict[tuple[str, str, str], list[Node]] = {}
    for node in graph.nodes:
        if node.op == "linear":
            weight = graph.weights[node.weights[0]]
            if weight.role != "router":
                key = (view.source(node.inputs[0]), weight.role, weight.format)
                groups.setdefault(key, []).append(node)
    fused = [
        Rewrite(nodes, _fuse(graph, key[0], nodes))
        for key, nodes in groups.items()
        if len(nodes) > 1
    ]
    return apply(graph, view, fused)


def _fuse(graph: Graph, x: str, nodes: Sequence[Node]) -> Node:
    matrices = [graph.weights[node.weights[0]] for node in nodes]
    weights = [_stack(graph, matrices[0], [(w.name, w.expr) for w in matrices])]
    biases = [graph.weights[node.weights[1]] if len(node.weights) > 1 else None for node in nodes]
    present = [bias for bias in biases if bias is not None]
    if present:
        parts = [
            (bias.name, bias.expr) if bias else ("", Constant((matrix.shape[0],)))
            for bias, matrix in zip(biases, matrices, strict=True)
        ]
        weights.append(_stack(graph, present[0], parts))
    outputs = tuple(output for node in nodes for output in node.outputs)
    name = join_names([node.name for node in nodes])
    return Node("linear", (x,), outputs, tuple(weights), {}, name)


def _stack(graph: Graph, like: Weight, parts: Sequence[tuple[str, Expr]]) -> str:
    """Adds the weight that is all parts' rows in order; a part without a name has no say in its."""
    name = join_names([name for name, _ in parts if name])
    return add_weight(graph, like, name, Concat(tuple(expr for _, expr in parts)))
