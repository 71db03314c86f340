"""A model that is a pure function of its history, read back from the paged cache.

Its logits are pseudo-random numbers seeded with every token of the sequence so far, so any row
that lands in a wrong slot, is overwritten or is shared by mistake changes them. Every step checks
the rules of backends/base.py, and that it is the only one.
"""

from __future__ import annotations

import time
import zlib
from threading import Lock

import numpy as np

from deepmnn.backends.base import F32, U8, Batch, Draw, sample_in_turn
from deepmnn.graph.caches import CacheEntry


def expected_logits(ids: list[int], vocab_size: int) -> F32:
    """Logits [vocab_size] after the last of ids."""
    seed = zlib.crc32(np.asarray(ids, np.int64).tobytes())
    return np.random.default_rng(seed).standard_normal(vocab_size).astype(np.float32)


def expected_answer(ids: list[int], count: int, vocab_size: int) -> list[int]:
    """Greedy decoding without any engine."""
    ids = list(ids)
    for _ in range(count):
        ids.append(int(expected_logits(ids, vocab_size).argmax()))
    return ids[-count:]


class FakeCache:
    def __init__(self, blocks: int, block_size: int) -> None:
        self.blocks, self.block_size = blocks, block_size
        self.tokens = np.full((blocks, block_size), -1, np.int64)
        self.positions = np.full((blocks, block_size), -1, np.int64)
        self.copies = 0
        self.block_nbytes, self.recent_blocks = 16 * block_size, 0

    def copy_block(self, source: int, target: int) -> None:
        assert source != target
        self.tokens[target] = self.tokens[source]
        self.positions[target] = self.positions[source]
        self.copies += 1

    def read_block(self, block: int, rows: U8) -> None:
        rows[:] = np.stack([self.tokens[block], self.positions[block]]).reshape(-1).view(np.uint8)

    def write_block(self, block: int, rows: U8) -> None:
        both = rows.view(np.int64).reshape(2, -1)
        self.tokens[block], self.positions[block] = both


class RecentCache(FakeCache):
    """Remembers the tokens of recent rows, too."""

    def __init__(self, blocks: int, block_size: int, recent_blocks: int) -> None:
        super().__init__(blocks, block_size)
        self.recent_blocks = recent_blocks
        self.recents = np.full(blocks, -1)
        self.recent_tokens = np.full((recent_blocks, block_size), -1)

    def place_recent(self, block: int, place: int) -> None:
        assert -1 <= place < self.recent_blocks
        if place >= 0:
            self.recents[self.recents == place] = -1
        self.recents[block] = place

    def copy_block(self, source: int, target: int) -> None:
        super().copy_block(source, target)
        if self.recents[source] >= 0 and self.recents[target] >= 0:
            rows = self.recent_tokens[self.recents[source]]
            self.recent_tokens[self.recents[target]] = rows


class FakeBackend:
    """raising: tokens that a step with them raises for. spoilt: tokens after which all is NaN."""

    draft_state: str | None = None

    def __init__(self, vocab_size: int = 97, max_sequences: int | None = None) -> None:
        self.vocab_size, self.max_sequences = vocab_size, max_sequences
        self.caches = {"rows": CacheEntry(1)}
        self.steps: list[Batch] = []
        self.raising: set[int] = set()
        self.spoilt: set[int] = set()
        self._stepping = Lock()

    def new_cache(
        self, blocks: int, block_size: int, dtype: str = "f32", recent_blocks: int | None = None
    ) -> FakeCache:
        assert dtype in ("f32", "bf16")
        return FakeCache(blocks, block_size)

    def step(self, cache: FakeCache, batch: Batch) -> F32:
        assert self._stepping.acquire(blocking=False), "two steps at the same time"
        try:
            return self._step(cache, batch)
        finally:
            self._stepping.release()

    def _step(self, cache: FakeCache, batch: Batch) -> F32:
        self._check(cache, batch)
        self.steps.append(batch)
        time.sleep(0)  # as the core does, it lets other threads run
        for token in self.raising.intersection(batch.ids.tolist()):
            raise RuntimeError(f"token {token}")
        logits = np.empty((len(batch.ids), self.vocab_size), np.float32)
        for index, (start, end) in enumerate(
            zip(batch.sequence_starts[:-1], batch.sequence_starts[1:], strict=True)
        ):
            table = batch.block_tables[index]
            for token in range(start, end):
                position = batch.positions[token]
                slot = table[position // cache.block_size], position % cache.block_size
                cache.tokens[slot], cache.positions[slot] = batch.ids[token], position
            context = batch.context_lengths[index]
            rows = np.arange(context)
            slots = table[rows // cache.block_size], rows % cache.block_size
            assert (cache.positions[slots] == rows).all(), "history is not in its slots"
            history = cache.tokens[slots].tolist()
            for token in range(start, end):
                known = history[: batch.positions[token] + 1]
                logits[token] = (
                    np.nan if self.spoilt.intersection(known) else self.logits_after(known)
                )
        return logits[batch.logit_rows]

    def logits_after(self, ids: list[int]) -> F32:
        """Logits [vocab_size] after the last of ids."""
        return expected_logits(ids, self.vocab_size)

    def sample(self, draws: list[Draw]) -> list[int]:
        return sample_in_turn(draws)

    def _check(self, cache: FakeCache, batch: Batch) -> None:
        for array in vars(batch).values():
            assert array.dtype == np.int32
        tokens, sequences = len(batch.ids), len(batch.context_lengths)
        starts = batch.sequence_starts
        assert len(starts) == sequences + 1
        assert starts[0] == 0
        assert starts[-1] == tokens == len(batch.positions)
        assert (np.diff(starts) >= 1).all()
        assert ((batch.ids >= 0) & (batch.ids < self.vocab_size)).all()
        assert (np.diff(batch.logit_rows) > 0).all()
        assert ((batch.logit_rows >= 0) & (batch.logit_rows < tokens)).all()
        written: set[tuple[int, int]] = set()
        touched: set[int] = set()
        for index in range(sequences):
            new = batch.positions[starts[index] : starts[index + 1]]
            context = batch.context_lengths[index]
            assert new.tolist() == list(range(context - len(new), context))
            table = batch.block_tables[index]
            used = table[: -(-context // cache.block_size)]
            assert ((used >= 0) & (used < cache.blocks)).all()
            assert len(set(used.tolist())) == len(used)
            blocks = {int(table[p // cache.block_size]) for p in new}
            slots = {(int(table[p // cache.block_size]), int(p % cache.block_size)) for p in new}
            assert not slots & written, "two sequences write one slot"
            written |= slots
            others = {int(b) for i in range(sequences) if i != index for b in batch.block_tables[i]}
            assert not blocks & others, "a written block is in another sequence's table"
            touched |= blocks
