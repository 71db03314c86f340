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
from weakref import WeakKeyDictionary

import numpy as np

from deepmnn.backends.base import F32, Backend, Batch, Cache
from deepmnn.engine.kv_cache import BlockTable
from deepmnn.engine.scheduler import Span
from deepmnn.engine.sequence import Sequence
from deepmnn.engine.speculation.drafter import NOTHING, Guess


class MtpDrafter:
    """Runs the draft part behind the main one. Its guesses are its likeliest tokens.

    Every pair of a sequence is run once: those of a prompt, and of a block that is whole, at the
    end of the step, all others when a guess is wanted: they cost little where none is. Rows that
    were found in the cache have theirs there; the last one of a block may be of another sequence,
    which went on with another token: that makes guesses a little worse, and nothing else, as do
    rows that a `Session` has run.

    Args:
        backend, cache: of the main part.
        most: tokens guessed at a time.
    """

    kinds: Mapping[str, float] = {"mtp": 0.7}

    def __init__(self, backend: Backend, cache: Cache, most: int) -> None:
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
        self._run_waiting([s for s in wanted if self._waiting[s].ready(s.ids)])
        made: dict[Sequence, list[int]] = {sequence: [] for sequence in wanted}
        states: dict[Sequence, F32] = {}
        for sequence in wanted:
            token, state = self._waiting[sequence].guess
            made[sequence].append(token)
            states[sequence] = state
        turn = 1
        while going := [sequence for sequence in wanted if wanted[sequence] > turn]:
            pairs = []
            for sequence in going:
                place = len(sequence.ids) - 2 + turn
                pairs.append(_Pairs(sequence, place, made[sequence][-1:], states[sequence]))
            for sequence, (token, state) in zip(going, self._run(pairs), strict=True):
                made[sequence].append(token)
                states[sequence] = state
            turn += 1
        return [Guess(made[s], "mtp") if s in made else NOTHING for s, _ in asked]

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
        """A step is over: runs the pairs that must not wait.

        These are a prompt's and those of whole blocks, which others may find from now on, and many.
        """
        size = self._cache.block_size
        due = []
        for sequence in sequences:
            waiting = self._waiting.get(sequence)
            if waiting is None or sequence.finish_reason is not None:
                continue
            ready = waiting.ready(sequence.ids)
            whole = waiting.begin // size < (waiting.begin + ready) // size
            if ready and (whole or sequence.completion_tokens <= 1):
                due.append(sequence)
        self._run_waiting(due)

    def _run_waiting(self, sequences: List[Sequence]) -> None:
        """Runs all pairs of these that can be run; at least one of each can."""
        if not sequences:
            return
        pairs = []
        for sequence in sequences:
            waiting = self._waiting[sequence]
            begin, ready = waiting.begin, waiting.ready(sequence.ids)
            ids = sequence.ids[begin + 1 : begin + 1 + ready]
            pairs.append(_Pairs(sequence, begin, ids, waiting.states[:ready]))
        for each, guess in zip(pairs, self._run(pairs), strict=True):
            self._waiting[each.sequence].drop(len(each.ids), guess)

    def _run(self, pairs: list[_Pairs]) -> list[tuple[int, F32]]:
        """What each sequence's last pair guesses, and its state [1, width]."""
        batch, given = _batch(pairs), np.concatenate([each.states for each in pairs])
        logits, states = self._backend.draft(self._cache, batch, given)
        tokens = np.argmax(logits, axis=1).tolist()
        return [(token, states[row : row + 1]) for row, token in enumerate(tokens)]


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
    """States of a sequence's tokens whose pairs are not run yet.

    begin: the token of the first. states: [tokens, width]. guess: what the pair before has guessed,
    and its state [1, width].
    """

    def __init__(self, states: F32) -> None:
        self.begin, self.states = 0, states
        self.guess: tuple[int, F32] = (0, states)

    @property
    def end(self) -> int:
        """Behind the token of the last."""
        return self.begin + len(self.states)

    def ready(self, ids: list[int]) -> int:
        """How many pairs can be run: their next token is known."""
        return max(0, min(self.end, len(ids) - 1) - self.begin)

    def add(self, begin: int, states: F32) -> None:
        """Takes states of tokens from `begin` on; those of wrong guesses there make room."""
        if self.begin <= begin <= self.end:
            self.states = np.concatenate([self.states[: begin - self.begin], states])
        else:  # rows between were found in the cache
            self.begin, self.states = begin, np.array(states)

    def drop(self, count: int, guess: tuple[int, F32]) -> None:
        """The first pairs have been run; the last of them has guessed this."""
        self.begin, self.states, self.guess = self.begin + count, self.states[count:], guess


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
