"""Rows whose logits nobody wants are left out as soon as nothing else reads them.

The last layer writes keys and values of every token of a prompt. What follows its attention works
row by row, and all rows but the last are thrown away before the head.

attention ─ linear ─┐                       attention ─ select_rows ─ linear ─┐
                    add ─ select_rows   →                                     add
x ──────────────────┘                       x ───────── select_rows ──────────┘
"""

from __future__ import annotations

from dataclasses import replace

from deepmnn.graph.ir import ROWS, TOKENS, Graph, Node, Value
from deepmnn.graph.rewrite import prune, rename_values
from deepmnn.graph.signatures import SIGNATURES


def run(graph: Graph) -> int:
    """Returns the number of nodes that compute fewer rows."""
    late = _late(graph)
    if not late:
        return 0
    made = {value for node in graph.nodes if id(node) in late for value in node.outputs}
    nodes: list[Node] = []
    selected: dict[str, str] = {}
    for node in graph.nodes:
        if id(node) in late:
            for value in node.inputs:
                if value not in made and value not in selected:
                    nodes.append(_select(graph, value))
                    selected[value] = nodes[-1].outputs[0]
            node.inputs = tuple(selected.get(value, value) for value in node.inputs)
        nodes.append(node)
    graph.nodes = nodes
    graph.values.update({name: _rows(graph.values[name], name) for name in made})
    done = [node for node in nodes if node.op == "select_rows" and node.inputs[0] in made]
    rename_values(graph, {node.outputs[0]: node.inputs[0] for node in done})
    _keep_names(graph, done)
    prune(graph)
    return len(late)


def _late(graph: Graph) -> set[int]:
    """ids of the nodes that work row by row and only towards a selection of rows.

    Selections take floats, so a node that reads integers needs who made them.
    """
    consumers, producers = graph.consumers(), graph.producers()
    late = {id(node) for node in graph.nodes if _by_row(graph, node)}

    def belongs(node: Node) -> bool:
        readers = [reader for value in node.outputs for reader in consumers[value]]
        named = [reader for reader in readers if reader.outputs[0] in graph.outputs]
        integers = [value for value in node.inputs if graph.values[value].dtype == "i32"]
        makers = [producers.get(value) for value in integers]
        wanted = all(id(reader) in late or reader.op == "select_rows" for reader in readers)
        return wanted and len(named) <= 1 and all(id(maker) in late for maker in makers)

    size = -1
    while size != len(late):
        size = len(late)
        for node in reversed(graph.nodes):  # readers first: one sweep does for all but integers
            if id(node) in late and not belongs(node):
                late.remove(id(node))
    return late


def _by_row(graph: Graph, node: Node) -> bool:
    values = [graph.values[name] for name in node.outputs]
    return not SIGNATURES[node.op].rows and all(
        value.rows == TOKENS and value.name not in graph.outputs for value in values
    )


def _keep_names(graph: Graph, done: list[Node]) -> None:
    """Values that are in place of a selection that is a graph output have its name."""
    names = {node.inputs[0]: node.outputs[0] for node in done if node.outputs[0] in graph.outputs}
    gone = {id(node) for node in done}
    graph.nodes = [node for node in graph.nodes if id(node) not in gone]
    for node in graph.nodes:
        node.inputs = tuple(names.get(value, value) for value in node.inputs)
        node.outputs = tuple(names.get(value, value) for value in node.outputs)
    for value, name in names.items():
        graph.values[name] = replace(graph.values.pop(value), name=name)


def _select(graph: Graph, value: str) -> Node:
    name = f"{value}.select_rows"
    graph.values[name] = _rows(graph.values[value], name)
    return Node("select_rows", (value,), (name,), name=name)


def _rows(value: Value, name: str) -> Value:
    return replace(value, name=name, shape=(ROWS, *value.shape[1:]))
