"""Runs a model through a backend in every way an engine may, and compares it with its oracle.

    check_parity(tiny, reference)                       level 0, numpy
    check_parity(tiny, my_backend, level=3)             anything else

A backend is made by a function (graph, source) → Backend, source being where the weights'
expressions read from (TinyModel itself).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from deepmnn.backends.base import F32, Backend, Batch
from deepmnn.backends.reference import ReferenceBackend
from deepmnn.graph.caches import block_multiple
from deepmnn.graph.ir import Graph
from deepmnn.graph.levels import optimize
from deepmnn.graph.weights import TensorSource
from deepmnn.models import build

if TYPE_CHECKING:  # children import this file, and torch takes seconds
    from tiny_models import TinyModel

MakeBackend = Callable[[Graph, TensorSource], Backend]
Step = Sequence[int]
"""New tokens of each sequence in one step; 0: the sequence sits it out."""

SCHEDULES: dict[str, tuple[Sequence[int], list[Step]]] = {
    # name: (prompt lengths, steps)
    "prefill": ([23], [(23,)]),
    "one by one": ([13], [(1,)] * 13),
    "chunks": ([23], [(5,), (1,), (10,), (7,)]),
    "ragged": ([11, 5, 17], [(3, 4, 0), (1, 0, 9), (0, 1, 1), (7, 0, 7)]),
}
"""Every way to split prompts into steps."""


def reference(graph: Graph, source: TensorSource) -> ReferenceBackend:
    """The numpy backend, MLA expanded."""
    return ReferenceBackend(graph, lambda name: graph.weights[name].expr.read(source))


def reference_absorbed(graph: Graph, source: TensorSource) -> ReferenceBackend:
    """The numpy backend, MLA absorbed."""
    return ReferenceBackend(graph, lambda name: graph.weights[name].expr.read(source), "absorbed")


def lowered(tiny: TinyModel, level: int, outputs: Sequence[str] = ("logits",)) -> Graph:
    """The model's graph at an optimisation level, verified."""
    return optimize(build(tiny.config, outputs), level)[0]


@dataclass
class Runner:
    """Feeds sequences to a backend, handing out cache blocks in a shuffled order.

    output: of the model, "" for the logits of `step`. drafted: rows that drafts have in the cache,
    as `lengths` of the model's own.
    """

    backend: Backend
    block_size: int = 3
    blocks: int = 40
    cache_dtype: str = "f32"
    output: str = ""
    tables: dict[int, list[int]] = field(default_factory=dict)
    lengths: dict[int, int] = field(default_factory=dict)
    drafted: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.block_size *= block_multiple(self.backend.caches)
        self.cache = self.backend.new_cache(self.blocks, self.block_size, self.cache_dtype)
        self.free = [int(block) for block in np.random.default_rng(5).permutation(self.blocks)]

    def step(self, new: dict[int, Sequence[int]]) -> dict[int, F32]:
        """One step of sequence → new token ids; returns sequence → output of every new token."""
        batch = self._batch(new, self.lengths)
        if self.output:
            values = self.backend.run(self.cache, batch)[self.output]
        else:
            values = self.backend.step(self.cache, batch)
        return dict(zip(new, np.split(values, batch.sequence_starts[1:-1]), strict=True))

    def draft(
        self, new: dict[int, Sequence[int]], states: dict[int, F32]
    ) -> dict[int, tuple[F32, F32]]:
        """One step of the draft part: sequence → token ids, and what the model gave for the token
        before each; returns sequence → logits and states of all of them.
        """
        batch = self._batch(new, self.drafted)
        state = np.concatenate([states[sequence] for sequence in new])
        both = self.backend.draft(self.cache, batch, state)
        logits, state = (np.split(values, batch.sequence_starts[1:-1]) for values in both)
        return {s: (logits[at], state[at]) for at, s in enumerate(new)}

    def _batch(self, new: dict[int, Sequence[int]], lengths: dict[int, int]) -> Batch:
        """The next tokens of some sequences, after those that `lengths` counts, and counts."""
        starts = np.cumsum([0, *(len(ids) for ids in new.values())])
        positions: list[int] = []
        for sequence, ids in new.items():
            length = lengths.get(sequence, 0)
            positions += range(length, length + len(ids))
            lengths[sequence] = length + len(ids)
            table = self.tables.setdefault(sequence, [])
            while len(table) * self.block_size < lengths[sequence]:
                table.append(self.free.pop())
        width = max(len(self.tables[sequence]) for sequence in new)
        tables = [self.tables[s] + [-1] * (width - len(self.tables[s])) for s in new]
        return Batch(
            ids=np.array([i for ids in new.values() for i in ids], np.int32),
            positions=np.array(positions, np.int32),
            sequence_starts=starts.astype(np.int32),
            context_lengths=np.array([lengths[s] for s in new], np.int32),
            block_tables=np.array(tables, np.int32),
            logit_rows=np.arange(starts[-1], dtype=np.int32),
        )


