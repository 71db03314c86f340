"""Many sequences side by side where places for recent rows are short: none is run twice."""

from __future__ import annotations

import random

import numpy as np
import pytest

from deepmnn.backends.base import F32, Batch
from deepmnn.engine import recent_rows
from deepmnn.engine.driver import Driver
from deepmnn.engine.engine import Engine
from deepmnn.engine.sequence import Sequence
from deepmnn.engine.session import Session
from deepmnn.errors import ContextLengthError
from deepmnn.graph.caches import CacheEntry, block_nbytes
from deepmnn.text.sampling_params import SamplingParams
from fake_backend import FakeBackend, RecentCache

SIZE, REACH, EACH = 32, 16, 3
"""Tokens of a block, the window, and the places that a sequence needs at a border."""

CACHES = {
    "rows": CacheEntry(1),
    "window": CacheEntry(8, window=REACH),
    "heavy": CacheEntry(8, ratio=SIZE),
}


class RecentBackend(FakeBackend):
    """Looks whether the recent rows of a step have places, and goes on counting quickly."""

    def __init__(self) -> None:
        super().__init__()
        self.caches = CACHES

    def new_cache(
        self, blocks: int, block_size: int, dtype: str = "f32", recent_blocks: int | None = None
    ) -> RecentCache:
        return RecentCache(blocks, block_size, recent_blocks or 0)

    def _step(self, cache: object, batch: Batch) -> F32:
        assert isinstance(cache, RecentCache)
        self._check(cache, batch)
        self.steps.append(batch)
        news = np.diff(batch.sequence_starts)
        for table, new, length in zip(batch.block_tables, news, batch.context_lengths, strict=True):
            first = max(0, length - new + 1 - REACH) // SIZE
            used = table[first : -(-length // SIZE)]
            assert (cache.recents[used] >= 0).all(), "recent rows without a place"
        logits = np.zeros((len(batch.logit_rows), self.vocab_size), np.float32)
        logits[np.arange(len(logits)), (7 * batch.ids[batch.logit_rows] + 1) % 97] = 1
        return logits


def make_engine(
    places: int, monkeypatch: pytest.MonkeyPatch, blocks: int = 400
) -> tuple[Engine, RecentBackend]:
    nbytes = block_nbytes(CACHES, SIZE, "f32")[1]
    monkeypatch.setattr(recent_rows, "_MOST_NBYTES", places * nbytes)
    backend = RecentBackend()
    engine = Engine(backend, blocks * SIZE, 4000, max_batch_tokens=128)
    assert engine.cache.recent_blocks == places
    return engine, backend


def run(engine: Engine) -> int:
    """Until all is done; how many ran together at most."""
    together = 0
    while engine.scheduler.busy:
        engine.step()
        together = max(together, len(engine.scheduler.running))
    return together


def params(tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)


@pytest.mark.parametrize(
    ("prompt", "answer", "least"),
    [
        (100, 75, 45 // EACH),
        (700, 100, 45 // EACH),
        (20, 13, 40),  # one block each: all fit
        (40, 24, 45 // 2),
        (1, 400, 45 // EACH),
    ],
)
def test_all_that_fit_run_together_and_none_twice(
    prompt: int, answer: int, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, backend = make_engine(45, monkeypatch)
    rng, sequences = random.Random(1), []
    for _ in range(40):
        ids = [rng.randrange(97) for _ in range(prompt)]
        sequences.append(engine.submit(ids, params(answer)))
    assert run(engine) >= least
    assert [len(s.answer) for s in sequences] == [answer] * 40
    assert not any(s.preemptions for s in sequences)
    rows = sum(len(batch.ids) for batch in backend.steps)
    assert rows + sum(s.cached_tokens for s in sequences) == 40 * (prompt + answer - 1)


@pytest.mark.parametrize("seed", range(6))
def test_any_lengths_and_several_answers(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers to one prompt share its places, until each has its own."""
    rng = random.Random(seed)
    engine, backend = make_engine(rng.randint(8, 40), monkeypatch)
    sequences: list[Sequence] = []
    for _ in range(20):
        ids = [rng.randrange(97) for _ in range(rng.randint(1, 300))]
        first = engine.submit(ids, params(rng.randint(1, 150)))
        siblings = [first.sibling(n, None) for n in range(1, rng.choice([1, 1, 4]))]
        for sequence in siblings:
            engine.scheduler.add(sequence)
        sequences += [first, *siblings]
    run(engine)
    assert not any(s.preemptions for s in sequences)
    assert not any(s.error for s in sequences)
    rows = sum(len(batch.ids) for batch in backend.steps)
    needed = sum(len(s.ids) - 1 for s in sequences)
    assert rows + sum(s.cached_tokens for s in sequences) == needed


@pytest.mark.parametrize(
    ("blocks", "short"),
    [(400, "1 free places for the rows of recent tokens"), (11, "2 free blocks")],
)
def test_what_is_short_is_named(blocks: int, short: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session of three blocks needs the recent rows of two."""
    engine, _ = make_engine(7 if blocks == 400 else 11, monkeypatch, blocks)
    driver = Driver(engine)
    sessions = [Session(driver) for _ in range(4)]
    for number, session in enumerate(sessions[:3]):
        session.prefill([number] * 80)
    with pytest.raises(ContextLengthError, match=f"^the KV cache has {short}, the rest is in use"):
        sessions[3].prefill([3] * 80)
