"""Call: a node with its names resolved, as the rules of its op's signature see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deepmnn.graph.caches import CacheEntry
from deepmnn.graph.ir import Graph, Node, Value


@dataclass(frozen=True)
class Call:
    """x: inputs, y: outputs, w: weight shapes, a: attributes, caches: entry → what it holds."""

    x: tuple[Value, ...]
    y: tuple[Value, ...]
    w: tuple[tuple[int, ...], ...]
    a: Mapping[str, Any]
    caches: Mapping[str, CacheEntry]

    @staticmethod
    def of(graph: Graph, node: Node) -> Call:
        """Raises KeyError when the node names a value or a weight that the graph has not got."""
        return Call(
            tuple(graph.values[name] for name in node.inputs),
            tuple(graph.values[name] for name in node.outputs),
            tuple(graph.weights[name].shape for name in node.weights),
            node.attrs,
            graph.caches,
        )