def run_schedule(
    backend: Backend, prompts: Sequence[Sequence[int]], steps: Sequence[Step], **options: object
) -> list[F32]:
    """Logits (or options' output) of every token of every prompt, [len(prompt), width] each."""
    runner = Runner(backend, **options)  # type: ignore[arg-type]
    done = [0] * len(prompts)
    out: list[list[F32]] = [[] for _ in prompts]
    for step in steps:
        new = {s: prompts[s][done[s] : done[s] + count] for s, count in enumerate(step) if count}
        for sequence, logits in runner.step(new).items():
            out[sequence].append(logits)
            done[sequence] += len(new[sequence])
    return [np.concatenate(parts) for parts in out]


def prompts_for(lengths: Sequence[int], vocab_size: int, seed: int = 3) -> list[list[int]]:
    """Random prompts of these lengths."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocab_size, length).tolist() for length in lengths]


def relative_error(got: F32, want: F32) -> float:
    """The largest difference, in units of the largest logit."""
    return float(np.abs(got - want).max() / np.abs(want).max())


def check_parity(
    tiny: TinyModel,
    make_backend: MakeBackend,
    level: int = 0,
    tolerance: float = 1e-4,
    schedules: Sequence[str] = tuple(SCHEDULES),
) -> dict[str, float]:
    """Asserts that every schedule gives the oracle's logits; returns the error of each."""
    backend = make_backend(lowered(tiny, level), tiny)
    errors = {}
    for name in schedules:
        lengths, steps = SCHEDULES[name]
        prompts = prompts_for(lengths, tiny.config["vocab_size"])
        got = run_schedule(backend, prompts, steps)
        want = [tiny.logits(prompt) for prompt in prompts]
        errors[name] = max(relative_error(g, w) for g, w in zip(got, want, strict=True))
        assert errors[name] <= tolerance, f"{name}: {errors[name]:.2e} of the largest logit"
    return errors


def check_outputs(
    tiny: TinyModel, make_backend: MakeBackend, level: int, tolerance: float, schedule: str
) -> None:
    """Asserts that a model of two outputs gives the oracle's hidden states, and the logits that
    `step` gives, alone or beside them.
    """
    names = ("logits", "hidden")
    backend = make_backend(lowered(tiny, level, names), tiny)
    assert backend.outputs == names
    lengths, steps = SCHEDULES[schedule]
    prompts = prompts_for(lengths, tiny.config["vocab_size"])
    hidden = run_schedule(backend, prompts, steps, output="hidden")
    error = max(
        relative_error(got, tiny.hidden(prompt))
        for got, prompt in zip(hidden, prompts, strict=True)
    )
    assert error <= tolerance, f"{error:.2e} of the largest number"
    alone = make_backend(lowered(tiny, level), tiny)
    assert alone.outputs == ("logits",)
    want = run_schedule(alone, prompts, steps)
    for output in ("", "logits"):
        for logits, expected in zip(
            run_schedule(backend, prompts, steps, output=output), want, strict=True
        ):
            np.testing.assert_array_equal(logits, expected)
