"""A graph cut into stages that run one after another: what one gives, the next ones read.

A model that does not fit in memory runs stage by stage over all of its inputs. A stage is a layer;
what comes before the first is part of it, what comes after the last is a stage of its own.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator

from deepmnn.graph.ir import Graph, Node
from deepmnn.graph.signatures import caches_written

LAYER = re.compile(r"layers\.(\d+)\.")
"""How the names of a layer's nodes begin."""


def stages(graph: Graph, taps: Iterable[str] = ()) -> list[Graph]:
    """The stages of a graph, each a graph that `lower` takes.

    The inputs of a stage are those of the graph that it reads, and values of earlier stages. Its
    outputs are what later stages read, and the taps that it produces. Nodes that lead to neither
    are left out, so that without a tap on the logits the output head is not computed.

    Args:
        graph: any optimisation level.
        taps: names of values that are wanted.
    """
    groups = list(_groups(graph.nodes))
    wanted, parts = set(taps), []
    for nodes in reversed(groups):
        part = _part(graph, nodes, wanted)
        wanted.update(part.inputs)
        parts.append(part)
    return parts[::-1]


def cut(stage: Graph, wanted: Iterable[str]) -> Graph:
    """The part of a stage that leads to some of its values, which are its outputs."""
    return _part(stage, stage.nodes, set(wanted), whole=False)


def _groups(nodes: list[Node]) -> Iterator[list[Node]]:
    """Nodes by layer, in order: a node without a layer goes with those before it, but after the
    last layer.
    """
    layers = [int(found[1]) if (found := LAYER.match(node.name)) else None for node in nodes]
    last = max((index for index, layer in enumerate(layers) if layer is not None), default=-1)
    group: list[Node] = []
    current: int | None = None
    for index, (node, layer) in enumerate(zip(nodes, layers, strict=True)):
        begins = layer is not None and current is not None and layer > current
        if group and (begins or index == last + 1):
            yield group
            group = []
        if layer is not None:
            current = layer if current is None else max(current, layer)
        group.append(node)
    if group:
        yield group


def _part(graph: Graph, nodes: list[Node], wanted: set[str], whole: bool = True) -> Graph:
    """The nodes that lead to wanted values, as a graph; a whole one has all that write caches."""
    needed, kept = set(wanted), []
    for node in reversed(nodes):
        if needed.intersection(node.outputs) or (whole and caches_written(node)):
            kept.append(node)
            needed.update(node.inputs)
    return subgraph(graph, kept[::-1], wanted)


def subgraph(graph: Graph, nodes: list[Node], wanted: Collection[str]) -> Graph:
    """Some nodes of a graph, in order, as a graph: it reads what they do not produce, and gives
    what they produce of the wanted values.
    """
    produced = {name for node in nodes for name in node.outputs}
    read = dict.fromkeys(name for node in nodes for name in node.inputs)
    inputs = [name for name in read if name not in produced]
    entries = {name for node in nodes for name in caches_written(node)}
    names = dict.fromkeys([*inputs, *(name for node in nodes for name in node.outputs)])
    return Graph(
        name=graph.name,
        inputs=inputs,
        outputs=[name for name in names if name in wanted and name in produced],
        nodes=nodes,
        values={name: graph.values[name] for name in names},
        weights={name: graph.weights[name] for node in nodes for name in node.weights},
        caches={name: width for name, width in graph.caches.items() if name in entries},
    )
