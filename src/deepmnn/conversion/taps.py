"""What the matrices of a stage multiply, and in which order they are rounded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepmnn.formats import F32
from deepmnn.graph.ir import Graph, Node
from deepmnn.graph.signatures import SIGNATURES
from deepmnn.graph.tensors import tensors


@dataclass(frozen=True)
class Tap:
    """What a matrix multiplies: rows of a value, with `expert` those that chose it.

    Attributes:
        per_choice: the value has a row for each choice.
        sum: the value that the product is added up into, with the residual stream; None where it
            is not.
    """

    value: str
    indices: str | None = None
    expert: int = 0
    per_choice: bool = False
    sum: str | None = None

    @property
    def read(self) -> list[str]:
        """The names of all the values that it needs."""
        return [name for name in (self.value, self.indices, self.sum) if name is not None]

    def rows(self, outputs: Mapping[str, NDArray[Any]]) -> F32:
        """Of the values of some samples."""
        x: F32 = outputs[self.value]
        if self.indices is None:
            return x
        chosen = outputs[self.indices] == self.expert
        if self.per_choice:
            return np.asarray(x.reshape(chosen.size, -1)[chosen.reshape(-1)])
        return np.asarray(x[chosen.any(axis=1)])


def find_taps(graph: Graph) -> dict[str, Tap]:
    """Checkpoint tensor → what it multiplies, of every matrix that multiplies an input."""
    found: dict[str, Tap] = {}
    consumers = graph.consumers()
    for node in graph.nodes:
        shapes = [graph.weights[name].shape for name in node.weights]
        readings = SIGNATURES[node.op].readings(shapes)
        for index, (name, reading) in enumerate(zip(node.weights, readings, strict=True)):
            if reading == "routed":
                per_choice = bool(node.attrs["per_choice"])
                tap = Tap(node.inputs[0], node.inputs[1], index, per_choice)
            elif reading == "in_order":
                if graph.weights[name].shape[-1] != graph.values[node.inputs[0]].width:
                    continue  # each part of it multiplies a part of the row
                additions = _additions(node, consumers)
                tap = Tap(node.inputs[0], sum=additions[-1].outputs[0] if additions else None)
            else:
                continue
            for tensor in tensors(graph.weights[name].expr):
                found[tensor.name] = tap
    return found


def steps(stage: Graph, targets: Mapping[str, Tap]) -> dict[str, int]:
    """Tensor → the step in which it is rounded, of the targets, whose taps the stage has.

    A step comes after those that its inputs depend on, and after those of what its products are
    added to: a matrix can make up for what earlier ones got wrong.
    """
    found: dict[str, int] = {}
    ready: dict[str, int] = {}  # value → the first step that can have it from rounded matrices
    consumers = stage.consumers()
    for node in stage.nodes:
        terms = [name for addition in _additions(node, consumers) for name in addition.inputs]
        step = max((ready.get(name, 0) for name in (*node.inputs, *terms)), default=0)
        held = [tensor for tensor in read_by(stage, node) if tensor in targets]
        found.update(dict.fromkeys(held, step))
        ready.update(dict.fromkeys(node.outputs, step + bool(held)))
    return {name: found.get(name, ready[tap.value]) for name, tap in targets.items()}


def read_by(stage: Graph, node: Node) -> list[str]:
    """The tensors that a node's weights are made of."""
    return [t.name for name in node.weights for t in tensors(stage.weights[name].expr)]


def _additions(node: Node, consumers: Mapping[str, list[Node]]) -> list[Node]:
    """The chain of sums that a matrix's product goes into, and nowhere else."""
    found: list[Node] = []
    if node.op != "linear" or len(node.outputs) > 1:
        return found
    readers = consumers[node.outputs[0]]
    while len(readers) == 1 and readers[0].op == "add":
        found.append(readers[0])
        readers = consumers[readers[0].outputs[0]]
    return found
