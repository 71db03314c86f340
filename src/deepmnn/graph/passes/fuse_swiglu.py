"""Gate and up projections with their SiLU product become one op.

x ─┬─ linear gate ─ [clamp] ─ silu ─┐
   │                                mul ─ y     →     x ─ swiglu ─ y
   └─ linear up ──── [clamp] ───────┘                     weight: Interleave(gate, up)
"""

from __future__ import annotations

from deepmnn.graph.ir import Attr, Graph, Node
from deepmnn.graph.rewrite import Rewrite, View, add_weight, apply, join_names
from deepmnn.graph.weights import Interleave


def run(graph: Graph) -> int:
    """Returns the number of fused pairs."""
    view = View(graph)
    found = (_match(graph, view, mul) for mul in graph.nodes if mul.op == "mul")
    return apply(graph, view, [rewrite for rewrite in found if rewrite])


def gated(view: View, mul: Node, op: str) -> tuple[Node, Node, list[Node], float] | None:
    """The products of `op` whose gated product a mul is: gate, up, all nodes, and their limit."""
    silus = [node for x in mul.inputs if (node := view.producer(x, "silu"))]
    others = [x for x in mul.inputs if view.producer(x, "silu") is None]
    if len(silus) != 1 or len(others) != 1:
        return None
    clamps = [view.producer(x, "clamp") for x in (silus[0].inputs[0], others[0])]
    inputs = [
        clamp.inputs[0] if clamp else x
        for clamp, x in zip(clamps, (silus[0].inputs[0], others[0]), strict=True)
    ]
    gate, up = (view.producer(x, op) for x in inputs)
    if gate is None or up is None or gate is up:
        return None
    found = [clamp for clamp in clamps if clamp]
    limits = {clamp.float_attr("limit") for clamp in found}
    sides = [clamp.int_attr("two_sided") for clamp in found]
    if found and (len(limits) != 1 or sides != [0, 1] or 0.0 in limits):
        return None
    return gate, up, [gate, up, *found, silus[0], mul], limits.pop() if limits else 0.0


def _match(graph: Graph, view: View, mul: Node) -> Rewrite | None:
    found = gated(view, mul, "linear")
    if found is None:
        return None
    gate, up, nodes, limit = found
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
    attrs: dict[str, Attr] = {"intermediate_size": gate_w.shape[0], "limit": limit}
    name = join_names([gate.name, up.name])
    return Rewrite(nodes, Node("swiglu", (x,), mul.outputs, (weight,), attrs, name))
