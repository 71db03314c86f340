"""Gate and up projections with their SiLU product become one op.

x ─┬─ linear gate ─ silu ─┐
   │                      mul ─ y     →     x ─ swiglu ─ y
   └─ linear up ──────────┘                     weight: Interleave(gate, up)
"""

from __future__ import annotations

from deepmnn.graph.ir import Graph, Node
from deepmnn.graph.rewrite import Rewrite, View, add_weight, apply, join_names
from deepmnn.graph.weights import Interleave


def run(graph: Graph) -> int:
    """Returns the number of fused pairs."""
    view = View(graph)
    found = (_match(graph, view, mul) for mul in graph.nodes if mul.op == "mul")
    return apply(graph, view, [rewrite for rewrite in found if rewrite])


def _match(graph: Graph, view: View, mul: Node) -> Rewrite | None:
    silus = [node for x in mul.inputs if (node := view.producer(x, "silu"))]
    ups = [node for x in mul.inputs if (node := view.producer(x, "linear"))]
    gate = view.producer(silus[0].inputs[0], "linear") if silus else None
    if gate is None or len(ups) != 1 or gate is ups[0]:
        return None
    up, nodes = ups[0], [gate, ups[0], silus[0], mul]
    x = view.source(gate.inputs[0])
    if (
        x != view.source(up.inputs[0])
        or any(len(n.weights) != 1 or len(n.outputs) != 1 for n in (gate, up))
        or not view.encloses(nodes, mul.outputs)
    ):
        return None
    gate_w, up_w = (graph.weights[node.weights[0]] for node in (gate, up))
    if (gate_w.shape, gate_w.format, gate_w.role) != (up_w.shape, up_w.format, up_w.role):
        return None
    expr = Interleave((gate_w.expr, up_w.expr))
    weight = add_weight(graph, gate_w, join_names([gate_w.name, up_w.name]), expr)
    attrs = {"intermediate_size": gate_w.shape[0]}
    name = join_names([gate.name, up.name])
    return Rewrite(nodes, Node("swiglu", (x,), mul.outputs, (weight,), dict(attrs), name))
