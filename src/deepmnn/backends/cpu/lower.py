"""Lowers a graph to the CPU engine's program: its tables, and of each op what its signature says.

It decides nothing about the model: every op of docs/ops.md lowers the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from deepmnn.backends.cpu.pieces import Pieces
from deepmnn.backends.cpu.program import (
    DIMS,
    Instruction,
    Program,
    ProgramBuffer,
    ProgramWeight,
    encode,
    format_program,
    read_program,
)
from deepmnn.errors import GraphError
from deepmnn.graph.call import Call
from deepmnn.graph.ir import Graph, Node
from deepmnn.graph.passes.memory_plan import MemoryPlan
from deepmnn.graph.signatures import SIGNATURES, caches_written

__all__ = ["format_program", "lower", "read_program"]


def lower(
    graph: Graph,
    plan: MemoryPlan,
    locations: Mapping[str, Pieces],
    shards: Sequence[str],
) -> bytes:
    """program.bin of the graph (docs/program.md).

    Args:
        graph: any optimisation level, weights with their storage dtypes.
        plan: where its values live.
        locations: where each weight that a node reads lies.
        shards: names of the weight files beside program.bin.

    Raises GraphError when the plan or the locations do not cover the graph.
    """
    produced = [*graph.inputs, *(value for node in graph.nodes for value in node.outputs)]
    values = {name: index for index, name in enumerate(produced)}
    read = dict.fromkeys(name for node in graph.nodes for name in node.weights)
    weights = {name: index for index, name in enumerate(read)}
    tokens, context, rows = (plan.nbytes[dim] for dim in DIMS)
    return encode(
        Program(
            name=graph.name,
            shards=tuple(shards),
            weights=tuple(_weight(graph, name, locations, len(shards)) for name in weights),
            caches=graph.caches,
            buffers=tuple(_buffer(graph, name, plan) for name in values),
            arenas=(tokens, context, rows),
            inputs=tuple(values[name] for name in graph.inputs),
            outputs=tuple(values[name] for name in graph.outputs),
            instructions=tuple(_instruction(graph, node, values, weights) for node in graph.nodes),
        )
    )


def _instruction(
    graph: Graph, node: Node, values: dict[str, int], weights: dict[str, int]
) -> Instruction:
    signature, call = SIGNATURES[node.op], Call.of(graph, node)
    cost, caches = signature.cost(call), list(graph.caches)
    return Instruction(
        node.op,
        node.name,
        inputs=tuple(values[name] for name in node.inputs),
        outputs=tuple(values[name] for name in node.outputs),
        weights=tuple(weights[name] for name in node.weights),
        readings=signature.readings(call.w),
        caches=tuple(caches.index(name) for name in caches_written(node)),
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


def _weight(graph: Graph, name: str, locations: Mapping[str, Pieces], shards: int) -> ProgramWeight:
    weight, pieces = graph.weights[name], locations.get(name)
    if not pieces or not all(piece.is_zeros or 0 <= piece.shard < shards for piece in pieces):
        raise GraphError(f"weight {name!r} is in no shard")
    shape = weight.shape
    if weight.format == "vector":
        shape = (1, *shape)
    if len(shape) != 2:
        raise GraphError(f"weight {name!r} has shape {list(shape)}", "a matrix or a vector")
    return ProgramWeight(name, weight.format, shape[0], shape[1], pieces)
