"""Lowers a graph to the CPU engine's program: its tables, and of each op what its signature says.

It decides nothing about the model: every op of docs/ops.md lowers the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from deepmnn.backends.cpu.pieces import Pieces
from deepmnn.backends.cpu.program import (
    DIMS,
    Instruction,
    Program,
    ProgramBuffer,
    ProgramPart,
    ProgramWeight,
    encode,
    format_program,
    read_program,
)
from deepmnn.errors import GraphError
from deepmnn.graph.call import Call
from deepmnn.graph.ir import Graph, Node, Weight
from deepmnn.graph.passes.memory_plan import MemoryPlan
from deepmnn.graph.signatures import SIGNATURES, caches_written

__all__ = ["format_program", "lower", "read_program"]


def lower(
    graph: Graph,
    plan: MemoryPlan,
    locations: Mapping[str, Pieces],
    shards: Sequence[str],
    draft: tuple[Graph, MemoryPlan] | None = None,
) -> bytes:
    """program.bin of the graph (docs/program.md).

    Args:
        graph: any optimisation level, weights with their storage dtypes.
        plan: where its values live.
        locations: where each weight that a node reads lies.
        shards: names of the weight files beside program.bin.
        draft: the same of a draft part (graph/draft.py).

    Raises GraphError when the plan or the locations do not cover the graph.
    """
    both = [(graph, plan), *([draft] if draft else [])]
    tables = _Tables(both)
    tokens, context, rows = (max(memory.nbytes[dim] for _, memory in both) for dim in DIMS)
    weights = {name: weight for part, _ in both for name, weight in part.weights.items()}
    parts = [_part(part, index, tables) for index, (part, _) in enumerate(both)]
    return encode(
        Program(
            name=graph.name,
            shards=tuple(shards),
            weights=tuple(
                _weight(weights[name], locations, len(shards)) for name in tables.weights
            ),
            caches={name: width for part, _ in both for name, width in part.caches.items()},
            buffers=tuple(
                _buffer(part, name, memory) for part, memory in both for name in _values(part)
            ),
            arenas=(tokens, context, rows),
            inputs=parts[0].inputs,
            outputs=parts[0].outputs,
            instructions=parts[0].instructions,
            draft=parts[1] if draft else None,
        )
    )


def _values(graph: Graph) -> list[str]:
    """Its values, in the order in which they come to be."""
    return [*graph.inputs, *(value for node in graph.nodes for value in node.outputs)]


class _Tables:
    """The numbers of what instructions name.

    Attributes:
        values: of each part: each has buffers of its own.
        weights, caches: of all parts: the draft part's own come last.
    """

    def __init__(self, parts: Sequence[tuple[Graph, MemoryPlan]]) -> None:
        self.values: list[dict[str, int]] = []
        for graph, _ in parts:
            first = sum(map(len, self.values))
            self.values.append({name: first + at for at, name in enumerate(_values(graph))})
        nodes = [node for graph, _ in parts for node in graph.nodes]
        self.weights = _numbered(name for node in nodes for name in node.weights)
        self.caches = _numbered(name for graph, _ in parts for name in graph.caches)


def _numbered(names: Iterable[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(dict.fromkeys(names))}


def _part(graph: Graph, index: int, tables: _Tables) -> ProgramPart:
    values = tables.values[index]
    return ProgramPart(
        inputs=tuple(values[name] for name in graph.inputs),
        outputs=tuple(values[name] for name in graph.outputs),
        instructions=tuple(_instruction(graph, node, values, tables) for node in graph.nodes),
    )


def _instruction(graph: Graph, node: Node, values: dict[str, int], tables: _Tables) -> Instruction:
    signature, call = SIGNATURES[node.op], Call.of(graph, node)
    cost = signature.cost(call)
    return Instruction(
        node.op,
        node.name,
        inputs=tuple(values[name] for name in node.inputs),
        outputs=tuple(values[name] for name in node.outputs),
        weights=tuple(tables.weights[name] for name in node.weights),
        readings=signature.readings(call.w),
        caches=tuple(tables.caches[name] for name in caches_written(node)),
        row_macs=cost.with_experts,
        context_macs=cost.context + cost.score,
        attrs={k: value for k, value in node.attrs.items() if k not in signature.cache_attrs},
    )


def _buffer(graph: Graph, name: str, plan: MemoryPlan) -> ProgramBuffer:
    value = graph.values[name]
    if name not in plan.offsets:
        raise GraphError(f"value {name!r} has no place in the memory plan")
    shape = tuple(int(dim) for dim in value.shape[1:])
    return ProgramBuffer(name, value.dtype, value.rows, shape, plan.offsets[name])


def _weight(weight: Weight, locations: Mapping[str, Pieces], shards: int) -> ProgramWeight:
    name, pieces = weight.name, locations.get(weight.name)
    if not pieces or not all(piece.is_zeros or 0 <= piece.shard < shards for piece in pieces):
        raise GraphError(f"weight {name!r} is in no shard")
    shape = weight.shape
    if weight.format == "vector":
        shape = (1, *shape)
    if len(shape) != 2:
        raise GraphError(f"weight {name!r} has shape {list(shape)}", "a matrix or a vector")
    return ProgramWeight(name, weight.format, shape[0], shape[1], pieces)
