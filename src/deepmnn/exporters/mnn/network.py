"""Checks an exported network before MNN sees it: llm.mnn must be one that `export` could write.

MNN trusts what it loads. So every op is looked at: its kind and all of its parameters are among
those that model.py writes, its inputs were computed before, their shapes fit each other, and what
it reads of the weight file is there (weight_check.py). A size that depends on the call, the tokens
of a step, is a name; integers that choose rows carry their bound. op_rules.py has a rule for each
kind of op.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deepmnn.errors import ArtifactError
from deepmnn.exporters.mnn.flatbuffer import FlatBuffer, Table
from deepmnn.exporters.mnn.model import expert_name
from deepmnn.exporters.mnn.op_rules import (
    ROUTED,
    RULES,
    TOKENS,
    State,
    Tensor,
    check_size,
    declared,
)
from deepmnn.exporters.mnn.schema import OP_TYPES, TABLES, UNION
from deepmnn.exporters.mnn.weight_check import OpError, WeightBlobs, need

_AGAIN = "Export the model again."
_NAMES = {number: name for name, number in OP_TYPES.items()}
_MAX_DIM = 1 << 24

Inputs = dict[str, tuple[tuple[int, ...], Tensor]]
"""Name → the dims that are written, and what the tensor is."""


@dataclass(frozen=True)
class Network:
    """What a network turned out to be.

    Attributes:
        hidden_size: width of the embedded tokens that it takes.
        vocab_size: width of the logits.
        layers: attentions, each with a cache.
        cache_width: elements that they cache for a token.
        context_length: positions that its tables hold.
        tensors: what its ops compute, experts apart, by number.
    """

    hidden_size: int
    vocab_size: int
    layers: int
    cache_width: int
    context_length: int
    tensors: tuple[Tensor | None, ...] = field(repr=False)


def read_network(path: Path, data: bytes, weights: Path) -> Network:
    """Checks `data`, the bytes of the .mnn file at `path`, against its weight file.

    Raises ArtifactError, naming the op.
    """
    return check_network(decode_network(path, data), path, weights)


def decode_network(path: Path, data: bytes) -> Table:
    """The .mnn file as a Net of schema.py. Raises ArtifactError for a damaged one."""
    return FlatBuffer(data, TABLES, UNION, str(path), _AGAIN).root("Net")


def check_network(net: Table, path: Path, weights: Path) -> Network:
    """The same for a network that has been decoded: a Net of schema.py."""
    place = "the network"
    with WeightBlobs(weights) as blobs:
        state = State(blobs)
        try:
            hidden_size, logits, tensors = _main(net, state)
            for index, graph in enumerate(net["subgraphs"] or ()):
                place = f"subgraph {index}"
                _expert(graph, index, state)
            need(state.experts_left() == 0, "experts are missing")
        except OpError as fault:
            raise ArtifactError(
                f"{path}: {place}: {fault}", "what an export of this version holds", _AGAIN
            ) from None
    sizes = (state.layers, state.cache_width, state.context_length)
    return Network(hidden_size, logits, *sizes, tuple(tensors))


def _main(net: Table, state: State) -> tuple[int, int, list[Tensor | None]]:
    """→ the widths of input and logits, and all tensors."""
    ops, names = net["oplists"] or [], net["tensorName"] or []
    need(net["tensorNumber"] == len(names), f"{net['tensorNumber']} tensors, {len(names)} names")
    need(net["outputName"] == ["logits"], f"the outputs are {net['outputName']!r:.80}")
    need((net["preferForwardType"], net["usage"], net["sourceType"]) == (0, 0, 3), "its kind")
    need(len(ops) > 4, f"{len(ops)} ops")
    hidden_size = (declared(ops[0], "input_ids") or (0, 0, 0))[-1]
    need(0 < hidden_size <= _MAX_DIM, f"input_ids is {hidden_size} wide")
    inputs: Inputs = {
        "input_ids": ((-1, 1, hidden_size), Tensor((TOKENS, 1, hidden_size))),
        "attention_mask": ((1, 1, -1, -1), Tensor((), note=("mask",))),
        "position_ids": ((1, -1), Tensor((1, TOKENS), is_int=True, note=("positions",))),
        "logits_index": ((1,), Tensor((1,), is_int=True, note=("row",))),
    }
    tensors = _run(ops, names, inputs, state)
    for name in (*inputs, "logits"):
        need(names.count(name) == 1, f"{names.count(name)} tensors are called {name}")
    return hidden_size, _logits_width(tensors[names.index("logits")]), tensors


def _logits_width(logits: Tensor | None) -> int:
    need(logits is not None, "logits are not computed")
    assert logits is not None
    one, rows, width = logits.shape if len(logits.shape) == 3 else (0, 0, 0)
    plain = not logits.packed and not logits.is_int
    need(plain and one == 1 and isinstance(rows, str), f"logits are {logits}")
    assert isinstance(width, int)
    return width


def _expert(graph: Table, index: int, state: State) -> None:
    """The subgraph of one expert: [n, hidden] → [n, hidden]."""
    layer, expert, hidden = state.next_expert()
    name = expert_name(layer, expert)
    need(graph["name"] == name, f"it is called {graph['name']!r:.40}, not {name}")
    inputs: Inputs = {"x": ((-1, hidden), Tensor((ROUTED, hidden)))}
    tensors = _run(graph["nodes"] or [], graph["tensors"] or [], inputs, state)
    need(graph["inputs"] == (0,), f"its inputs are {graph['inputs']!r:.40}")
    outputs: tuple[int, ...] = graph["outputs"] or ()
    need(len(outputs) == 1 and 0 <= outputs[0] < len(tensors), f"outputs {outputs!r:.40}")
    need(tensors[outputs[0]] == Tensor((ROUTED, hidden)), "its output is of another shape")


def _run(
    ops: Sequence[Table],
    names: Sequence[str],
    inputs: Inputs,
    state: State,
) -> list[Tensor | None]:
    """The tensors that ops compute; the first ops are the inputs: name → dims as given, and so."""
    tensors: list[Tensor | None] = [None] * len(names)
    for number, op in enumerate(ops):
        try:
            made = _made(op, number, inputs, tensors, state)
            _store(op, made, names, tensors, number < len(inputs))
        except OpError as fault:
            raise OpError(f"op {number}, {op['name']!r:.80}: {fault}") from None
    return tensors


def _made(
    op: Table,
    number: int,
    inputs: Inputs,
    tensors: Sequence[Tensor | None],
    state: State,
) -> Sequence[Tensor]:
    kind = _NAMES.get(op["type"])
    if number < len(inputs):
        name = list(inputs)[number]
        dims, tensor = inputs[name]
        need(
            kind == "Input" and declared(op, name, tensor.is_int) == dims, f"it is no input {name}"
        )
        return [tensor]
    need(kind in RULES, f"it is of type {op['type']}")
    need(bool(op["main_type"]) == (op["main"] is not None), "its parameters are missing")
    given = []
    for index in op["inputIndexes"] or ():
        found = tensors[index] if 0 <= index < len(tensors) else None
        need(found is not None, f"tensor {index} is not computed before")
        assert found is not None
        given.append(found)
    assert kind is not None
    return RULES[kind](state, op, given)


def _store(
    op: Table,
    made: Sequence[Tensor],
    names: Sequence[str],
    tensors: list[Tensor | None],
    is_input: bool,
) -> None:
    places = op["outputIndexes"] or ()
    need(len(places) == len(made), f"it has {len(places)} outputs, not {len(made)}")
    for place, tensor in zip(places, made, strict=True):
        need(0 <= place < len(tensors), f"it writes tensor {place} of {len(tensors)}")
        need(tensors[place] is None, f"tensor {place} is written twice")
        need(not is_input or names[place] == op["name"], f"tensor {place} has another name")
        check_size(tensor)
        tensors[place] = tensor
