"""What program.bin really computes, as a graph: the way back from `backends/cpu/lower.py`."""

from __future__ import annotations

from deepmnn.backends.cpu.pieces import Pieces
from deepmnn.backends.cpu.program import Program
from deepmnn.formats import named
from deepmnn.graph.ir import Attr, Graph, Node, Value, Weight
from deepmnn.graph.signatures import SIGNATURES
from deepmnn.graph.weights import Tensor
from deepmnn.inspect.check.line import Line, judged

_AGAIN = "Convert the checkpoint again."


def graph_of(program: Program) -> Graph:
    """The graph that was lowered; its weights are tensors under their own names."""
    values = [
        Value(buffer.name, (buffer.dim, *buffer.shape), buffer.dtype) for buffer in program.buffers
    ]
    weights = {}
    for stored in program.weights:
        is_matrix = named(stored.format).is_matrix
        shape = (stored.rows, stored.cols) if is_matrix else (stored.cols,)
        role = "linear" if is_matrix else "vector"  # a program does not say more
        weights[stored.name] = Weight(stored.name, Tensor(stored.name, shape), role, stored.format)
    caches = list(program.caches)
    nodes = []
    for instruction in program.instructions:
        signature = SIGNATURES.get(instruction.op)
        keys = () if signature is None else signature.cache_attrs
        attrs: dict[str, Attr] = dict(instruction.attrs)
        attrs |= {key: caches[at] for key, at in zip(keys, instruction.caches, strict=False)}
        nodes.append(
            Node(
                instruction.op,
                tuple(values[at].name for at in instruction.inputs),
                tuple(values[at].name for at in instruction.outputs),
                tuple(program.weights[at].name for at in instruction.weights),
                attrs,
                instruction.name,
            )
        )
    return Graph(
        program.name,
        [values[at].name for at in program.inputs],
        [values[at].name for at in program.outputs],
        nodes,
        {value.name: value for value in values},
        weights,
        dict(program.caches),
    )


def locations_of(program: Program) -> dict[str, Pieces]:
    """Where each of its weights lies in the weight files."""
    return {weight.name: weight.pieces for weight in program.weights}


def check_program(program: Graph, graph: Graph) -> Line:
    """program.bin, decoded, against graph.json: node by node, with every attribute."""
    found = f"{len(program.nodes)} instructions"
    name, expected = "program.bin", f"the {len(graph.nodes)} nodes of graph.json"
    for ours, theirs in zip(program.nodes, graph.nodes, strict=False):
        different = _difference(ours, theirs)
        if different:
            return judged(name, False, f"{theirs.name}: {different}", expected, _AGAIN)
    same = len(program.nodes) == len(graph.nodes)
    return judged(name, same, found, expected, _AGAIN)


def _difference(ours: Node, theirs: Node) -> str:
    """The first thing in which an instruction is not its node; "" where there is none."""
    for field in ("op", "name", "inputs", "outputs", "weights"):
        found, expected = getattr(ours, field), getattr(theirs, field)
        if found != expected:
            return f"{field} {found!r:.80}, {expected!r:.80} in graph.json"
    for key in sorted({*ours.attrs, *theirs.attrs}):
        here, there = ours.attrs.get(key), theirs.attrs.get(key)
        if here != there:
            return f"{key} {here!r:.80}, {there!r:.80} in graph.json"
    return ""
