"""A paged KV cache in numpy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from deepmnn.backends.base import F32, I32, U8, Batch
from deepmnn.errors import RequestError
from deepmnn.formats import PART_COLS
from deepmnn.graph.caches import CacheEntry, block_multiple, window
from deepmnn.quant.rotation import rotate, unrotate

_DTYPES = {
    "f32": np.dtype(np.float32),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "int8": np.dtype(np.float32),  # what the codes stand for
}

INT8_GROUP = 64
"""Columns of an int8 row that share a scale."""


def rotate_heads(x: F32, head: Sequence[int]) -> F32:
    """x [n, any number of heads] rotated as int8 rows are (docs/layouts.md).

    head: columns of the parts of one head; each part is rotated by itself.
    """
    heads = np.array(x, np.float32).reshape(-1, sum(head))
    for block in _blocks(head):
        heads[:, block] = rotate(heads[:, block])
    return heads.reshape(x.shape)


def unrotate_heads(x: F32, head: Sequence[int]) -> F32:
    """What `rotate_heads` makes of x, rotated back."""
    heads = np.array(x, np.float32).reshape(-1, sum(head))
    for block in reversed(_blocks(head)):
        heads[:, block] = unrotate(heads[:, block])
    return heads.reshape(x.shape)


def _blocks(head: Sequence[int]) -> list[slice]:
    """The columns that are rotated together, in order.

    Where whole blocks do not fill a part, the last one lies over the one before.
    """
    blocks = []
    for end, d in zip(itertools.accumulate(head), head, strict=True):
        width = INT8_GROUP if d % INT8_GROUP == 0 else PART_COLS
        starts = list(range(end - d, end - width + 1, width))
        if d > width and d % width:
            starts.append(end - width)
        blocks += [slice(start, start + width) for start in starts]
    return blocks


def int8_round_trip(x: F32, column: int = 0) -> F32:
    """x [..., width] as int8 codes give it back: code · scale, scale = max|x| / 127 of a group.

    Groups are those of a cache's row in which x begins at `column`.
    """
    y = np.empty_like(x)
    for start in range(-(column % INT8_GROUP), x.shape[-1], INT8_GROUP):
        part = slice(max(start, 0), start + INT8_GROUP)
        group = x[..., part]
        scale = np.abs(group).max(axis=-1, keepdims=True) / np.float32(127)
        usable = scale >= np.finfo(np.float32).tiny  # as the core's quantize_rows
        codes = np.rint(group * np.where(usable, 1 / np.where(usable, scale, 1), 0))
        y[..., part] = codes * scale
    return y


class PagedCache:
    """For each cache entry an array [blocks, rows of a block, width], zero until written; of recent
    entries one [recent_blocks, block_size, width]. recents: [blocks] where a block's recent rows
    lie, -1: nowhere.
    """

    def __init__(
        self,
        caches: Mapping[str, CacheEntry],
        blocks: int,
        block_size: int,
        dtype: str,
        recent_blocks: int | None = None,
    ) -> None:
        if dtype not in _DTYPES:
            raise RequestError(f"cache dtype is {dtype!r}", f"one of {', '.join(_DTYPES)}")
        if blocks < 1 or block_size < 1:
            raise RequestError(f"cache of {blocks} blocks of {block_size} rows", "positive sizes")
        if block_size % block_multiple(caches):
            expected = f"a multiple of {block_multiple(caches)}, for whole rows of every entry"
            raise RequestError(f"a cache block size of {block_size}", expected)
        places = blocks if recent_blocks is None else recent_blocks
        if not 0 <= places <= blocks:
            raise RequestError(f"{places} places for recent rows", f"0 to {blocks}, one a block")
        self.blocks, self.block_size, self.dtype, self.caches = blocks, block_size, dtype, caches
        self.recent_blocks = places if window(caches) else 0
        self.recents = np.arange(blocks) if places == blocks else np.full(blocks, -1)
        self.entries = {
            name: np.zeros(
                (places if entry.window else blocks, block_size // entry.ratio, entry.width),
                _DTYPES["f32" if entry.exact else dtype],
            )
            for name, entry in caches.items()
        }
        self.block_nbytes = sum(
            entry.itemsize * math.prod(entry.shape[1:]) for entry in self.entries.values()
        )

    def place_recent(self, block: int, place: int) -> None:
        """Gives a block a place for its recent rows, and takes it from who had it; -1: none."""
        self._check(block)
        if not -1 <= place < self.recent_blocks:
            raise RequestError(f"place {place} for recent rows", f"below {self.recent_blocks}")
        if place >= 0:
            self.recents[self.recents == place] = -1
        self.recents[block] = place

    def copy_block(self, source: int, target: int) -> None:
        """Copies one block of every entry, recent rows where both have a place."""
        for block in (source, target):
            self._check(block)
        for name in self.entries:
            rows, copy = self._rows(name, source), self._rows(name, target)
            if rows is not None and copy is not None:
                copy[:] = rows

    def read_block(self, block: int, rows: U8) -> None:
        """Puts one block of every entry into rows [block_nbytes]; recent rows may be zeros."""
        self._check(block)
        parts = []
        for name, entry in self.entries.items():
            found = self._rows(name, block)
            found = np.zeros(entry.shape[1:], entry.dtype) if found is None else found
            parts.append(found.reshape(-1).view(np.uint8))
        np.concatenate(parts, out=rows)

    def write_block(self, block: int, rows: U8) -> None:
        """Puts back what `read_block` gave."""
        self._check(block)
        start = 0
        for name, entry in self.entries.items():
            nbytes = entry.itemsize * math.prod(entry.shape[1:])
            found = self._rows(name, block)
            if found is not None:
                found.reshape(-1).view(np.uint8)[:] = rows[start : start + nbytes]
            start += nbytes

    def _rows(self, name: str, block: int) -> NDArray[Any] | None:
        """A block's rows of an entry; None: recent ones that have no place."""
        at = int(self.recents[block]) if self.caches[name].window else block
        rows: NDArray[Any] | None = None if at < 0 else self.entries[name][at]
        return rows

    def _check(self, block: int) -> None:
        if not 0 <= block < self.blocks:
            raise RequestError(f"cache block {block}", f"a block below {self.blocks}")

    def _slots(self, name: str, table: I32, first: int, stop: int) -> NDArray[np.int64]:
        """Where rows first to stop of an entry lie among all of it, by the blocks of a sequence."""
        size, rows = self.block_size // self.caches[name].ratio, np.arange(first, stop)
        blocks = table[rows // size]
        places = self.recents[blocks] if self.caches[name].window else blocks
        if (places < 0).any():
            raise RequestError(f"recent rows of {name!r:.80} that are gone", "the last rows only")
        return np.asarray(places * size + rows % size, np.int64)

    def read(self, name: str, table: I32, first: int, stop: int) -> F32:
        """Rows first to stop of an entry, [stop - first, width].

        table: the sequence's blocks. A row is a token's, or that of `ratio` tokens.
        """
        entry = self.entries[name]
        flat = entry.reshape(-1, entry.shape[2])
        return flat[self._slots(name, table, first, stop)].astype(np.float32)

    def write(self, name: str, table: I32, first: int, x: F32, head: Sequence[int] = ()) -> None:
        """Writes rows from `first` on. head: as of `append`; rows of exact entries have none."""
        entry = self.entries[name]
        flat = entry.reshape(-1, entry.shape[2])
        rounded = x if self.caches[name].exact else self._rounded(x, head)
        flat[self._slots(name, table, first, first + len(x))] = rounded

    def append(self, name: str, x: F32, batch: Batch, head: Sequence[int]) -> F32:
        """Writes the step's rows [tokens, width]; → all the sequences see, [context, width].

        head: columns of the parts of one head; a row has one head or more.
        """
        seen = []
        for sequence, tokens in enumerate(token_ranges(batch)):
            length = int(batch.context_lengths[sequence])
            table, new = batch.block_tables[sequence], tokens.stop - tokens.start
            self.write(name, table, length - new, x[tokens], head)
            seen.append(self.read(name, table, 0, length))
        return np.concatenate(seen)

    def _rounded(self, x: F32, head: Sequence[int]) -> F32:
        if self.dtype != "int8":
            return x
        return unrotate_heads(int8_round_trip(rotate_heads(x, head)), head)

    def round_queries(self, q: F32, heads: int, kv_heads: int, head: Sequence[int]) -> F32:
        """Queries [tokens, heads · d] as they are multiplied with rows [kv_heads · d]."""
        if self.dtype != "int8":
            return q
        group, size = heads // kv_heads, q.shape[1] // heads
        parts = rotate_heads(q, head).reshape(len(q), kv_heads, group, size)
        codes = [int8_round_trip(parts[:, i], i * size) for i in range(kv_heads)]
        return unrotate_heads(np.stack(codes, axis=1).reshape(q.shape), head)


def token_ranges(batch: Batch) -> Iterator[slice]:
    """Each sequence's own tokens."""
    starts = [int(start) for start in batch.sequence_starts]
    return (slice(start, stop) for start, stop in itertools.pairwise(starts))
