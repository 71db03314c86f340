"""A stored graph against the one that this version makes of config.json."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deepmnn.graph.ir import Attr, Graph


@dataclass(frozen=True)
class AttributeDifference:
    """Of a node of the model: an attribute that is not what config.json asks for."""

    node: str
    op: str
    attribute: str
    found: Attr
    wanted: Attr

    def __str__(self) -> str:
        """The two values; of long lists the first one that is different."""
        found, wanted, place = self.found, self.wanted, ""
        if isinstance(found, tuple) and isinstance(wanted, tuple) and len(found) == len(wanted):
            at = next(
                i for i, pair in enumerate(zip(found, wanted, strict=True)) if pair[0] != pair[1]
            )
            found, wanted, place = found[at], wanted[at], f"[{at}]"
        return f"{self.attribute}{place} is {found!s:.40}, config.json asks for {wanted!s:.40}"


def attribute_differences(model: Graph, wanted: Graph) -> list[AttributeDifference]:
    """Of nodes with one name and op in both graphs, in the model's order; numbers that differ by
    roundings of float64 are the same.
    """
    theirs = {(node.name, node.op): node for node in wanted.nodes}
    found = []
    for node in model.nodes:
        other = theirs.get((node.name, node.op))
        if other is None:
            continue
        for key in sorted(node.attrs.keys() & other.attrs.keys()):
            if not _same(node.attrs[key], other.attrs[key]):
                found.append(
                    AttributeDifference(node.name, node.op, key, node.attrs[key], other.attrs[key])
                )
    return found


def _same(a: Attr, b: Attr) -> bool:
    if isinstance(a, str) or isinstance(b, str):
        return a == b
    first, second = np.atleast_1d(a), np.atleast_1d(b)
    return first.shape == second.shape and bool(np.allclose(first, second, rtol=1e-7, atol=0))
