"""An engine that tells what its steps are made of: the usual one, with a clock around each part."""

from __future__ import annotations

from collections.abc import Sequence as List
from dataclasses import dataclass, field
from typing import Any

from deepmnn.backends.base import F32, Backend, Batch, Cache, Draw
from deepmnn.backends.cpu.backend import CpuBackend
from deepmnn.engine.engine import Engine, make_batch
from deepmnn.engine.kv_cache import BlockTable
from deepmnn.engine.scheduler import Scheduler, Span
from deepmnn.engine.sequence import Sequence
from deepmnn.inspect.profile.load import Step, StepSpan
from deepmnn.inspect.profile.timeline import Timeline

LOOP, ENGINE, SCHEDULER = "loop", "engine", "scheduler"
BATCH, BINDING, SAMPLER, OUTPUT = "batch", "binding", "sampler", "output"
"""The parts of a step, in Python, each without those inside it."""

MEANINGS = {
    LOOP: "asks for one step after another",
    ENGINE: "the rest of the engine's step",
    SCHEDULER: "chooses the tokens of a step and their cache blocks",
    BATCH: "describes the step to the backend",
    BINDING: "goes from Python to the backend and back",
    SAMPLER: "draws the next tokens",
    OUTPUT: "takes the tokens; text, where there is a tokenizer",
}


class TimedBackend:
    """A backend with a clock; see backends/base.py for the protocol."""

    def __init__(self, backend: Backend, timeline: Timeline) -> None:
        self._backend, self._timeline = backend, timeline
        self._core = backend.model if isinstance(backend, CpuBackend) else None
        self.vocab_size, self.outputs = backend.vocab_size, backend.outputs
        self.cache_width, self.max_sequences = backend.cache_width, backend.max_sequences

    def new_cache(self, blocks: int, block_size: int, dtype: str = "f32") -> Cache:
        """As the backend."""
        return self._backend.new_cache(blocks, block_size, dtype)

    def step(self, cache: Cache, batch: Batch) -> F32:
        """As the backend; what the core says of its own time is not the binding's."""
        return self._timeline.run(BINDING, self._step, cache, batch)

    def run(self, cache: Cache, batch: Batch) -> dict[str, F32]:
        """As the backend."""
        return self._backend.run(cache, batch)

    def sample(self, draws: list[Draw]) -> list[int]:
        """As the backend."""
        return self._timeline.run(SAMPLER, self._backend.sample, draws)

    def _step(self, cache: Cache, batch: Batch) -> F32:
        if self._core is None:
            return self._backend.step(cache, batch)
        before = self._core.step_seconds
        logits = self._backend.step(cache, batch)
        self._timeline.exclude(self._core.step_seconds - before)
        return logits


class TimedScheduler(Scheduler):
    """A scheduler with a clock, for which no prompt is in the cache already."""

    def __init__(self, timeline: Timeline, *args: Any) -> None:
        super().__init__(*args)
        self._timeline = timeline

    def schedule(self) -> list[Span[Sequence]]:
        """As usual."""
        return self._timeline.run(SCHEDULER, super().schedule)

    def _share(self, sequence: Sequence) -> int:
        return 0


@dataclass(eq=False)
class TimedSequence(Sequence):
    """A request with a clock."""

    timeline: Timeline = field(default_factory=Timeline)

    def draw(self, logits: F32) -> Draw:
        """As usual."""
        return self.timeline.run(SAMPLER, super().draw, logits)

    def accept(self, tokens: List[int]) -> None:
        """As usual."""
        self.timeline.run(OUTPUT, super().accept, tokens)


class TimedEngine(Engine):
    """An engine with a clock.

    Attributes:
        timeline: where the time goes.
        steps: what each step has run.
    """

    def __init__(
        self, backend: Backend, cache_tokens: int, context_length: int, **options: Any
    ) -> None:
        self.timeline = Timeline()
        self.steps: list[Step] = []
        super().__init__(
            TimedBackend(backend, self.timeline), cache_tokens, context_length, **options
        )
        usual = self.scheduler
        self.scheduler = TimedScheduler(
            self.timeline, self.manager, usual.max_batch_tokens, usual.max_sequences
        )

    def step(self) -> list[Sequence]:
        """As usual."""
        return self.timeline.run(ENGINE, super().step)

    def forward(self, spans: List[Span[BlockTable]]) -> F32:
        """As usual."""
        ran = tuple(StepSpan(span.count, span.table.length, span.rows) for span in spans)
        batch = self.timeline.run(BATCH, make_batch, spans)
        logits = self.backend.step(self.cache, batch)
        self.timeline.run(SCHEDULER, self._commit, spans)
        self.steps.append(ran)
        return logits

    def _commit(self, spans: List[Span[BlockTable]]) -> None:
        for span in spans:
            self.manager.commit(span.table, span.count)
