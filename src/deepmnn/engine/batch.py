"""The descriptor of one step, from what each sequence brings to it."""

from __future__ import annotations

from array import array
from collections.abc import Sequence as List

import numpy as np

from deepmnn.backends.base import Batch
from deepmnn.engine.kv_cache import BlockTable
from deepmnn.engine.scheduler import Span

Part = tuple[List[int], int, List[int], int]
"""What one sequence brings: its new tokens, the position of the first, its cache blocks, and of how
many of the tokens, the last ones, logits are wanted."""


def make_batch(spans: List[Span[BlockTable]]) -> Batch:
    """The descriptor of a step that runs these spans, their guesses included."""
    parts: list[Part] = []
    for span in spans:
        table = span.table
        ids = table.ids[table.length : table.length + span.count]
        if span.guesses:
            ids += span.guesses
        parts.append((ids, table.length, table.blocks, span.rows))
    return batch_of(parts)


def batch_of(parts: List[Part]) -> Batch:
    """The descriptor of a step with these sequences; see `Batch` for its fields.

    Plain lists, and one array that all fields are views of: a decode step is short, and a numpy
    call costs more than its few numbers.
    """
    ids: list[int] = []
    positions: list[int] = []
    contexts: list[int] = []
    tables: list[int] = []
    rows: list[int] = []
    starts = [0]
    width = max([len(blocks) for _, _, blocks, _ in parts])
    for new, position, blocks, wanted in parts:
        ids += new
        end = position + len(new)
        positions += range(position, end)
        contexts.append(end)
        tables += blocks
        tables += [-1] * (width - len(blocks))
        stop = len(ids)
        rows += range(stop - wanted, stop)
        starts.append(stop)
    numbers = array("i", ids + positions + starts + contexts + tables + rows)
    views, end = np.frombuffer(numbers, np.int32), 0
    fields = []
    for part in (ids, positions, starts, contexts, tables, rows):
        begin, end = end, end + len(part)
        fields.append(views[begin:end])
    batch = Batch(*fields)
    batch.block_tables = batch.block_tables.reshape(-1, width)
    return batch
