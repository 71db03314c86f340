"""Writes an artifact: weights streamed into shards, one after another."""

from __future__ import annotations

import json
import os
import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from types import TracebackType
from typing import Any

from deepmnn.artifact.directory import DirectoryWriter, Sink
from deepmnn.artifact.manifest import FORMAT, FORMAT_VERSION, ShardRecord
from deepmnn.backends.cpu.lower import WeightLocation
from deepmnn.errors import ArtifactError
from deepmnn.formats import ALIGNMENT, U8

MAX_SHARD_BYTES = 2 << 30
"""A shard ends at a layer's border before this size, or inside a layer that is larger."""


@dataclass
class Shard:
    """A weight file to be: its weights (name, bytes) in order, and its safetensors header."""

    file: str
    weights: list[tuple[str, int]] = field(default_factory=list)

    def header(self) -> bytes:
        """Length prefix and JSON header, padded with spaces so that the data is 64-byte aligned."""
        tensors: dict[str, Any] = {"__metadata__": {"format": FORMAT}}
        position = 0
        for name, nbytes in self.weights:
            offsets = [position, position + nbytes]
            tensors[name] = {"dtype": "U8", "shape": [nbytes], "data_offsets": offsets}
            position += nbytes
        text = json.dumps(tensors, separators=(",", ":")).encode()
        text += b" " * (-(len(text) + 8) % ALIGNMENT)
        return len(text).to_bytes(8, "little") + text


class ArtifactWriter(DirectoryWriter):
    """Context manager: `plan_weights`, then `write_weight` in order, `add_file`, `commit`."""

    def __init__(self, target: str | os.PathLike[str], overwrite: bool = False) -> None:
        super().__init__(target, overwrite)
        self._shards: list[Shard] = []
        self._queue: deque[tuple[int, str, int]] = deque()
        self._sink: Sink | None = None
        self._shard_records: list[ShardRecord] = []

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._sink is not None:
            self._sink.abandon()
        super().__exit__(kind, value, trace)

    @property
    def shard_names(self) -> list[str]:
        """File names of the weight shards, in the order that locations count them."""
        return [shard.file for shard in self._shards]

    def plan_weights(
        self, weights: Sequence[tuple[str, int]], max_shard_bytes: int = MAX_SHARD_BYTES
    ) -> dict[str, WeightLocation]:
        """Decides where every weight (name, bytes) will lie; they must then be written in order.

        Raises StorageError when the disk has not enough room for them.
        """
        self.check_space(sum(nbytes for _, nbytes in weights))
        self._shards = plan_shards(weights, max_shard_bytes)
        locations: dict[str, WeightLocation] = {}
        for index, shard in enumerate(self._shards):
            position = len(shard.header())
            for name, nbytes in shard.weights:
                self._queue.append((index, name, nbytes))
                locations[name] = WeightLocation(index, position, nbytes)
                position += nbytes
        return locations

    def write_weight(self, name: str, data: U8) -> None:
        """Appends the next planned weight. Raises StorageError."""
        planned = self._queue.popleft() if self._queue else None
        if planned is None or planned[1:] != (name, data.nbytes):
            raise ArtifactError(f"weight {name!r} of {data.nbytes} bytes", f"{planned} is next")
        index = planned[0]
        if index == len(self._shard_records) + (self._sink is not None):
            self._finish_shard()
            self._sink = self.open(self._shards[index].file)
            self._sink.write(self._shards[index].header())
        if self._sink is not None:
            self._sink.write(data.data)

    def commit(self, description: Mapping[str, Any]) -> None:
        """Writes the manifest (`description` plus versions and file tables) and renames.

        Raises StorageError.
        """
        self._finish_shard()
        if self._queue:
            raise ArtifactError(f"weight {self._queue[0][1]!r} was planned and not written")
        version = {"format": FORMAT, "format_version": FORMAT_VERSION}
        super().commit({**version, **description, "shards": self._shard_records})

    def _finish_shard(self) -> None:
        if self._sink is not None:
            record = self._sink.finish()
            file = self._shards[len(self._shard_records)].file
            self._shard_records.append({"file": file, **record})
            self._sink = None


def plan_shards(weights: Sequence[tuple[str, int]], max_shard_bytes: int) -> list[Shard]:
    """Distributes weights (name, bytes), in order, over shards; whole layers while they fit."""
    shards: list[list[tuple[str, int]]] = [[]]
    filled = 0
    for _, items in groupby(weights, key=lambda item: _layer(item[0])):
        layer = list(items)
        fits = sum(nbytes for _, nbytes in layer) <= max_shard_bytes
        for piece in [layer] if fits else [[item] for item in layer]:
            size = sum(nbytes for _, nbytes in piece)
            if filled and filled + size > max_shard_bytes:
                shards.append([])
                filled = 0
            shards[-1] += piece
            filled += size
    used = [items for items in shards if items]
    return [
        Shard(f"model-{index:05}-of-{len(used):05}.safetensors", items)
        for index, items in enumerate(used, 1)
    ]


def _layer(name: str) -> str:
    """The layer a weight belongs to, "" for the embedding and the head."""
    match = re.search(r"(?:^|\.)layers\.(\d+)\.", name)
    return match[1] if match else ""
