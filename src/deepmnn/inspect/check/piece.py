"""A few nodes of a model as a model of their own, run by the CPU engine on inputs of our choice.

A check does not believe what a node says of itself: it gives numbers to it, and looks at what comes
out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepmnn import _core
from deepmnn.artifact.manifest import PROGRAM
from deepmnn.backends.cpu.lower import lower
from deepmnn.backends.cpu.pieces import Pieces
from deepmnn.formats import F32
from deepmnn.graph.caches import block_size
from deepmnn.graph.ir import Graph
from deepmnn.graph.passes.memory_plan import plan_memory
from deepmnn.graph.stages import subgraph

Place = Callable[[Graph, Path], tuple[Mapping[str, Pieces], Sequence[str]]]
"""Puts the weight files of a graph into a directory; where each weight lies, and their names."""


def region(graph: Graph, outputs: Sequence[str], begins: Collection[str] = ()) -> Graph:
    """The nodes between some values, which become inputs, and the outputs."""
    needed, kept = set(outputs), []
    for node in reversed(graph.nodes):
        if needed.intersection(node.outputs).difference(begins):
            kept.append(node)
            needed.update(name for name in node.inputs if name not in begins)
    return subgraph(graph, kept[::-1], outputs)


class Piece:
    """A part of a graph that runs.

    Args:
        graph: of `region`.
        place: where its weights come from.
        mla_form: how latent attention computes: "auto", "absorbed" or "expanded".

    Attributes:
        graph: the same.
    """

    def __init__(self, graph: Graph, place: Place, mla_form: str = "auto") -> None:
        self.graph = graph
        with tempfile.TemporaryDirectory(prefix="deepmnn-check-") as folder:  # mapped files outlive
            locations, shards = place(graph, Path(folder))
            program = lower(graph, plan_memory(graph, reuse=False), locations, shards)
            (Path(folder) / PROGRAM).write_bytes(program)
            self._model = _core.Model(folder, 1)
        self._model.set_mla_form(mla_form)

    def run(
        self, inputs: Mapping[str, F32], sequences: Sequence[Sequence[int]] | None = None
    ) -> dict[str, NDArray[Any]]:
        """Every output, by name.

        Args:
            inputs: [rows, width] of each input but ids and positions; one that is missing is zero.
            sequences: the positions of the tokens of each; None: each row is one, at position 0.
        """
        if sequences is None:
            sequences = [[0]] * len(next(iter(inputs.values())))
        lengths = np.array([len(positions) for positions in sequences], np.int32)
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        size, rows = block_size(self.graph.caches, int(lengths.max())), int(starts[-1])
        wanted = [name for name in self.graph.inputs if self.graph.values[name].dtype == "f32"]
        given = {name: inputs.get(name) for name in wanted}
        return self._model.run(
            self._model.new_cache(len(lengths), size),
            np.zeros(rows, np.int32),
            np.concatenate([np.asarray(positions) for positions in sequences]).astype(np.int32),
            starts,
            lengths,
            np.arange(len(lengths), dtype=np.int32)[:, None],
            np.arange(rows, dtype=np.int32),
            {
                name: np.zeros((rows, self.graph.values[name].width), np.float32)
                if value is None
                else np.ascontiguousarray(value, np.float32)
                for name, value in given.items()
            },
        )
