"""A residual add and the norm of its sum become one op.

a ─┐                                      a ─┐
   add ─┬─ sum                     →         add_rms_norm ─┬─ sum
b ─┘    └─ rms_norm ─ normed              b ─┘             └─ normed
"""

from __future__ import annotations

from deepmnn.graph.ir import Graph, Node
from deepmnn.graph.rewrite import Rewrite, View, apply


def run(graph: Graph) -> int:
    """Returns the number of fused adds. A sum with several norms fuses with the first."""
    view = View(graph)
    rewrites: list[Rewrite] = []
    taken: set[str] = set()
    for norm in graph.nodes:
        if norm.op != "rms_norm" or norm.int_attr("heads") != 1 or not norm.weights:
            continue
        add = view.producer(norm.inputs[0], "add")
        if add is None or add.outputs[0] in taken:
            continue
        taken.update(add.outputs)
        outputs = (*add.outputs, *norm.outputs)
        attrs = {"eps": norm.attrs["eps"]}
        new = Node("add_rms_norm", add.inputs, outputs, norm.weights, attrs, norm.name)
        rewrites.append(Rewrite([add, norm], new))
    return apply(graph, view, rewrites)
