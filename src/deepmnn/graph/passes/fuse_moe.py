"""The routed experts, with the add of the shared experts, become one op.

    x ─┬─ expert_linear gate ─ [clamp] ─ silu ─┐
       │                                      mul ─ expert_linear down ─ combine ─ [add] ─ y
       └─ expert_linear up ──── [clamp] ───────┘                                     │
    shared ──────────────────────────────────────────────────────────────────────────┘

                            →   x, indices, weights, [shared] ─ moe ─ y

Weights: Interleave(gate, up) and down of expert 0, of expert 1, ... An add is the shared experts'
when its sum feeds nothing but the residual add, or hyper_out; the residual add itself has other
readers too.
"""

from __future__ import annotations

from dataclasses import dataclass

from deepmnn.graph.ir import Attr, Graph, Node
from deepmnn.graph.passes.fuse_swiglu import gated
from deepmnn.graph.rewrite import Rewrite, View, add_weight, apply, join_names
from deepmnn.graph.weights import Interleave


@dataclass(frozen=True)
class _Experts:
    """The nodes of one mixture."""

    gate: Node
    up: Node
    down: Node
    combine: Node
    nodes: tuple[Node, ...]
    limit: float


def run(graph: Graph) -> int:
    """Returns the number of fused mixtures."""
    view = View(graph)
    rewrites: list[Rewrite] = []
    for combine in graph.nodes:
        experts = _match(graph, view, combine) if combine.op == "combine" else None
        if experts is not None:
            rewrites.append(_fuse(graph, view, experts))
    return apply(graph, view, rewrites)


def _match(graph: Graph, view: View, combine: Node) -> _Experts | None:
    down = view.producer(combine.inputs[0], "expert_linear")
    mul = view.producer(down.inputs[0], "mul") if down else None
    if down is None or mul is None:
        return None
    found = gated(view, mul, "expert_linear")
    if found is None:
        return None
    gate, up, chain, limit = found
    experts = _Experts(gate, up, down, combine, (*chain, down, combine), limit)
    same_rows = view.source(gate.inputs[0]) == view.source(up.inputs[0])
    indices = {view.source(node.inputs[1]) for node in (gate, up, down)}
    per_choice = [node.int_attr("per_choice") for node in (gate, up, down)]
    if not same_rows or len(indices) != 1 or per_choice != [0, 0, 1]:
        return None
    if not _same_storage(graph, gate, up):
        return None
    return experts if view.encloses(experts.nodes, combine.outputs) else None


def _same_storage(graph: Graph, gate: Node, up: Node) -> bool:
    """Every expert's gate and up can be one weight."""

    def storage(node: Node) -> list[tuple[tuple[int, ...], str]]:
        weights = [graph.weights[name] for name in node.weights]
        return [(w.shape, w.format) for w in weights]

    return storage(gate) == storage(up)


def _fuse(graph: Graph, view: View, experts: _Experts) -> Rewrite:
    gate, combine = experts.gate, experts.combine
    weights: list[str] = []
    for names in zip(gate.weights, experts.up.weights, experts.down.weights, strict=True):
        pair = [graph.weights[name] for name in names[:2]]
        expr = Interleave((pair[0].expr, pair[1].expr))
        weights += [add_weight(graph, pair[0], join_names(names[:2]), expr), names[2]]
    attrs: dict[str, Attr] = {
        "experts": len(gate.weights),
        "top_k": combine.attrs["top_k"],
        "intermediate_size": graph.weights[gate.weights[0]].shape[0],
        "limit": experts.limit,
    }
    inputs = [gate.inputs[0], gate.inputs[1], combine.inputs[1]]
    nodes, last, name = [*experts.nodes], combine, combine.name.rpartition(".")[0] or combine.name
    shared = _shared_add(view, combine)
    if shared is not None:
        inputs.append(shared.inputs[1 - _operand(view, shared, combine)])
        nodes.append(shared)
        last = shared
    sources = tuple(view.source(value) for value in inputs)
    return Rewrite(nodes, Node("moe", sources, last.outputs, tuple(weights), attrs, name))


def _shared_add(view: View, combine: Node) -> Node | None:
    add = view.reader(combine.outputs[0], "add")
    if add is None or view.source(add.inputs[0]) == view.source(add.inputs[1]):
        return None
    return add if view.reader(add.outputs[0], "add", "add_rms_norm", "hyper_out") else None


def _operand(view: View, add: Node, combine: Node) -> int:
    """Which of the add's inputs is the mixture."""
    return [view.source(value) for value in add.inputs].index(combine.outputs[0])
