"""What a node does, in one of a few kinds, by what its signature says of it."""

from __future__ import annotations

from deepmnn.graph.call import Call
from deepmnn.graph.ir import CONTEXT, TOKENS, Graph, Node
from deepmnn.graph.signatures import SIGNATURES

KINDS = {
    "table": "rows of a table",
    "matrix": "matrix",
    "experts": "routed experts",
    "attention": "attention and KV cache",
    "norm": "norm, bias",
    "plain": "no weights",
    "view": "moves no data",
}
"""Kind → what it is called; the keys are classes of graph.css."""


def kind(graph: Graph, node: Node) -> str:
    """The kind of a node of a graph."""
    signature = SIGNATURES[node.op]
    call = Call.of(graph, node)
    readings = signature.readings(call.w)
    meet = {value.rows for value in call.x} >= {TOKENS, CONTEXT}  # queries and what they see
    if signature.cache_attrs or signature.cost(call).context or meet:
        return "attention"
    for reading, found in (("looked_up", "table"), ("routed", "experts"), ("in_order", "matrix")):
        if reading in readings:
            return found
    if signature.is_view:
        return "view"
    return "norm" if node.weights else "plain"
