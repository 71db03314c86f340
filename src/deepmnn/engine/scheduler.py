"""Which tokens run in the next step: continuous batching."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence as List
from dataclasses import dataclass
from typing import Generic, TypeVar

from deepmnn.engine.kv_cache import BlockManager, BlockTable, cache_is_full
from deepmnn.engine.pace import Pace
from deepmnn.engine.sequence import Sequence

Table = TypeVar("Table", bound=BlockTable, covariant=True)


@dataclass(slots=True)  # frozen, one would take three times as long to make
class Span(Generic[Table]):
    """The next `count` tokens of a sequence, to be run in this step.

    rows: the logits of how many of them are wanted, the last ones: 0 in the middle of a prompt, 1
    to choose the next token, several to verify tokens that were guessed ahead. guesses: these; they
    stand behind the sequence's own tokens, and count among the `count`.
    """

    table: Table
    count: int
    rows: int
    guesses: List[int] = ()

    @property
    def known(self) -> int:
        """How many of the tokens are the sequence's own."""
        return self.count - len(self.guesses)


class Scheduler:
    """Decodes first, then prefills in spans, at most max_batch_tokens in a step.

    Sequences that share a prompt (`Sequence.leader`) wait until one of them has prefilled it, and
    take its rows then. When blocks run out and there is a disk for them, tables at rest (`rest`)
    are parked, the one that has rested longest first. Where that is not enough, the youngest
    sequence gives its blocks back. It is parked, too; without a disk it is run again later
    ("preemption by recompute"), and its prefix may still be in the cache by then.

    pace: bounds the prompt tokens that run beside answers; None leaves it at max_batch_tokens.
    """

    def __init__(self, manager: BlockManager, max_batch_tokens: int, max_sequences: int) -> None:
        self.manager = manager
        self.max_batch_tokens = max_batch_tokens
        self.max_sequences = min(max_sequences, max_batch_tokens)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.pace: Pace | None = None
        self._resting: dict[BlockTable, None] = {}

    @property
    def busy(self) -> bool:
        """Whether any sequence is unfinished."""
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        """Queues a new sequence."""
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out, finished or not, and frees its blocks."""
        if sequence in self.running:
            self.running.remove(sequence)
            self.manager.free(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
            self.manager.free(sequence)

    def rest(self, table: BlockTable) -> None:
        """Says that a table driven from outside has run: until `resume` it may be parked."""
        self._resting.pop(table, None)
        self._resting[table] = None

    def resume(self, table: BlockTable) -> None:
        """Brings the rows of a table at rest back; rows that were lost are pending again.

        Others make room, as for `make_room`. Raises ContextLengthError when the cache is full even
        so; the table stays parked.
        """
        self._resting.pop(table, None)
        while self.manager.missing(table) > self.manager.free_blocks:
            if not self._make_way():
                raise cache_is_full(self.manager)
        self.manager.unpark(table)

    def drop(self, table: BlockTable) -> None:
        """Frees the rows of a table that was at rest."""
        self._resting.pop(table, None)
        self.manager.free(table)

    def schedule(self) -> list[Span[Sequence]]:
        """The next step's spans, their cache rows reserved. Empty when no sequence can run."""
        while True:
            spans = self._decodes()
            budget = self.max_batch_tokens - len(spans)
            if spans and self.pace is not None:
                budget = self.pace.prompt_tokens(budget, len(spans), self._prompts(len(spans)))
            spans += self._prefills(budget)
            if spans or len(self.running) < 2:
                return spans
            self._preempt()

    def learn(self, seconds: float, prompt_tokens: int, answers: int) -> None:
        """What a step took, for the pace."""
        if self.pace is not None and answers:
            self.pace.learn(seconds, prompt_tokens)

    def make_room(self, table: BlockTable, count: int) -> None:
        """Makes `count` more rows of a table that is driven from outside writable.

        Tables at rest give way, then running sequences, the youngest first: they can wait, the
        table's driver cannot. Raises ContextLengthError when the cache is full even so.
        """
        while not self.manager.can_append(table, count) and self._make_way():
            pass
        self.manager.append(table, count)

    def _decodes(self) -> list[Span[Sequence]]:
        """One token for every sequence that has just got one, oldest first."""
        spans = []
        for sequence in list(self.running):
            if sequence.pending != 1 or sequence not in self.running:
                continue
            while not (fits := self.manager.can_append(sequence, 1)):
                if self._park():
                    continue
                if self.running[-1] is sequence:
                    break
                self._preempt()
            if fits:
                self.manager.append(sequence, 1)
                spans.append(Span(sequence, 1, 1))
        return spans

    def _prefills(self, budget: int) -> list[Span[Sequence]]:
        """As many prompt tokens as fit: started prompts first, then new ones."""
        spans = []
        for sequence in self.running:
            if sequence.pending > 1:
                count = self._fitting(sequence, budget)
                if count > 0:
                    spans.append(self._prefill(sequence, count))
                    budget -= count
        while budget > 0 and self.waiting and len(self.running) < self.max_sequences:
            joining = next((s for s in self.waiting if not self._awaits_prompt(s)), None)
            if joining is None:
                break
            if not self._admits(joining):
                break
            shared = self._share(joining)
            count = self._fitting(joining, budget)
            if count <= 0:
                self.manager.free(joining)
                break
            if not joining.preemptions:
                joining.cached_tokens = shared
            self.waiting.remove(joining)
            self.running.append(joining)
            joining.scheduled = joining.scheduled or time.perf_counter()
            spans.append(self._prefill(joining, count))
            budget -= count
        return spans

    def _admits(self, joining: Sequence) -> bool:
        """Whether a sequence may join the running ones.

        Each of them keeps a block to grow into, or one would be preempted at once, and has places
        for its recent rows until it ends. What was parked comes back whole.
        """
        others = len(self.running)
        if others and not self._have_places([*self.running, joining]):
            return False
        needed = self.manager.missing(joining) + (others + 1 if others else 0)
        while self.manager.free_blocks < needed:
            if not self._park():
                return False
        return True

    def _have_places(self, sequences: List[Sequence]) -> bool:
        """Whether there are places for the recent rows of all of them, wherever each one is.

        What a prompt needs beyond that is nobody's: it takes what is left in a step, and gives it
        back at the end.
        """
        recent = self.manager.recent
        if recent is None:
            return True
        needed = {s.blocks[index] for s in sequences for index in s.recent}
        ends = [max(len(s.ids), s.limit - 1) for s in sequences]
        most = [recent.most(s.length, end) for s, end in zip(sequences, ends, strict=True)]
        return sum(most) <= recent.free + len(needed)

    def _fitting(self, sequence: Sequence, most: int) -> int:
        """How many of its pending tokens can run now, at most `most`; tables at rest make room."""
        count = min(sequence.pending, most)
        while count > 0 and (room := self.manager.room(sequence)) < count:
            if not self._park():
                return room
        return count

    def _prompts(self, answers: int) -> int:
        """How many prompts could be read now, beside so many running answers."""
        places = self.max_sequences - len(self.running)
        return len(self.running) - answers + min(places, len(self.waiting))

    def _prefill(self, sequence: Sequence, count: int) -> Span[Sequence]:
        self.manager.append(sequence, count)
        return Span(sequence, count, rows=int(count == sequence.pending))

    def _awaits_prompt(self, sequence: Sequence) -> bool:
        """Whether another sequence is prefilling this one's prompt."""
        leader = sequence.leader
        if leader is None or leader.length >= leader.prompt_tokens:
            return False
        return leader in self.running

    def _share(self, sequence: Sequence) -> int:
        """Gives a sequence the rows of its prompt that are in the cache; returns how many.

        One that was parked gets its own back.
        """
        if sequence.parked is not None:
            self.manager.unpark(sequence)
            return sequence.length
        leader = sequence.leader
        if leader is not None and leader in self.running and not sequence.completion_tokens:
            return self.manager.fork(leader, sequence)
        return self.manager.share_prefix(sequence)

    def _preempt(self) -> None:
        sequence = self.running.pop()
        if not self.manager.park(sequence):
            self.manager.free(sequence)
        sequence.preemptions += 1
        self.waiting.appendleft(sequence)

    def _make_way(self) -> bool:
        """Frees some blocks for a table that is driven from outside; False when nobody has any."""
        if self._park():
            return True
        if self.running:
            self._preempt()
            return True
        return False

    def _park(self) -> bool:
        """Parks the table that has rested longest, of those that can be."""
        if self.manager.disk is None:
            return False
        return any(bool(table.blocks) and self.manager.park(table) for table in self._resting)
