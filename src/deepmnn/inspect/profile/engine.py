"""An engine that tells what its steps are made of: the usual one, with seven looks at the clock.

A step of a tiny model takes as long as a few dozen lines of Python. So a step only keeps the times
at which one part ended and the next began; what they mean is worked out when the steps are over.
"""

from __future__ import annotations

from collections.abc import Sequence as List
from itertools import islice
from time import perf_counter_ns as now
from typing import Any, NamedTuple

from deepmnn.backends.base import F32, Backend, Draw
from deepmnn.engine.batch import make_batch
from deepmnn.engine.engine import Engine
from deepmnn.engine.kv_cache import BlockTable
from deepmnn.engine.scheduler import Scheduler, Span
from deepmnn.engine.sequence import Sequence
from deepmnn.inspect.profile.load import Step, StepSpan

STEP, LOOP, SCHEDULER = "engine's step", "loop", "scheduler"
BATCH, BINDING, SAMPLER, OUTPUT = "batch", "binding", "sampler", "output"
"""The parts of a step, in Python."""

MEANINGS = {
    LOOP: "asks for one step after another",
    SCHEDULER: "chooses the tokens of a step and their cache blocks",
    BATCH: "describes the step to the backend",
    BINDING: "goes from Python to the backend and back",
    SAMPLER: "draws the next tokens",
    OUTPUT: "takes the tokens; text, where there is a tokenizer",
}


class Mark(NamedTuple):
    """A part, and when it began and ended, in nanoseconds of `perf_counter_ns`."""

    name: str
    begin: int
    end: int


class Laps(NamedTuple):
    """The times of one step, in nanoseconds: where a part ends, the next one begins."""

    begun: int
    scheduled: int
    described: int
    ran: int
    committed: int
    sampled: int
    ended: int

    def parts(self) -> tuple[Mark, ...]:
        """In order; the backend's step is inside of BINDING."""
        return (
            Mark(SCHEDULER, self.begun, self.scheduled),
            Mark(BATCH, self.scheduled, self.described),
            Mark(BINDING, self.described, self.ran),
            Mark(SCHEDULER, self.ran, self.committed),
            Mark(SAMPLER, self.committed, self.sampled),
            Mark(OUTPUT, self.sampled, self.ended),
        )


class UnsharedScheduler(Scheduler):
    """A scheduler for which no prompt is in the cache already."""

    def _share(self, sequence: Sequence) -> int:
        return 0


class TimedEngine(Engine):
    """An engine with a clock. It keeps what its steps were, until `clear`."""

    def __init__(
        self, backend: Backend, cache_tokens: int, context_length: int, **options: Any
    ) -> None:
        super().__init__(backend, cache_tokens, context_length, **options)
        usual = self.scheduler
        self.scheduler = UnsharedScheduler(
            self.manager, usual.max_batch_tokens, usual.max_sequences
        )
        self._forward_times = (0, 0, 0, 0)
        self._sampled = 0
        self._times: list[tuple[int, ...]] = []
        self._sequences: list[int] = []  # of each step
        self._spans: list[tuple[int, int, int]] = []  # of all of them

    def laps(self) -> list[Laps]:
        """The times of the steps."""
        return [Laps(*times) for times in self._times]

    def ran(self) -> list[Step]:
        """What the steps have run."""
        spans = iter(self._spans)
        return [tuple(StepSpan(*s) for s in islice(spans, n)) for n in self._sequences]

    def clear(self) -> None:
        """Forgets them."""
        self._times.clear()
        self._sequences.clear()
        self._spans.clear()

    def step(self) -> list[Sequence]:
        """As usual."""
        begun = now()
        told = Engine.step(self)  # quicker than super()
        self._times.append((begun, *self._forward_times, self._sampled, now()))
        return told

    def forward(self, spans: List[Span[BlockTable]]) -> F32:
        """As usual."""
        scheduled = now()
        batch = make_batch(spans)
        described = now()
        logits = self.backend.step(self.cache, batch)
        ran = now()
        self._sequences.append(len(spans))
        for span in spans:
            table, count = span.table, span.count
            self._spans.append((count, table.length, span.rows))
            self.manager.commit(table, count)
        self._forward_times = (scheduled, described, ran, now())
        return logits

    def _sample(self, sequences: list[Sequence], draws: list[Draw]) -> List[int | None]:
        tokens = Engine._sample(self, sequences, draws)
        self._sampled = now()
        return tokens
