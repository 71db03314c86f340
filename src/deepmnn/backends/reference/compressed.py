"""The maths of compressed attention: entries that stand for windows of tokens, which of them a
token sees, and attention over these and its own window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepmnn.backends.base import F32, I32, Batch
from deepmnn.backends.reference import numerics as nx
from deepmnn.backends.reference.cache import token_ranges


def compress(
    kv: F32, gate: F32, bias: F32, batch: Batch, ratio: int, overlapping: bool
) -> tuple[F32, I32]:
    """kv and gate [context, w], bias [ratio · w] → entries [context, d], positions [context, 1].

    An entry lies in the last row of its window; other rows are zeros. Its position is the window's
    first.
    """
    d = kv.shape[1] // 2 if overlapping else kv.shape[1]
    entries = np.zeros((len(kv), d), np.float32)
    positions = np.zeros((len(kv), 1), np.int32)
    for context in context_ranges(batch):
        rows, gates = kv[context], gate[context]
        for begin in range(0, len(rows) - ratio + 1, ratio):
            last = context.start + begin + ratio - 1
            entries[last] = entry(rows, gates, bias.reshape(ratio, -1), begin, overlapping)
            positions[last] = begin
    return entries, positions


def entry(rows: F32, gates: F32, bias: F32, begin: int, overlapping: bool) -> F32:
    """What stands for the window of a sequence's rows that begins there: a weighted sum of them,
    channel by channel; the weights are a softmax of the gates.
    """
    ratio, d = len(bias), rows.shape[1] // (2 if overlapping else 1)
    window = slice(begin, begin + ratio)
    values, scores = rows[window, -d:], gates[window, -d:] + bias[:, -d:]
    if overlapping and begin:
        before = slice(begin - ratio, begin)
        values = np.concatenate([rows[before, :d], values])
        scores = np.concatenate([gates[before, :d] + bias[:, :d], scores])
    weights = nx.softmax(scores.T).T.astype(np.float64)
    return np.asarray((values * weights).sum(axis=0), np.float32)


def context_ranges(batch: Batch) -> Iterator[slice]:
    """Each sequence's rows of the context."""
    start = 0
    for length in batch.context_lengths:
        yield slice(start, start + int(length))
        start += int(length)


@dataclass(frozen=True)
class WindowShape:
    """Sizes of `window_attention`."""

    heads: int
    scale: float
    window: int
    ratio: int


def window_attention(
    x: Sequence[NDArray[Any]], sinks: F32, batch: Batch, shape: WindowShape
) -> F32:
    """q [tokens, heads · d], rows and perhaps entries [context, d], chosen rows [tokens, k]."""
    q, rows, *rest = x
    out = np.empty((len(q), shape.heads, rows.shape[1]), np.float32)
    queries = nx.split_heads(q, shape.heads)
    ranges = zip(token_ranges(batch), context_ranges(batch), strict=True)
    for tokens, context in ranges:
        history = context.stop - context.start - (tokens.stop - tokens.start)
        for i in range(tokens.start, tokens.stop):
            position = history + i - tokens.start
            keys = [rows[context][max(0, position - shape.window + 1) : position + 1]]
            if rest:
                seen = np.arange(shape.ratio - 1, position + 1, shape.ratio)
                if len(rest) == 2:
                    seen = rest[1][i][rest[1][i] >= 0]
                keys.append(rest[0][context][seen])
            out[i] = attend(queries[i], np.concatenate(keys), sinks, shape.scale)
    return nx.merge_heads(out)


def attend(q: F32, keys: F32, sinks: F32, scale: float) -> F32:
    """One token's queries [heads, d] over keys [n, d], which are values too; → [heads, d].

    sinks [heads] take part in the softmax, and have no value.
    """
    scores = q.astype(np.float64) @ keys.T * scale
    all_scores = np.asarray(np.concatenate([scores, sinks[:, None]], axis=1), np.float32)
    weights = nx.softmax(all_scores)[:, :-1].astype(np.float64)
    return np.asarray(weights @ keys, np.float32)
