"""Weight files: which weight lies in which, and where."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from deepmnn.artifact.manifest import FORMAT
from deepmnn.backends.cpu.pieces import PAGE, Pieces, whole
from deepmnn.formats import ALIGNMENT, round_up

MAX_SHARD_BYTES = 2 << 30
"""A shard ends at a layer's border before this size, or inside a layer that is larger."""

PAGED_NBYTES = 64 << 10
"""A weight of so many bytes begins with a page of the file: it is read without its neighbours, and
may have pieces.
"""

PADDING = "padding."
"""What the names of tensors begin with that fill the bytes before a page."""

_Entries = Sequence[tuple[str, int, int]]
"""Names, begins and ends of tensors, in bytes after the header."""


class Layout:
    """Where weights lie in a file that is filled in order.

    Args:
        begin: of the first one, in bytes of the file.
    """

    def __init__(self, begin: int) -> None:
        self.begin = self.end = begin
        self.entries: list[tuple[str, int, int]] = []

    def next(self, nbytes: int) -> int:
        """Where in the file a weight of that size would begin."""
        return round_up(self.end, PAGE) if nbytes >= PAGED_NBYTES else self.end

    def add(self, name: str, begin: int, nbytes: int) -> int:
        """Puts bytes there; returns how many before them are padding."""
        padding = begin - self.end
        if padding:
            self._append(f"{PADDING}{len(self.entries)}", self.end, padding)
        self._append(name, begin, nbytes)
        return padding

    def _append(self, name: str, begin: int, nbytes: int) -> None:
        self.end = begin + nbytes
        self.entries.append((name, begin - self.begin, self.end - self.begin))


@dataclass
class Shard:
    """A weight file to be: its weights (name, bytes) in order."""

    file: str
    weights: list[tuple[str, int]] = field(default_factory=list)

    @property
    def header_nbytes(self) -> int:
        """Room for the header, whatever of its weights is stored elsewhere: then there are fewer
        entries, or lower numbers in them.
        """
        bound, end = [], 0
        longest = 10 ** len(str(2 * len(self.weights)))  # no number of a tensor has as many digits
        for number, (name, nbytes) in enumerate(self.weights):
            if nbytes >= PAGED_NBYTES:
                bound.append((f"{PADDING}{longest + number}", end, end + PAGE))
                end += PAGE
            bound.append((name, end, end + nbytes))
            end += nbytes
        paged = any(nbytes >= PAGED_NBYTES for _, nbytes in self.weights)
        return round_up(8 + len(_json(bound)), PAGE if paged else ALIGNMENT)

    def planned(self) -> Layout:
        """Where its weights lie when nothing of them is stored elsewhere."""
        layout = Layout(self.header_nbytes)
        for name, nbytes in self.weights:
            layout.add(name, layout.next(nbytes), nbytes)
        return layout


def header(layout: Layout) -> bytes:
    """The length and the JSON of safetensors, padded with spaces up to the first weight."""
    text = _json(layout.entries)
    text += b" " * (layout.begin - 8 - len(text))
    return len(text).to_bytes(8, "little") + text


def plan_shards(
    weights: Iterable[tuple[str, int]], max_shard_bytes: int = MAX_SHARD_BYTES
) -> list[Shard]:
    """Distributes weights (name, bytes), in order, over shards: whole layers while they fit, else
    whole experts, which are read in one piece.
    """
    shards: list[list[tuple[str, int]]] = [[]]
    filled = 0
    for unit in _units(weights, max_shard_bytes):
        size = sum(nbytes for _, nbytes in unit)
        if filled and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1] += unit
        filled += size
    used = [items for items in shards if items]
    return [
        Shard(f"model-{index:05}-of-{len(used):05}.safetensors", items)
        for index, items in enumerate(used, 1)
    ]


def locate(shards: Sequence[Shard]) -> dict[str, Pieces]:
    """Weight → where it lies when nothing of it is stored elsewhere."""
    locations: dict[str, Pieces] = {}
    for index, shard in enumerate(shards):
        layout = shard.planned()
        begins = {name: layout.begin + begin for name, begin, _ in layout.entries}
        for name, nbytes in shard.weights:
            locations[name] = whole(index, begins[name], nbytes)
    return locations


def _units(
    weights: Iterable[tuple[str, int]], max_shard_bytes: int
) -> Iterator[list[tuple[str, int]]]:
    """What is not to be cut: layers, or the experts and other weights of those that are larger than
    a shard.
    """
    for _, items in groupby(weights, key=lambda item: _layer(item[0])):
        layer = list(items)
        if sum(nbytes for _, nbytes in layer) <= max_shard_bytes:
            yield layer
            continue
        for _, unit in groupby(layer, key=lambda item: expert_of(item[0]) or item[0]):
            yield list(unit)


def expert_of(name: str) -> str:
    """The expert that a weight is of: what all its weights' names begin with; "" for others."""
    match = re.match(r".*\.experts\.\d+\.", name)
    return match[0] if match else ""


def _layer(name: str) -> str:
    """The layer a weight belongs to, "" for the embedding and the head."""
    match = re.search(r"(?:^|\.)layers\.(\d+)\.", name)
    return match[1] if match else ""


def _json(entries: _Entries) -> bytes:
    tensors: dict[str, Any] = {"__metadata__": {"format": FORMAT}}
    for name, begin, end in entries:
        tensors[name] = {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}
    return json.dumps(tensors, separators=(",", ":")).encode()
