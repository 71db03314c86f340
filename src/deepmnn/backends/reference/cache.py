"""A paged KV cache in numpy."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import ml_dtypes
import numpy as np

from deepmnn.backends.base import F32, U8, Batch
from deepmnn.errors import RequestError
from deepmnn.formats import PART_COLS
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
    """For each cache entry an array [blocks, block_size, width], zero until written."""

    def __init__(self, widths: Mapping[str, int], blocks: int, block_size: int, dtype: str) -> None:
        if dtype not in _DTYPES:
            raise RequestError(f"cache dtype is {dtype!r}", f"one of {', '.join(_DTYPES)}")
        if blocks < 1 or block_size < 1:
            raise RequestError(f"cache of {blocks} blocks of {block_size} rows", "positive sizes")
        self.blocks, self.block_size, self.dtype = blocks, block_size, dtype
        self.entries = {
            name: np.zeros((blocks, block_size, width), _DTYPES[dtype])
            for name, width in widths.items()
        }
        self.block_nbytes = sum(entry[0].nbytes for entry in self.entries.values())

    def copy_block(self, source: int, target: int) -> None:
        """Copies one block of every entry."""
        for block in (source, target):
            self._check(block)
        for entry in self.entries.values():
            entry[target] = entry[source]

    def read_block(self, block: int, rows: U8) -> None:
        """Puts one block of every entry into rows [block_nbytes]."""
        self._check(block)
        parts = [entry[block].reshape(-1).view(np.uint8) for entry in self.entries.values()]
        np.concatenate(parts, out=rows)

    def write_block(self, block: int, rows: U8) -> None:
        """Puts back what `read_block` gave."""
        self._check(block)
        start = 0
        for entry in self.entries.values():
            target = entry[block].reshape(-1).view(np.uint8)
            target[:] = rows[start : start + target.size]
            start += target.size

    def _check(self, block: int) -> None:
        if not 0 <= block < self.blocks:
            raise RequestError(f"cache block {block}", f"a block below {self.blocks}")

    def append(self, name: str, x: F32, batch: Batch, head: Sequence[int]) -> F32:
        """Writes the step's rows [tokens, width]; → all the sequences see, [context, width].

        head: columns of the parts of one head; a row has one head or more.
        """
        entry = self.entries[name].reshape(-1, x.shape[1])
        if self.dtype == "int8":
            x = unrotate_heads(int8_round_trip(rotate_heads(x, head)), head)
        seen = []
        for sequence, tokens in enumerate(token_ranges(batch)):
            length = int(batch.context_lengths[sequence])
            rows = np.arange(length)
            table = batch.block_tables[sequence]
            slots = table[rows // self.block_size] * self.block_size + rows % self.block_size
            entry[slots[length - (tokens.stop - tokens.start) :]] = x[tokens]
            seen.append(entry[slots].astype(np.float32))
        return np.concatenate(seen)

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
