"""Memory plan: liveness → offsets in three arenas.

    a ──► b ──► c ──► d          without reuse: [a][b][c][d]
                                 with reuse:    [a,c][b,d]

A step has n tokens, context rows and logits rows, known only when it runs. A value takes a fixed
number of bytes per row and lives at `offset · n` of its dimension's arena, so one plan serves every
n. Two values of one arena may share bytes when they are never alive at the same node; an op's
inputs and outputs are alive together, so no op works in place.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from deepmnn.errors import GraphError
from deepmnn.graph.ir import CONTEXT, ROWS, TOKENS, Graph, Value

ALIGNMENT = 64
"""Bytes; a cache line, and a whole vector register."""

EXTERNAL = -1
"""The offset of a graph input or output: the caller supplies its memory."""

_ELEMENT_BYTES = 4  # f32 and i32


@dataclass(frozen=True)
class MemoryPlan:
    """Where every value lives.

    offsets: value → bytes per row from the start of its arena, or EXTERNAL.
    nbytes: dimension ("tokens", "context", "rows") → bytes of its arena per row.
    """

    offsets: dict[str, int] = field(default_factory=dict)
    nbytes: dict[str, int] = field(default_factory=dict)

    def peak_nbytes(self, tokens: int, context: int, rows: int) -> int:
        """Bytes of all three arenas for a step of this size."""
        return (
            self.nbytes[TOKENS] * tokens + self.nbytes[CONTEXT] * context + self.nbytes[ROWS] * rows
        )


def plan_memory(graph: Graph, reuse: bool) -> MemoryPlan:
    """Gives every value of the graph a place; with `reuse`, dead values make room for new ones.

    Values are placed largest first, each in the tightest gap between the values it lives with.
    """
    lives = live_ranges(graph)
    plan = MemoryPlan(nbytes={TOKENS: 0, CONTEXT: 0, ROWS: 0})
    external = {*graph.inputs, *graph.outputs}
    plan.offsets.update(dict.fromkeys([*graph.inputs, *graph.outputs], EXTERNAL))
    placed: dict[str, list[list[tuple[int, int]]]] = {
        dim: [[] for _ in graph.nodes] for dim in plan.nbytes
    }
    names = [name for name in lives if name not in external]
    if reuse:
        names.sort(key=lambda name: -row_nbytes(graph.values[name]))
    for name in names:
        value = graph.values[name]
        size = row_nbytes(value)
        offset = plan.nbytes[value.rows]
        if reuse:
            steps = placed[value.rows][lives[name][0] : lives[name][1] + 1]
            offset = _best_fit(sorted({span for step in steps for span in step}), size)
            for step in steps:
                step.append((offset, offset + size))
        plan.offsets[name] = offset
        plan.nbytes[value.rows] = max(plan.nbytes[value.rows], offset + size)
    return plan


def row_nbytes(value: Value) -> int:
    """Bytes that a value takes per row, whole cache lines."""
    return -(-value.width * _ELEMENT_BYTES // ALIGNMENT) * ALIGNMENT


def live_ranges(graph: Graph) -> dict[str, tuple[int, int]]:
    """Value → the first and last node (positions, inclusive) between which it must keep its bytes.

    Only values that a node produces; one that nobody reads lives at its own node.
    """
    ranges: dict[str, tuple[int, int]] = {}
    for position, node in enumerate(graph.nodes):
        for name in node.inputs:
            if name in ranges:
                ranges[name] = (ranges[name][0], position)
        for name in node.outputs:
            ranges[name] = (position, position)
    return ranges


def check_plan(graph: Graph, plan: MemoryPlan) -> None:
    """Raises GraphError unless every value has a place of its own for as long as it lives."""
    external = {*graph.inputs, *graph.outputs}
    busy: dict[tuple[str, int], list[tuple[int, int, str]]] = {}
    for name, (born, died) in live_ranges(graph).items():
        value = graph.values[name]
        offset = plan.offsets.get(name)
        if offset is None or (offset == EXTERNAL) != (name in external):
            raise GraphError(f"value {name!r} has offset {offset}", "a place in the memory plan")
        if name in external:
            continue
        end = offset + row_nbytes(value)
        if offset < 0 or offset % ALIGNMENT or end > plan.nbytes[value.rows]:
            raise GraphError(
                f"value {name!r} lies at bytes {offset}..{end} per row",
                f"a multiple of {ALIGNMENT} within {plan.nbytes[value.rows]}",
            )
        for position in range(born, died + 1):
            busy.setdefault((value.rows, position), []).append((offset, end, name))
    for spans in busy.values():
        spans.sort()
        for (_, end, first), (start, _, second) in pairwise(spans):
            if start < end:
                raise GraphError(f"values {first!r} and {second!r} are alive and share bytes")


def _best_fit(spans: list[tuple[int, int]], size: int) -> int:
    """The offset of the smallest gap between sorted spans that holds `size`, else after them."""
    best, best_gap, end = -1, 0, 0
    for start, stop in spans:
        gap = start - end
        if gap >= size and (best < 0 or gap < best_gap):
            best, best_gap = end, gap
        end = max(end, stop)
    return end if best < 0 else best
