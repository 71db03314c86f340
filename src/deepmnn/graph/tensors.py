"""The checkpoint tensors that a graph is made of."""

from __future__ import annotations

from collections.abc import Iterator

from deepmnn.graph.ir import Graph
from deepmnn.graph.weights import Expr, Tensor


def tensor_shapes(graph: Graph) -> dict[str, tuple[int, ...]]:
    """Checkpoint tensor name → shape, of every tensor that the graph's weights are made of."""
    return {t.name: t.shape for weight in graph.weights.values() for t in tensors(weight.expr)}


def tensors(expr: Expr) -> Iterator[Tensor]:
    """The checkpoint tensors that an expression reads."""
    if isinstance(expr, Tensor):
        yield expr
    for child in expr.children():
        yield from tensors(child)
