"""What program.bin really computes, as a graph: the way back from `backends/cpu/lower.py`."""

from __future__ import annotations

from deepmnn.artifact.manifest import DRAFT, GRAPH
from deepmnn.backends.cpu.pieces import Pieces
from deepmnn.backends.cpu.program import Program, ProgramPart
from deepmnn.formats import named
from deepmnn.graph.ir import Attr, Graph, Node, Value, Weight
from deepmnn.graph.signatures import SIGNATURES
from deepmnn.graph.weights import Tensor
from deepmnn.inspect.check.line import Line, judged

_AGAIN = "Convert the checkpoint again."


def graph_of(program: Program, part: ProgramPart | None = None) -> Graph:
    """The graph that was lowered, or that of its draft part; its weights are tensors under their
    own names.
    """
    part = part or program.main
    values = [
        Value(buffer.name, (buffer.dim, *buffer.shape), buffer.dtype) for buffer in program.buffers
    ]
    read = {at for instruction in part.instructions for at in instruction.weights}
    weights = {}
    for stored in (weight for at, weight in enumerate(program.weights) if at in read):
        is_matrix = named(stored.format).is_matrix
        shape = (stored.rows, stored.cols) if is_matrix else (stored.cols,)
        role = "linear" if is_matrix else "vector"  # a program does not say more
        weights[stored.name] = Weight(stored.name, Tensor(stored.name, shape), role, stored.format)
    caches = list(program.caches)
    nodes = []
    for instruction in part.instructions:
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
    touched = {at for each in part.instructions for at in (*each.inputs, *each.outputs)}
    own = {values[at].name: values[at] for at in sorted({*part.inputs, *part.outputs, *touched})}
    written = {at for instruction in part.instructions for at in instruction.caches}
    return Graph(
        program.name,
        [values[at].name for at in part.inputs],
        [values[at].name for at in part.outputs],
        nodes,
        own,
        weights,
        {name: program.caches[name] for at, name in enumerate(caches) if at in written},
    )


def locations_of(program: Program) -> dict[str, Pieces]:
    """Where each of its weights lies in the weight files."""
    return {weight.name: weight.pieces for weight in program.weights}


def check_draft(program: Program, draft: Graph | None) -> list[Line]:
    """The draft part of program.bin against draft.json; nothing where neither is there."""
    if program.draft is None and draft is None:
        return []
    if program.draft is None or draft is None:
        has, lacks = ("program.bin", DRAFT) if draft is None else (DRAFT, "program.bin")
        said = f"a draft part in {has}, none in {lacks}"
        return [judged(f"program.bin and {DRAFT}", False, said, "one in both", _AGAIN)]
    return [check_program(graph_of(program, program.draft), draft, DRAFT)]


def check_program(program: Graph, graph: Graph, file: str = GRAPH) -> Line:
    """program.bin, decoded, against graph.json: node by node, with every attribute."""
    found = f"{len(program.nodes)} instructions"
    name = "program.bin" if file == GRAPH else f"program.bin and {file}"
    expected = f"the {len(graph.nodes)} nodes of {file}"
    for ours, theirs in zip(program.nodes, graph.nodes, strict=False):
        different = _difference(ours, theirs, file)
        if different:
            return judged(name, False, f"{theirs.name}: {different}", expected, _AGAIN)
    same = len(program.nodes) == len(graph.nodes)
    return judged(name, same, found, expected, _AGAIN)


def _difference(ours: Node, theirs: Node, file: str) -> str:
    """The first thing in which an instruction is not its node; "" where there is none."""
    for field in ("op", "name", "inputs", "outputs", "weights"):
        found, expected = getattr(ours, field), getattr(theirs, field)
        if found != expected:
            return f"{field} {found!r:.80}, {expected!r:.80} in {file}"
    for key in sorted({*ours.attrs, *theirs.attrs}):
        here, there = ours.attrs.get(key), theirs.attrs.get(key)
        if here != there:
            return f"{key} {here!r:.80}, {there!r:.80} in {file}"
    return ""
