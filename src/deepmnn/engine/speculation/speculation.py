"""Guessing ahead: several tokens of an answer in one step of the model.

Before a step some sequences get guesses of their next tokens; the step runs these as if they were
real, and so gives the logits behind each of them. Then the engine draws tokens as ever, in order:
from the row behind the last real token, and as long as what is drawn is what was guessed, from the
next row. What is drawn is drawn from the model's own distribution, with the sequence's own random
numbers, penalties and grammar: the answer is the one that it would be without guesses, sampled or
not. The rows of wrong guesses are dropped.

Rejection sampling (Leviathan et al., arXiv:2211.17192; Chen et al., arXiv:2302.01318) accepts a
guess x with min(1, p(x) / q(x)). A drafter that guesses its likeliest token has q(x) = 1, and so
the guess is accepted with p(x): as often as here, where it is accepted when x is drawn from p. No
drafter of ours guesses at random, which is where that scheme accepts more.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence as List
from dataclasses import dataclass, field
from time import perf_counter
from weakref import WeakKeyDictionary

from deepmnn.backends.base import F32, Batch
from deepmnn.engine.kv_cache import BlockManager, BlockTable
from deepmnn.engine.scheduler import Span
from deepmnn.engine.sequence import Sequence
from deepmnn.engine.speculation.depth import Acceptance, Depth, Offer
from deepmnn.engine.speculation.drafter import NOTHING, Drafter, Guess
from deepmnn.engine.speculation.mtp import MtpDrafter

log = logging.getLogger("deepmnn")

_IDLE = 0.005
"""Part of the time that may go into looking for guesses that do not pay: where steps are short, not
each of them is looked at."""

_PATIENCE = 8
"""Steps in a row that are looked at nevertheless, after guesses that seemed to pay."""


class Speculation:
    """Guesses for the sequences of a step, and learns what becomes of the guesses.

    Args:
        manager: of the cache that the guesses' rows are in.
        most_rows: rows of logits of one step.
        lookup: a drafter whose guesses cost nothing.
        model: one whose guesses take time.
        depth: how many tokens are guessed.

    Attributes:
        drafting: seconds that guessing took in the last step.
    """

    def __init__(
        self,
        manager: BlockManager,
        most_rows: int,
        lookup: Drafter | None = None,
        model: Drafter | None = None,
        depth: Depth | None = None,
    ) -> None:
        self.lookup, self.model = lookup, model
        self.depth = depth or Depth()
        self.drafting = 0.0
        self._manager, self._most_rows = manager, most_rows
        self._turns = 0
        self._idle = self._elapsed = 0.0
        self._patience = 0
        self._rates: dict[str, Acceptance] = {}
        self._records: WeakKeyDictionary[Sequence, _Record] = WeakKeyDictionary()

    def guess(self, spans: List[Span[Sequence]]) -> None:
        """Adds guesses to the spans of a step, and reserves their rows.

        None beside prompts: what a step of theirs takes says nothing about rows. A drafter that
        fails is not asked again; the answers go on without.
        """
        began = perf_counter()
        self._turns, self.drafting = 0, 0.0
        if self._patience <= 0 and self._idle > _IDLE * self._elapsed:
            return
        if all(span.count == 1 and span.rows for span in spans):
            try:
                self._guess(spans)
            except Exception:
                self._give_up()
                for span in spans:
                    drop_guesses(span, self._manager)
        self.drafting = perf_counter() - began
        if self.depth.promising:
            self._patience = _PATIENCE
        else:
            self._patience -= 1
            self._idle += self.drafting

    def step(self, batch: Batch, spans: List[Span[BlockTable]]) -> F32 | None:
        """Runs a step in place of the backend, where the drafter wants more of it than logits."""
        return self.model.step(batch, spans) if isinstance(self.model, MtpDrafter) else None

    def learn(self, spans: List[Span[Sequence]], seconds: float) -> None:
        """What has become of a step's guesses; seconds: that it took, without guessing."""
        self._elapsed += seconds
        rows = sum([span.count for span in spans])
        if all(span.rows == span.count for span in spans):
            self.depth.learn(len(spans), rows, seconds, self.drafting, self._turns)
        for span in spans:
            record = self._records.get(span.table)
            if record is not None:
                for guess in record.guesses:
                    self._judge(record, guess, span.table.ids)
                record.guesses.clear()
        if isinstance(self.model, MtpDrafter):
            try:
                self.model.ran([span.table for span in spans])
            except Exception:
                self._give_up()

    def forget(self, sequence: Sequence) -> None:
        """The sequence has ended."""
        self._records.pop(sequence, None)
        for drafter in (self.lookup, self.model):
            if drafter is not None:
                drafter.forget(sequence)

    def _guess(self, spans: List[Span[Sequence]]) -> None:
        sequences = [span.table for span in spans]
        rooms = [self._room(sequence) for sequence in sequences]
        found = [NOTHING] * len(spans)
        if self.lookup is not None:
            most = self.lookup.most
            found = self.lookup.propose(
                [(s, min(most, r)) for s, r in zip(sequences, rooms, strict=True)]
            )
        offers = []
        for sequence, guess, room in zip(sequences, found, rooms, strict=True):
            record = self._records.get(sequence)
            if record is None:
                record = self._records[sequence] = _Record()
            record.start = len(sequence.ids)
            if guess.tokens:
                record.guesses.append(guess)
            offers.append(self._offer(record, guess, room, len(spans)))
        if not any(offer.most for offer in offers):
            return
        depths = self.depth.choose(offers, self._most_rows)
        for index, span in enumerate(spans):
            if depths[index]:
                depths[index] = self._reserve(span.table, depths[index])
        self._propose(spans, found, offers, depths)

    def _propose(
        self,
        spans: List[Span[Sequence]],
        found: list[Guess],
        offers: list[Offer],
        depths: list[int],
    ) -> None:
        """Gives the spans their guesses; those of the model are made now."""
        dear = [i for i, offer in enumerate(offers) if offer.dear and depths[i]]
        if dear and self.model is not None:
            self._turns = max([depths[i] for i in dear])
            made = self.model.propose([(spans[i].table, depths[i]) for i in dear])
            for index, guess in zip(dear, made, strict=True):
                found[index] = guess
                if guess.tokens:
                    self._records[spans[index].table].guesses.append(guess)
        for span, guess, depth in zip(spans, found, depths, strict=True):
            if depth and guess.tokens:
                span.guesses = list(guess.tokens[:depth])
                span.count = span.rows = 1 + len(span.guesses)

    def _offer(self, record: _Record, guess: Guess, room: int, answers: int) -> Offer:
        """The better one of what was looked up and what the model may guess."""
        free = Offer(self._rate(record, guess.kind), len(guess.tokens)) if guess.tokens else _NONE
        if self.model is None or room < 1:
            return free
        [kind] = self.model.kinds
        dear = Offer(self._rate(record, kind), min(self.model.most, room), dear=True)
        if not free.most or self.depth.value(dear, answers) > self.depth.value(free, answers):
            return dear
        return free

    def _rate(self, record: _Record, kind: str) -> float:
        """The chance that a guess of this kind is right, in this answer."""
        known = self._rates.get(kind)
        prior = self._prior(kind)
        if known is not None:
            prior = known.rate(prior)
        mine = record.rates.get(kind)
        return prior if mine is None else mine.rate(prior)

    def _prior(self, kind: str) -> float:
        for drafter in (self.lookup, self.model):
            if drafter is not None and kind in drafter.kinds:
                return drafter.kinds[kind]
        return 0.0

    def _judge(self, record: _Record, guess: Guess, ids: list[int]) -> None:
        """Compares a guess, whether it was run or not, with what has come."""
        came = ids[record.start : record.start + len(guess.tokens)]
        right = 0
        while right < len(came) and came[right] == guess.tokens[right]:
            right += 1
        wrong = int(right < len(came))
        for rates in (record.rates, self._rates):
            rates.setdefault(guess.kind, Acceptance()).add(right, wrong)

    def _room(self, sequence: Sequence) -> int:
        """How many guesses could be right: one more token is drawn behind them."""
        return max(0, sequence.limit - len(sequence.ids) - 1)

    def _reserve(self, sequence: Sequence, guesses: int) -> int:
        """Makes their rows writable, as far as nobody has to make room; how many."""
        guesses = min(guesses, self._manager.room(sequence) - 1)
        if guesses > 0:
            self._manager.append(sequence, 1 + guesses)
        return max(0, guesses)

    def _give_up(self) -> None:
        """An exception of a drafter is no answer's fault."""
        log.warning("guessing ahead has failed, and is off from now on", exc_info=True)
        self.lookup = self.model = None
        self._turns = 0
        for record in self._records.values():
            record.guesses.clear()


def drop_guesses(span: Span[Sequence], manager: BlockManager) -> None:
    """The span without guesses, its sequence without the blocks reserved for them."""
    sequence = span.table
    span.count, span.rows, span.guesses = span.known, min(span.rows, 1), []
    manager.rollback(sequence, sequence.length)
    manager.append(sequence, span.count)


@dataclass(slots=True)
class _Record:
    """What is known of the guesses for one sequence.

    guesses: of the step that runs, behind `start` tokens, whether they are run or not.
    """

    rates: dict[str, Acceptance] = field(default_factory=dict)
    guesses: list[Guess] = field(default_factory=list)
    start: int = 0


_NONE = Offer(0.0, 0)
