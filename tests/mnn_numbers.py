"""What an exported model holds, for oracles: the artifact's numbers, rounded to MNN's blocks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from deepmnn.artifact.reader import Artifact
from deepmnn.backends.base import F32
from deepmnn.backends.reference import ReferenceBackend
from deepmnn.exporters.mnn.weights import LEAST_BLOCK, Storing
from deepmnn.quant.blocks import round_blocks
from deepmnn.quant.store import stored_values
from parity import run_schedule

TABLE = "the embedding table"


class Given:
    """The reference backend on what MNN is given, by `export` with the same arguments.

    Rows that no block of 32 columns divides are floats as a matrix, and codes in smaller blocks as
    a table, so that a head tied to its embedding may have other numbers.
    """

    def __init__(self, path: Path, block_size: int | None = None, bits: int | None = None) -> None:
        self._artifact, self._storing = Artifact.open(path), Storing(bits=bits, block=block_size)
        graph = self._artifact.graph().copy()
        for node in graph.nodes:
            if node.op == "embedding":
                self._table = graph.weights[node.weights[0]]
                graph.weights[TABLE] = replace(self._table, name=TABLE)
                node.weights = (TABLE,)
        read = {name for node in graph.nodes for name in node.weights}
        self._tied = self._table.name in read
        graph.weights = {n: weight for n, weight in graph.weights.items() if n in read}
        self.backend = ReferenceBackend(graph, self.read)

    def read(self, name: str) -> F32:
        table = name == TABLE
        weight = self._table if table else self._artifact.graph().weights[name]
        values = stored_values(weight, self._artifact.tensor(weight.name))
        bits = self._storing.bits_of(weight)
        if not bits:
            return values
        size = self._storing.block_size(weight)
        if size < LEAST_BLOCK and not table:
            return values
        codes, scales = round_blocks(values, size, bits)
        return codes * np.repeat(scales.astype(np.float32), size, axis=1)

    def logits(self, ids: list[int]) -> F32:
        return run_schedule(self.backend, [ids], [(len(ids),)])[0]
