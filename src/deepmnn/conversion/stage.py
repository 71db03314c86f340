"""A stage of a model, run by the CPU engine over many samples, whatever the size of the whole."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepmnn import _core
from deepmnn.artifact.manifest import PROGRAM
from deepmnn.backends.base import F32, I32
from deepmnn.backends.cpu.lower import WeightLocation, lower
from deepmnn.formats import U8, named
from deepmnn.graph.ir import Graph, Weight
from deepmnn.graph.passes.memory_plan import plan_memory
from deepmnn.graph.weights import TensorSource
from deepmnn.quant.store import store, store_codes
from deepmnn.source.source import Source

_SHARD = "stage.weights"
_BLOCK_SIZE = 64


class Stage:
    """Context manager: a stage (graph/stages.py) with its weights, in a temporary directory.

    Args:
        graph: the stage; weights have the formats in which it is to run.
        source: where their numbers come from; read once, one weight at a time.
        tokens: of a step, at most.
        directory: where to put its files.
    """

    def __init__(self, graph: Graph, source: TensorSource, tokens: int, directory: Path) -> None:
        self._graph = graph
        threads = _core.available_cores()
        with tempfile.TemporaryDirectory(dir=directory) as folder:  # mapped files outlive it
            locations, offset = {}, 0
            with open(Path(folder) / _SHARD, "wb") as shard:
                for name in dict.fromkeys(name for node in graph.nodes for name in node.weights):
                    weight = graph.weights[name]
                    data = _stored(weight, source, threads)
                    locations[name] = WeightLocation(0, offset, data.nbytes)
                    shard.write(data.data)
                    offset += data.nbytes
            program = lower(graph, plan_memory(graph, reuse=True), locations, [_SHARD])
            (Path(folder) / PROGRAM).write_bytes(program)
            self._model = _core.Model(folder)
        self._blocks = -(-tokens // _BLOCK_SIZE)
        self._cache = self._model.new_cache(self._blocks, _BLOCK_SIZE)

    @property
    def inputs(self) -> list[str]:
        """What `run` takes besides the samples."""
        return [name for name in self._graph.inputs if self._graph.values[name].dtype == "f32"]

    def run(self, samples: Sequence[I32], inputs: Mapping[str, F32]) -> dict[str, NDArray[Any]]:
        """Every output of the stage, [tokens of all samples, width] each.

        Args:
            samples: token ids; each is a sequence of its own, from its first position on.
            inputs: the values that earlier stages gave, for the same samples.
        """
        lengths = [len(sample) for sample in samples]
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        tables = np.full((len(samples), -(-max(lengths) // _BLOCK_SIZE)), -1, np.int32)
        first = 0
        for table, length in zip(tables, lengths, strict=True):
            blocks = -(-length // _BLOCK_SIZE)
            table[:blocks] = np.arange(first, first + blocks)
            first += blocks
        if first > self._blocks:  # samples do not share blocks: short ones take more than tokens
            self._blocks, self._cache = first, self._model.new_cache(first, _BLOCK_SIZE)
        return self._model.run(
            self._cache,
            np.concatenate(samples).astype(np.int32),
            np.concatenate([np.arange(length) for length in lengths]).astype(np.int32),
            starts,
            np.array(lengths, np.int32),
            tables,
            np.arange(starts[-1], dtype=np.int32),
            dict(inputs),
        )


def _stored(weight: Weight, source: TensorSource, threads: int) -> U8:
    """A weight's bytes: codes that are kept, or rounded numbers."""
    is_kept = named(weight.format).is_kept
    codes = weight.expr.codes(source) if is_kept and isinstance(source, Source) else None
    if codes is not None:
        return store_codes(weight, codes, threads)
    return store(weight, weight.expr.read(source), threads)
