"""Drops what does nothing.

x ─ reshape ─ y                        →  x ─ y      (data never moves)
x ─ scale 1.0 ─ y                      →  x ─ y
x ─ split or concat of one part ─ y    →  x ─ y
x ─ broadcast to 1 head ─ y            →  x ─ y
nodes and weights that nobody reads    →  gone
"""

from __future__ import annotations

from deepmnn.graph.ir import Graph, Node
from deepmnn.graph.rewrite import prune, rename_values


def run(graph: Graph) -> int:
    """Returns the number of identities and of unread nodes and weights that are gone."""
    identities = [
        node for node in graph.nodes if _is_identity(node) and node.outputs[0] not in graph.outputs
    ]
    gone = {id(node) for node in identities}
    graph.nodes = [node for node in graph.nodes if id(node) not in gone]
    rename_values(graph, {node.outputs[0]: node.inputs[0] for node in identities})
    return len(identities) + prune(graph)


def _is_identity(node: Node) -> bool:
    match node.op:
        case "reshape":
            return True
        case "scale":
            return node.float_attr("factor") == 1.0
        case "split":
            return len(node.outputs) == 1
        case "concat":
            return len(node.inputs) == 1
        case "broadcast":
            return node.int_attr("heads") == 1
    return False
