"""How much memory a model takes, by the length of its context."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from deepmnn.api.options import DEFAULT_BATCH_TOKENS, KV_DTYPES
from deepmnn.inspect.report.subject import Subject

SHORTEST = 512
"""Tokens of the shortest context that is shown."""

_STEP_TOKENS = DEFAULT_BATCH_TOKENS


@dataclass(frozen=True)
class Need:
    """Of one sequence.

    Attributes:
        context: its tokens.
        weights: bytes of all weights.
        caches: how the KV cache is stored → its bytes.
        activations: bytes of a step of as many tokens as fit in one; None where not known.
    """

    context: int
    weights: int
    caches: dict[str, int]
    activations: int | None

    def total(self, kv_dtype: str) -> int:
        """All of it."""
        return self.weights + self.caches[kv_dtype] + (self.activations or 0)


def by_context(subject: Subject) -> list[Need]:
    """For contexts from SHORTEST on, each twice as long, up to the model's own."""
    return [_need(subject, context) for context in contexts(subject.context_length)]


def contexts(longest: int) -> Sequence[int]:
    """SHORTEST, its doubles, and the longest."""
    found = []
    context = SHORTEST
    while context < longest:
        found.append(context)
        context *= 2
    return [*found, longest]


def machine_nbytes() -> int:
    """Memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _need(subject: Subject, context: int) -> Need:
    plan = subject.memory
    caches = {
        name: round(context * subject.cache_width * size)
        for name, size in KV_DTYPES.items()
        if subject.kv_dtypes is None or name in subject.kv_dtypes
    }
    step = min(context, _STEP_TOKENS)
    activations = None if plan is None else plan.peak_nbytes(step, context, 1)
    return Need(context, subject.nbytes, caches, activations)
