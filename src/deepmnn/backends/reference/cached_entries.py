"""Compressed attention over a cache that keeps a window of rows and one row for many tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deepmnn.backends.base import F32, I32, Batch
from deepmnn.backends.reference import compressed
from deepmnn.backends.reference import numerics as nx
from deepmnn.backends.reference.cache import PagedCache, token_ranges

Inputs = Sequence[Any]
"""A node's inputs, or its weights, in the order of docs/ops.md."""


@dataclass(frozen=True)
class _Part:
    """One compressor: its columns, and the attributes that name its cache entries."""

    kv: F32
    gate: F32
    bias: F32
    norm: F32
    rows: str
    entries: str


@dataclass(frozen=True)
class CachedEntries:
    """A node of one of the three attentions. a: its attributes."""

    a: Mapping[str, Any]
    cache: PagedCache
    batch: Batch

    def attend(self, x: Inputs, w: Inputs) -> F32:
        """x, w: as docs/ops.md lists them. → [tokens, heads · head_dim]."""
        a, d = self.a, self.a["head_dim"]
        positions = x[-1]
        q = nx.rms_norm(x[0], None, a["eps"], a["heads"])
        q = self._rope(q, positions, a["heads"])
        kv = self._rope(nx.rms_norm(x[1], w[0], a["eps"]), positions, 1)
        parts = []
        if len(x) > 3:
            parts.append(_Part(x[2], x[3], w[2], w[3], a["rows"], a["entries"]))
        if len(x) > 5:
            parts.append(_Part(x[6], x[7], w[4], w[5], a["index_rows"], a["index_entries"]))
        q = self.cache.round_queries(q, a["heads"], 1, (d,))
        out = np.empty((len(q), a["heads"], d), np.float32)
        for sequence, tokens in enumerate(token_ranges(self.batch)):
            history = int(self.batch.context_lengths[sequence]) - (tokens.stop - tokens.start)
            table = self.batch.block_tables[sequence]
            self.cache.write(a["cache"], table, history, kv[tokens], (d,))
            for part in parts:
                self._compress(part, tokens, history, table)
            chosen = self._chosen(x, tokens, history, table)
            for i, token in enumerate(range(tokens.start, tokens.stop)):
                keys = self._keys(history + i, table, chosen[i])
                query = nx.split_heads(q[token : token + 1], a["heads"])[0]
                out[token] = compressed.attend(query, keys, w[1], a["scale"])
        return self._rope(nx.merge_heads(out), positions, a["heads"], back=True)

    def _rope(self, x: F32, positions: I32, heads: int, back: bool = False) -> F32:
        """The last columns of every head rotated."""
        a, turned = self.a, self.a["qk_rope_head_dim"]
        inv_freq = tuple(-f for f in a["inv_freq"]) if back else a["inv_freq"]
        sizes = (x.shape[1] // heads - turned, turned)
        rest, last = nx.split(x, sizes, heads)
        last = nx.rope(last, positions, heads, inv_freq, a["rope_scale"], bool(a["interleaved"]))
        return nx.concat([rest, last], heads)

    def _compress(self, part: _Part, tokens: slice, history: int, table: I32) -> None:
        """Keeps the rows of new tokens, and the entries of windows that end with one of them."""
        ratio, width = self.a["ratio"], part.kv.shape[1]
        rows = np.concatenate([part.kv[tokens], part.gate[tokens]], axis=1)
        self.cache.write(part.rows, table, history, rows)
        overlapping = width > len(part.norm)
        for window in range(history // ratio, (history + len(rows)) // ratio):
            begin = window * ratio
            first = max(0, begin - ratio) if overlapping else begin
            read = self.cache.read(part.rows, table, first, begin + ratio)
            bias = part.bias.reshape(ratio, width)
            made = compressed.entry(
                read[:, :width], read[:, width:], bias, begin - first, overlapping
            )
            made = nx.rms_norm(made[None], part.norm, self.a["eps"])
            made = self._rope(made, np.array([begin], np.int32), 1)
            self.cache.write(part.entries, table, window, made, (made.shape[1],))

    def _chosen(self, x: Inputs, tokens: slice, history: int, table: I32) -> list[I32]:
        """The entries that each token attends to."""
        a, new = self.a, tokens.stop - tokens.start
        seen = [(history + i + 1) // a["ratio"] if "ratio" in a else 0 for i in range(new)]
        if "top_k" not in a:
            return [np.arange(count, dtype=np.int32) for count in seen]
        heads = a["index_heads"]
        q = self._rope(x[4][tokens], x[-1][tokens], heads)
        q = self.cache.round_queries(q, heads, 1, (a["index_dim"],))
        keys = self.cache.read(a["index_entries"], table, 0, seen[-1])
        scores = nx.key_scores(q, x[5][tokens], keys, a["index_scale"])
        best = [np.argsort(-scores[i, :count], kind="stable") for i, count in enumerate(seen)]
        return [np.sort(each[: a["top_k"]]).astype(np.int32) for each in best]

    def _keys(self, position: int, table: I32, chosen: I32) -> F32:
        """The rows of a token's window, then its entries."""
        first = max(0, position - self.a["window"] + 1)
        rows = self.cache.read(self.a["cache"], table, first, position + 1)
        if not len(chosen):
            return rows
        entries = self.cache.read(self.a["entries"], table, 0, int(chosen[-1]) + 1)
        return np.concatenate([rows, entries[chosen]])
