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
from dataclasses import dataclass, field, replace
from time import perf_counter

import numpy as np

from deepmnn.backends.base import F32, I32, Backend, Batch, Cache
from deepmnn.engine.batch import Part, batch_of
from deepmnn.engine.kv_cache import BlockTable
from deepmnn.engine.scheduler import Span
from deepmnn.engine.sequence import Sequence
from deepmnn.engine.speculation.drafter import NOTHING, Guess

_FIRST, _FURTHER = 0.7, 0.5
"""Draft parts are trained for one token. Chained they are right less often, and how often depends
on how they were trained: so each place has a kind of its own."""


class MtpDrafter:
    """Runs the draft part behind the main one. Its guesses are its likeliest tokens.

    Every pair of a sequence that it follows is run once: those of a prompt, and of a block that is
    whole, at the end of the step, all others when a guess is wanted. Rows that were found in the
    cache should have theirs there. Where they have not, guesses are a little worse, and nothing
    else: the last row of a block may be of another sequence, which went on with another token;
    sequences that it did not follow have none, nor have rows that a `Session` has run.

    Args:
        backend, cache: of the main part.
        most: tokens guessed at a time.

    Attributes:
        seconds: that it took to keep states, and for pairs of whole blocks; who asks sets it to 0.
        prompt_seconds, prompt_tokens: the same of the pairs of prompts.
    """

    def __init__(self, backend: Backend, cache: Cache, most: int) -> None:
        self.most = most
        self.kinds: Mapping[str, float] = {
            f"mtp-{place}": _FIRST if place == 1 else _FURTHER for place in range(1, most + 1)
        }
        self._kinds = list(self.kinds)
        self.read_tokens = self.prompt_tokens = 0
        self.seconds = self.prompt_seconds = 0.0
        self._backend, self._cache = backend, cache
        self._state = backend.draft_state or ""
        self._waiting: dict[Sequence, _Waiting] = {}

    @property
    def following(self) -> bool:
        """See `Reader`."""
        return bool(self._waiting)

    def offer(self, sequence: Sequence, most: int) -> List[str]:
        """See `Reader`."""
        return self._kinds[:most] if self._waiting[sequence].seen(sequence.ids) else ()

    def follow(self, sequence: Sequence) -> None:
        """Keeps the states of its tokens from now on."""
        self._waiting[sequence] = _Waiting()

    def propose(self, asked: List[tuple[Sequence, int]]) -> list[Guess]:
        """See `Drafter`. Their rows are reserved in the cache, as many as tokens are wanted."""
        wanted: dict[Sequence, int] = {}
        late, self.read_tokens = [], 0
        for sequence, count in asked:
            waiting = self._waiting[sequence]
            if not waiting.seen(sequence.ids):
                continue
            wanted[sequence] = min(count, self.most)
            ready = waiting.ready(sequence.ids)
            if ready:
                late.append(sequence)
            if ready > 2 + self.most:
                self.read_tokens += ready
        self._run_waiting(late)
        made: dict[Sequence, list[int]] = {}
        states: dict[Sequence, F32] = {}
        for sequence in wanted:
            token, states[sequence] = self._waiting[sequence].guess
            made[sequence] = [token]
        turn = 1
        while going := [sequence for sequence, count in wanted.items() if count > turn]:
            parts: list[Part] = [(made[s][-1:], len(s.ids) - 2 + turn, s.blocks, 1) for s in going]
            given = self._run(parts, [states[sequence] for sequence in going])
            for sequence, (token, state) in zip(going, given, strict=True):
                made[sequence].append(token)
                states[sequence] = state
            turn += 1
        return [
            Guess(made[s], self._kinds[: len(made[s])]) if s in made else NOTHING for s, _ in asked
        ]

    def forget(self, sequence: Sequence) -> None:
        """Drops the states that wait."""
        self._waiting.pop(sequence, None)

    def step(self, batch: Batch, spans: List[Span[BlockTable]]) -> F32:
        """A step of the main part; keeps the states of its tokens. Logits [rows, vocab_size]."""
        began = perf_counter()
        found = [self._waiting.get(span.table) for span in spans]  # type: ignore[call-overload]
        pairs = list(zip(spans, found, strict=True))
        counts = [span.rows if waiting is None else span.count for span, waiting in pairs]
        more = sum(counts) > len(batch.logit_rows)  # than the step needs: of prompts
        if more:
            batch = replace(batch, logit_rows=_last_rows(spans, counts))
        begun = perf_counter()
        given = self._backend.run(self._cache, batch)
        ended = perf_counter()
        states, logits, end = given[self._state], given["logits"], 0
        for (span, waiting), count in zip(pairs, counts, strict=True):
            begin, end = end, end + count
            if waiting is not None:
                waiting.add(span.table.length, states[begin:end])
        if more:
            logits = logits[_kept_rows(spans, counts)]
        self.seconds += begun - began + perf_counter() - ended
        return logits

    def ran(self, sequences: List[Sequence]) -> None:
        """A step is over: runs the pairs that must not wait.

        These are a prompt's and those of whole blocks, which others may find from now on, and many.
        """
        began, size = perf_counter(), self._cache.block_size
        due, prompts = [], 0
        for sequence in sequences:
            waiting = self._waiting.get(sequence)
            if waiting is None or sequence.finish_reason is not None:
                continue
            ready = waiting.ready(sequence.ids)
            if not ready:
                continue
            if sequence.completion_tokens <= 1:
                prompts += ready
                due.append(sequence)
            elif waiting.begin // size < (waiting.begin + ready) // size:
                due.append(sequence)
        if due:
            self._run_waiting(due)
        seconds = perf_counter() - began
        if prompts:
            self.prompt_seconds += seconds
            self.prompt_tokens += prompts
        else:
            self.seconds += seconds

    def _run_waiting(self, sequences: List[Sequence]) -> None:
        """Runs all pairs of these that can be run; at least one of each can."""
        if not sequences:
            return
        parts: list[Part] = []
        states: list[F32] = []
        for sequence in sequences:
            waiting = self._waiting[sequence]
            begin, ready = waiting.begin, waiting.ready(sequence.ids)
            ids = sequence.ids[begin + 1 : begin + 1 + ready]
            parts.append((ids, begin, sequence.blocks, 1))
            states += waiting.take(ready)
        for sequence, guess in zip(sequences, self._run(parts, states), strict=True):
            self._waiting[sequence].guess = guess

    def _run(self, parts: list[Part], states: list[F32]) -> list[tuple[int, F32]]:
        """What each sequence's last pair guesses, and its state [1, width]."""
        given = states[0] if len(states) == 1 else np.concatenate(states)
        logits, after = self._backend.draft(self._cache, batch_of(parts), given)
        tokens = logits.argmax(axis=1).tolist()
        return [(token, after[row : row + 1]) for row, token in enumerate(tokens)]


