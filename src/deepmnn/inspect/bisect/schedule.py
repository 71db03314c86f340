"""Logits of a loaded model, its steps cut in one way or another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from deepmnn.api.llm import LLM
from deepmnn.backends.base import F32, I32
from deepmnn.engine.engine import Engine
from deepmnn.engine.kv_cache import BlockTable
from deepmnn.engine.scheduler import Span

SPAN = 37
"""Tokens of a span of a prompt: no multiple of a cache block."""

DECODED = 8
"""Tokens at the end of a sample that are decoded one by one."""


@dataclass(frozen=True)
class Schedule:
    """How samples become steps.

    Attributes:
        spans: a prompt is prefilled in spans of SPAN tokens, else in one step.
        decode: the last DECODED tokens come one at a time.
        together: all samples run in the same steps, else one after another.
    """

    spans: bool = True
    decode: bool = True
    together: bool = True


WHOLE = Schedule(spans=False, decode=False, together=False)
"""Each sample in one step of its own."""


def scheduled_logits(model: LLM, samples: Sequence[I32], schedule: Schedule) -> F32:
    """The logits after every token, [tokens of all samples, vocab_size].

    Raises ContextLengthError when the KV cache does not hold the samples.
    """
    groups = [list(samples)] if schedule.together else [[sample] for sample in samples]
    found = [model.driver.run(partial(_run, group, schedule)) for group in groups]
    return np.concatenate(found)


def _run(samples: list[I32], schedule: Schedule, engine: Engine) -> F32:
    """Runs samples side by side, as far as steps have room."""
    tables = [BlockTable(sample.tolist()) for sample in samples]
    found: list[list[F32]] = [[] for _ in samples]
    try:
        while any(table.pending for table in tables):
            spans, owners, left = [], [], engine.scheduler.max_batch_tokens
            for owner, table in enumerate(tables):
                count = min(_next(table, schedule), left)
                if count:
                    engine.scheduler.make_room(table, count)
                    spans.append(Span(table, count, rows=count))
                    owners.append(owner)
                    left -= count
            logits, start = engine.forward(spans), 0
            for owner, span in zip(owners, spans, strict=True):
                found[owner].append(logits[start : start + span.count])
                start += span.count
    finally:
        for table in tables:
            engine.manager.free(table)
    return np.concatenate([rows for each in found for rows in each])


def _next(table: BlockTable, schedule: Schedule) -> int:
    """Tokens that a sequence brings to the next step."""
    decoded = min(DECODED, len(table.ids) - 1) if schedule.decode else 0
    prompt = table.pending - decoded
    if prompt <= 0:
        return min(1, table.pending)
    return min(prompt, SPAN) if schedule.spans else prompt
