"""What an exported model holds, for oracles: the artifact's numbers, rounded to MNN's blocks."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from deepmnn.artifact.reader import Artifact
from deepmnn.backends.base import F32
from deepmnn.backends.reference import ReferenceBackend
from deepmnn.exporters.mnn.blocks import round_blocks
from deepmnn.exporters.mnn.weights import BLOCK, LEAST_BLOCK, code_bits
from deepmnn.formats import named
from deepmnn.quant.store import stored_values
from parity import run_schedule


class Given:
    """The reference backend on what MNN is given, blocks of `block_size` columns (None: as the
    exporter chooses).

    Of other widths a table's blocks are smaller, but matrices are floats: a table that is also a
    matrix has two values then, and here the matrix's.
    """

    def __init__(self, path: Path, block_size: int | None = None) -> None:
        self.artifact, self._block = Artifact.open(path), block_size
        graph = self.artifact.graph()
        tables = {node.weights[0] for node in graph.nodes if node.op == "embedding"}
        matrices = {w for node in graph.nodes if node.op != "embedding" for w in node.weights}
        self._tables = tables - matrices
        self.backend = ReferenceBackend(graph, self.read)

    def read(self, name: str) -> F32:
        weight = self.artifact.graph().weights[name]
        values = stored_values(weight, self.artifact.tensor(name))
        if not named(weight.format).is_quantized:
            return values
        bits = code_bits(weight)
        wanted = None if name in self._tables else self._block
        size = math.gcd(weight.shape[1], wanted or BLOCK[bits])
        if size < LEAST_BLOCK and name not in self._tables:
            return values
        codes, scales = round_blocks(values, size, bits)
        return codes * np.repeat(scales.astype(np.float32), size, axis=1)

    def logits(self, ids: list[int]) -> F32:
        return run_schedule(self.backend, [ids], [(len(ids),)])[0]