def _last_rows(spans: List[Span[BlockTable]], counts: List[int]) -> I32:
    """Of each span's tokens so many, the last ones: their places in the step."""
    rows: list[int] = []
    end = 0
    for span, count in zip(spans, counts, strict=True):
        end += span.count
        rows += range(end - count, end)
    return np.array(rows, np.int32)


def _kept_rows(spans: List[Span[BlockTable]], counts: List[int]) -> list[int]:
    """Of so many rows for each span those that the step asks for: the last ones."""
    rows: list[int] = []
    end = 0
    for span, count in zip(spans, counts, strict=True):
        end += count
        rows += range(end - span.rows, end)
    return rows


@dataclass(slots=True)
class _Waiting:
    """States of a sequence's tokens whose pairs are not run yet.

    begin: the token of the first; end: behind that of the last. states: one after the other, each
    [tokens, width]. guess: what the pair before has guessed, and its state [1, width].
    """

    begin: int = 0
    end: int = 0
    states: list[F32] = field(default_factory=list)
    guess: tuple[int, F32] = (0, np.zeros((1, 0), np.float32))

    def seen(self, ids: List[int]) -> bool:
        """Whether the last step was seen: the next guess begins with its state. Behind that there
        may be states of guesses that were wrong.
        """
        return self.end >= len(ids) - 1

    def ready(self, ids: List[int]) -> int:
        """How many pairs can be run: their next token is known."""
        return max(0, min(self.end, len(ids) - 1) - self.begin)

    def add(self, begin: int, states: F32) -> None:
        """Takes states of tokens from `begin` on; those of wrong guesses there make room."""
        if self.begin <= begin <= self.end:
            self._keep(begin - self.begin)
        else:  # rows between were found in the cache
            self.states, self.begin = [], begin
        self.states.append(states)
        self.end = begin + len(states)

    def take(self, count: int) -> list[F32]:
        """The first so many, which wait no longer."""
        taken: list[F32] = []
        self.begin += count
        while count:
            first = self.states[0]
            if len(first) <= count:
                taken.append(self.states.pop(0))
                count -= len(first)
            else:
                taken.append(first[:count])
                self.states[0] = first[count:].copy()  # lets go of the rest
                count = 0
        return taken

    def _keep(self, count: int) -> None:
        """The first so many alone."""
        extra = self.end - self.begin - count
        while extra:
            last = self.states.pop()
            if len(last) > extra:
                self.states.append(last[:-extra])
            extra -= min(extra, len(last))
