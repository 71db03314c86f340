"""Where a value comes from: what computes it, and from which others that are known."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from deepmnn.formats import VECTOR
from deepmnn.graph.ir import Graph
from deepmnn.graph.tensors import tensors

FLOATS = "floats"
"""The format of what is not stored as codes of ours."""


@dataclass(frozen=True)
class Origin:
    """Of a value of the level-0 graph.

    Attributes:
        op: gives it.
        formats: in which the model stores the matrices between it and what it reads.
        reads: the known values that it is computed from.
        bound: the error of its own that rounding explains.
    """

    op: str = ""
    formats: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    bound: float = 0.0


def origins(
    naive: Graph,
    known: Collection[str],
    formats_of: Callable[[str], Iterable[str]],
    bounds: Mapping[str, float],
) -> dict[str, Origin]:
    """Of each known value.

    formats_of: those in which a tensor is stored. bounds: of each.
    """
    order = {name: at for at, name in enumerate(naive.values)}
    makers, above = naive.producers(), nearest(naive, known)
    found = {}
    for name in known:
        inner = {name, *between(naive, name, known)} & makers.keys()
        matrices = [
            naive.weights[weight]
            for value in sorted(inner, key=lambda each: order[each])
            for weight in makers[value].weights
            if naive.weights[weight].role != VECTOR.name
        ]
        formats = {
            FLOATS if format == VECTOR.name else format
            for matrix in matrices
            for tensor in tensors(matrix.expr)
            for format in formats_of(tensor.name)
        }
        reads = tuple(sorted(above[name], key=lambda each: order[each]))
        op = makers[name].op if name in makers else ""
        found[name] = Origin(op, tuple(sorted(formats)), reads, bounds.get(name, 0.0))
    return found


def nearest(graph: Graph, known: Iterable[str]) -> dict[str, set[str]]:
    """Known value → the known values that it is computed from, through others that are not."""
    kept = set(known)
    above: dict[str, set[str]] = {}
    found: dict[str, set[str]] = {}
    for node in graph.nodes:
        read: set[str] = set()
        for name in node.inputs:
            read |= {name} if name in kept else above.get(name, set())
        for name in node.outputs:
            above[name] = found[name] = read
    return {name: found.get(name, set()) for name in kept}


def between(naive: Graph, value: str, known: Collection[str]) -> set[str]:
    """The values that lie between one and the known ones before it."""
    makers, found, left = naive.producers(), set[str](), [value]
    while left:
        node = makers.get(left.pop())
        for name in () if node is None else node.inputs:
            if name not in known and name not in found:
                found.add(name)
                left.append(name)
    return found
