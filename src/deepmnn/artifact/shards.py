"""Weight files: which weight lies in which, and where."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from deepmnn.artifact.manifest import FORMAT
from deepmnn.backends.cpu.lower import WeightLocation
from deepmnn.formats import ALIGNMENT

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


def plan_shards(
    weights: Iterable[tuple[str, int]], max_shard_bytes: int = MAX_SHARD_BYTES
) -> list[Shard]:
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


def locate(shards: Sequence[Shard]) -> dict[str, WeightLocation]:
    """Weight → where it lies."""
    locations: dict[str, WeightLocation] = {}
    for index, shard in enumerate(shards):
        position = len(shard.header())
        for name, nbytes in shard.weights:
            locations[name] = WeightLocation(index, position, nbytes)
            position += nbytes
    return locations


def _layer(name: str) -> str:
    """The layer a weight belongs to, "" for the embedding and the head."""
    match = re.search(r"(?:^|\.)layers\.(\d+)\.", name)
    return match[1] if match else ""
