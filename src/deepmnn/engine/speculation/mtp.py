"""The model's own draft part guesses: multi-token prediction (DeepSeek-V3, arXiv:2412.19437, 2.2).

A token of the draft part is a pair: the state that the main part gave for token i, and the id of
token i + 1. It stands at position i, has its cache rows there, in the blocks of the main part's
rows, and its logits are about token i + 2. It gives a state, too, which stands in for the main
part's in the next pair: so several tokens are guessed, each from the guess before.

    token           0    1    2    3    4            ids 0 … 4 are known, rows 0 … 3 have been run
    state, id      0,1  1,2  2,3  3,4                pairs: the last of them says what 5 may be
                                        3',5         a guess goes on from a guess
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as List
from dataclasses import dataclass, replace
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np

from deepmnn.backends.base import F32, Backend, Batch, Cache
from deepmnn.engine.kv_cache import BlockTable
from deepmnn.engine.scheduler import Span
from deepmnn.engine.sequence import Sequence
from deepmnn.engine.speculation.drafter import NOTHING, Guess

_LATE = 64
"""Pairs of a sequence that may wait until the draft part runs; together they cost little."""


class DraftBackend(Backend, Protocol):
    """A backend whose model has a draft part."""

    draft_state: str | None
    """The output that drafts begin with; None: there is no draft part."""

    def draft(self, cache: Cache, batch: Batch, state: F32) -> tuple[F32, F32]:
        """Runs pairs: the batch's ids are those of the tokens after, its positions the pairs' own.

        state: [tokens, width]. Returns logits [rows, vocab_size] and states [rows, width].
        """
        ...


class MtpDrafter:
    """Runs the draft part behind the main one. Its guesses are its likeliest tokens.

    Every pair of a sequence is run once, those of the prompt as well: at once where there are many,
    else when a guess is wanted. Rows that were found in the cache have theirs there; the last one
    of a block may be of another sequence, which went on with another token: that costs a little
    accuracy of guesses, and nothing else, as do rows that a `Session` has run.

    Args:
        backend, cache: of the main part.
        most: tokens guessed at a time.
    """

    kinds: Mapping[str, float] = {"mtp": 0.7}

    def __init__(self, backend: DraftBackend, cache: Cache, most: int) -> None:
        self.most = most
        self._backend, self._cache = backend, cache
        self._state = backend.draft_state or ""
        self._waiting: WeakKeyDictionary[Sequence, _Waiting] = WeakKeyDictionary()

    def propose(self, asked: List[tuple[Sequence, int]]) -> list[Guess]:
        """See `Drafter`. Their rows are reserved in the cache, as many as tokens are wanted."""
        wanted: dict[Sequence, int] = {}
        for sequence, count in asked:
            waiting = self._waiting.get(sequence)
            if waiting is not None and waiting.end == len(sequence.ids) - 1:
                wanted[sequence] = min(count, self.most)
        made: dict[Sequence, list[int]] = {sequence: [] for sequence in wanted}
        pairs = [self._pairs(sequence, self._waiting[sequence]) for sequence in wanted]
        going, turn = list(wanted), 0
        while going:
            logits, states = self._run(pairs)
            turn += 1
            pairs, after = [], []
            for row, sequence in enumerate(going):
                token = int(np.argmax(logits[row]))
                made[sequence].append(token)
                if turn < wanted[sequence]:
                    position = len(sequence.ids) - 2 + turn
                    pairs.append(_Pairs(sequence, position, [token], states[row : row + 1]))
                    after.append(sequence)
            going = after
        return [
            Guess(made[sequence], "mtp") if made.get(sequence) else NOTHING for sequence, _ in asked
        ]

    def forget(self, sequence: Sequence) -> None:
        """Drops the states that wait."""
        self._waiting.pop(sequence, None)

    def step(self, batch: Batch, spans: List[Span[BlockTable]]) -> F32:
        """A step of the main part; keeps the states of its tokens. Logits [rows, vocab_size]."""
        tokens = np.arange(len(batch.ids), dtype=np.int32)
        given = self._backend.run(self._cache, replace(batch, logit_rows=tokens))
        states, end = given[self._state], 0
        for span in spans:
            begin, end = end, end + span.count
            if isinstance(span.table, Sequence):
                waiting = self._waiting.setdefault(span.table, _Waiting(states[:0]))
                waiting.add(span.table.length, states[begin:end])
        return given["logits"][batch.logit_rows]

    def ran(self, sequences: List[Sequence]) -> None:
        """A step is over; where many pairs wait, they are run now."""
        pairs = []
        for sequence in sequences:
            waiting = self._waiting.get(sequence)
            if waiting is None or sequence.finish_reason is not None:
                continue
            ready = min(waiting.end, len(sequence.ids) - 1) - waiting.begin
            if ready >= _LATE and waiting.begin + ready <= sequence.length:
                pairs.append(self._pairs(sequence, waiting))
        if pairs:
            self._run(pairs)

    def _pairs(self, sequence: Sequence, waiting: _Waiting) -> _Pairs:
        """All that wait and whose next token is known; the last state stays, to be run again."""
        begin, end = waiting.begin, min(waiting.end, len(sequence.ids) - 1)
        states = waiting.states[: end - begin]
        waiting.drop(end - 1 - begin)
        return _Pairs(sequence, begin, sequence.ids[begin + 1 : end + 1], states)

    def _run(self, pairs: list[_Pairs]) -> tuple[F32, F32]:
        """Logits and states of each sequence's last pair."""
        batch = _batch(pairs)
        return self._backend.draft(self._cache, batch, np.concatenate([p.states for p in pairs]))


@dataclass(slots=True)
class _Pairs:
    """Pairs of one sequence in a row, to be run.

    position: of the first. ids: of the tokens after. states: [pairs, width].
    """

    sequence: Sequence
    position: int
    ids: list[int]
    states: F32


class _Waiting:
    """States of a sequence's tokens whose pairs are not run yet, and of the one before.

    begin: the token of the first. states: [tokens, width].
    """

    def __init__(self, states: F32) -> None:
        self.begin, self.states = 0, states

    @property
    def end(self) -> int:
        """Behind the token of the last."""
        return self.begin + len(self.states)

    def add(self, begin: int, states: F32) -> None:
        """Takes states of tokens from `begin` on; those of wrong guesses there make room."""
        if self.begin <= begin <= self.end:
            self.states = np.concatenate([self.states[: begin - self.begin], states])
        else:  # rows between were found in the cache
            self.begin, self.states = begin, np.array(states)

    def drop(self, count: int) -> None:
        """Drops the first states."""
        if count > 0:
            self.begin, self.states = self.begin + count, self.states[count:]


def _batch(pairs: list[_Pairs]) -> Batch:
    """The descriptor of a step of the draft part."""
    counts = [len(each.ids) for each in pairs]
    ends = np.cumsum(counts, dtype=np.int32)
    width = max([len(each.sequence.blocks) for each in pairs])
    tables = np.full((len(pairs), width), -1, np.int32)
    for row, each in zip(tables, pairs, strict=True):
        row[: len(each.sequence.blocks)] = each.sequence.blocks
    positions = [np.arange(p.position, p.position + n) for p, n in zip(pairs, counts, strict=True)]
    return Batch(
        ids=np.array([token for each in pairs for token in each.ids], np.int32),
        positions=np.concatenate(positions).astype(np.int32),
        sequence_starts=np.concatenate([np.zeros(1, np.int32), ends]),
        context_lengths=np.array([p[-1] + 1 for p in positions], np.int32),
        block_tables=tables,
        logit_rows=ends - 1,
    )
