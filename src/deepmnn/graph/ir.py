"""The intermediate representation: Graph, Node, Value, Weight.

A graph is in static single assignment form: nodes are listed in execution order and every value is
produced once, by a node or as a graph input. Activations are packed: the first dimension counts
rows, symbolically, and everything after it is fixed:

    "tokens"   rows of this step, all sequences of the batch concatenated (ragged batch)
    "context"  rows of the KV cache that the batch's sequences see, concatenated in the same order
    "rows"     the rows of this step whose logits are wanted

In memory a value is a dense matrix [rows, width], where width is the product of the other
dimensions: an op that works per head carries the head count as an attribute, so a reshape never
moves data. docs/ops.md lists every op.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from dataclasses import dataclass, field

from deepmnn import formats
from deepmnn.errors import GraphError
from deepmnn.graph.caches import CacheEntry
from deepmnn.graph.weights import Expr

TOKENS = "tokens"
CONTEXT = "context"
ROWS = "rows"

Dim = int | str
Attr = int | float | str | tuple[int, ...] | tuple[float, ...]


@dataclass(frozen=True)
class Value:
    """An activation. `shape[0]` is symbolic, the rest are positive ints. dtype: "f32" or "i32"."""

    name: str
    shape: tuple[Dim, ...]
    dtype: str = "f32"

    @property
    def rows(self) -> str:
        """The symbolic first dimension."""
        return str(self.shape[0])

    @property
    def width(self) -> int:
        """Elements per row."""
        return math.prod(int(dim) for dim in self.shape[1:])


@dataclass
class Weight:
    """A constant: where its numbers come from, and how they will be stored.

    role says what the weight is for, so that a quantisation recipe can choose by it: "linear",
    "expert", "latent" (the MLA up-projections), "router", "embedding", "lm_head", "vector".
    format names how the numbers are stored (formats.py): as floats, or as codes.
    """

    name: str
    expr: Expr
    role: str = "linear"
    format: str = "f32"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the numbers; the storage may pad."""
        return self.expr.shape

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Rows and columns as stored: a vector has one row."""
        if not formats.named(self.format).is_matrix:
            return 1, math.prod(self.shape)
        rows, cols = self.shape
        return rows, cols

    @property
    def nbytes(self) -> int:
        """Stored bytes."""
        return formats.named(self.format).nbytes(*self.matrix_shape)


@dataclass
class Node:
    """One op. `name` is where it comes from in the model ("layers.0.self_attn.q_proj")."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: tuple[str, ...] = ()
    attrs: dict[str, Attr] = field(default_factory=dict)
    name: str = ""

    def int_attr(self, key: str) -> int:
        """An attribute that is a whole number."""
        return int(self.attrs[key])  # type: ignore[arg-type]

    def float_attr(self, key: str) -> float:
        """An attribute that is a number."""
        return float(self.attrs[key])  # type: ignore[arg-type]


@dataclass
class Graph:
    """A model, or one stage of its lowering.

    caches maps a KV cache entry's name to what it holds.
    """

    name: str
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    values: dict[str, Value] = field(default_factory=dict)
    weights: dict[str, Weight] = field(default_factory=dict)
    caches: dict[str, CacheEntry] = field(default_factory=dict)

    def copy(self) -> Graph:
        """A graph that passes may rewrite without touching this one (expressions are shared)."""
        return Graph(
            self.name,
            list(self.inputs),
            list(self.outputs),
            [Node(n.op, n.inputs, n.outputs, n.weights, dict(n.attrs), n.name) for n in self.nodes],
            dict(self.values),
            {name: copy.copy(weight) for name, weight in self.weights.items()},
            dict(self.caches),
        )

    def producers(self) -> dict[str, Node]:
        """Value name → the node that produces it (graph inputs have none)."""
        return {output: node for node in self.nodes for output in node.outputs}

    def consumers(self) -> dict[str, list[Node]]:
        """Value name → the nodes that read it, in order; an entry for every value."""
        uses: dict[str, list[Node]] = {name: [] for name in self.values}
        for node in self.nodes:
            for name in node.inputs:
                if name not in uses:
                    raise GraphError(f"node {node.name!r} ({node.op}) reads unknown value {name!r}")
                if node not in uses[name][-1:]:
                    uses[name].append(node)
        return uses

    def op_counts(self) -> Counter[str]:
        """How many nodes there are of each op."""
        return Counter(node.op for node in self.nodes)
