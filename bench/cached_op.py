"""One attention op of a model of one layer, over a cache that is filled with random rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from deepmnn import _core
from deepmnn.artifact.reader import Artifact
from deepmnn.backends.base import Batch
from deepmnn.backends.cpu.backend import CpuBackend
from deepmnn.backends.cpu.counts import Counts
from deepmnn.conversion.convert import convert
from deepmnn.graph.caches import CacheEntry, block_size, row_nbytes, window
from deepmnn.graph.call import Call
from deepmnn.graph.cost import Cost
from deepmnn.graph.signatures import SIGNATURES
from deepmnn.graph.workload import read_nbytes

KV_DTYPES = ("f32", "bf16", "int8")
CONFIG: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 1,
    "max_position_embeddings": 1 << 18,
}
"""What attention does not read."""


@dataclass(frozen=True)
class CachedOp:
    """A loaded model, and where its attention is.

    zone: the op's place in the program. weights_nbytes: what a step reads of the op's weights.
    """

    backend: CpuBackend
    zone: int
    weights_nbytes: int
    cost: Cost

    @staticmethod
    def of(
        name: str,
        config: Mapping[str, Any],
        folder: Path,
        quant: str = "w8",
        threads: int = 0,
        form: str = "auto",
    ) -> CachedOp:
        """Converts the model with random weights into folder / name, and loads it."""
        source, path = folder / f"{name}.json", folder / name
        source.write_text(json.dumps({**CONFIG, **config}))
        convert(source, path, quant, random_weights=True, report=False)
        backend, graph = CpuBackend(path, threads, mla_form=form), Artifact.open(path).graph()
        (node,) = (node for node in graph.nodes if node.op.endswith("attention"))
        ops = [each["op"] for each in backend.model.instructions]
        call = Call.of(graph, node)
        nbytes = read_nbytes(graph, node, call)["in_order"]
        return CachedOp(backend, ops.index(node.op), nbytes, SIGNATURES[node.op].cost(call))

    @property
    def entries(self) -> list[CacheEntry]:
        """Of the layer's cache, in order."""
        return list(self.backend.caches.values())

    def kept_nbytes(self, dtype: str) -> float:
        """Bytes of the cache that are kept for each token."""
        kept = (entry for entry in self.entries if not entry.window)
        return sum(row_nbytes(entry)[dtype] / entry.ratio for entry in kept)

    def recent_nbytes(self, dtype: str) -> int:
        """Bytes of the recent rows that a sequence needs at least, whatever its length."""
        return sum(entry.window * row_nbytes(entry)[dtype] for entry in self.entries)

    def seconds(self, context: int, tokens: int, dtype: str, rounds: int) -> float:
        """The median of the op's times in steps that end at this context."""
        cache, blocks = self._cache(context, tokens, dtype)
        positions = np.arange(context - tokens, context, dtype=np.int32)
        batch = Batch(
            ids=np.random.default_rng(0).integers(0, 64, tokens).astype(np.int32),
            positions=positions,
            sequence_starts=np.array([0, tokens], np.int32),
            context_lengths=np.array([context], np.int32),
            block_tables=np.arange(blocks, dtype=np.int32)[None],
            logit_rows=np.array([tokens - 1], np.int32),
        )
        times = []
        self.backend.step(cache, batch)
        for _ in range(rounds):
            self.backend.model.start_profile()
            self.backend.step(cache, batch)
            times.append(float(Counts.take(self.backend.model).seconds[self.zone]))
            self.backend.model.stop_profile()
        return median(times)

    def _cache(self, context: int, tokens: int, dtype: str) -> tuple[_core.KvCache, int]:
        """A cache of so many random rows and its blocks: the last ones have recent rows, too."""
        caches = self.backend.caches
        size = block_size(caches)
        blocks = -(-context // size)
        needed = -(-(window(caches) + tokens) // size) + 1
        recent = min(blocks, needed) if window(caches) else 0
        cache: Any = self.backend.new_cache(blocks, size, dtype, recent_blocks=recent)
        for place in range(recent):
            cache.place_recent(blocks - recent + place, place)
        for block, rows in enumerate(self._blocks(size, dtype, blocks, recent)):
            cache.write_block(block, rows)
        return cache, blocks

    def _blocks(
        self, size: int, dtype: str, blocks: int, recent: int
    ) -> Iterator[np.ndarray[Any, Any]]:
        """Random rows, a block at a time; recent rows only of the last blocks."""
        rng = np.random.default_rng(1)
        for block in range(blocks):
            parts = []
            for entry in self.entries:
                rows = size // entry.ratio
                if entry.window and block < blocks - recent:
                    parts.append(np.zeros(rows * row_nbytes(entry)[dtype], np.uint8))
                else:
                    kind = "f32" if entry.exact else dtype
                    parts.append(_random_rows(rng, rows, entry.width, kind))
            yield np.concatenate(parts)


def _random_rows(rng: np.random.Generator, rows: int, width: int, dtype: str) -> Any:
    """The bytes of normal numbers, as a cache of this type keeps them; width: fours of columns."""
    x: Any = rng.standard_normal((rows, width), np.float32)
    if dtype == "bf16":
        x = (x.view(np.uint32) >> 16).astype(np.uint16)
    elif dtype == "int8":
        scales = np.full((rows, -(-width // 64)), 1 / 40, np.float32)
        codes = np.rint(np.clip(x * 40, -127, 127)).astype(np.int8)
        x = np.concatenate([codes.view(np.uint8), scales.view(np.uint8)], axis=1)
    return np.ascontiguousarray(x).reshape(-1).view(np.uint8)
