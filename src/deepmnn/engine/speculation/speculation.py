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

from deepmnn.backends.base import F32, Batch
from deepmnn.engine.kv_cache import BlockManager, BlockTable
from deepmnn.engine.scheduler import Span
from deepmnn.engine.sequence import Sequence
from deepmnn.engine.speculation.depth import Acceptance, Depth, Offer
from deepmnn.engine.speculation.drafter import NOTHING, Guess, Lookup, Reader
from deepmnn.engine.speculation.mtp import MtpDrafter

log = logging.getLogger("deepmnn")

_IDLE = 0.0015
"""Part of the time that may go into looking for guesses that do not pay: where steps are short, not
each of them is looked at."""

_OFTEN = 3.0
"""So many times as much where it seems likely that they do."""

_GLANCES = 0.001
"""Where nothing is looked for, the part of the time that goes into glances: whether a long piece
repeats. That lasts, so between two glances steps do nothing at all."""

_GLANCE = 4
"""There is one in so many steps, at most."""

_ASLEEP = 64
"""Steps in a row that do nothing, at most."""

_HORIZON = 2000
"""Steps that what was not looked for is saved up over: text changes."""

_PATIENCE = 8
"""Steps in a row that are looked at nevertheless, after guesses that seemed to pay."""


class Speculation:
    """Guesses for the sequences of a step, and learns what becomes of the guesses.

    Args:
        manager: of the cache that the guesses' rows are in.
        most_rows: rows of logits of one step.
        lookup: a drafter whose guesses cost nothing.
        model: one that takes time.
        depth: how many tokens are guessed.

    Attributes:
        drafting: seconds that guessing took in the last step.
    """

    def __init__(
        self,
        manager: BlockManager,
        most_rows: int,
        lookup: Lookup | None = None,
        model: Reader | None = None,
        depth: Depth | None = None,
    ) -> None:
        self.lookup, self.model = lookup, model
        self.depth = depth or Depth()
        self.drafting = 0.0
        self._manager, self._most_rows = manager, most_rows
        self._looked = False
        self._turns, self._proposing = 0, 0.0
        self._idle = self._elapsed = 0.0
        self._patience = self._turn = 0
        self._dozing, self._sleep, self._slept, self._last = False, 0, 0, 0.0
        self._rates: dict[str, Acceptance] = {}
        self._records: dict[Sequence, _Record] = {}

    def guess(self, spans: List[Span[Sequence]]) -> bool:
        """Adds guesses to the spans of a step, and reserves their rows.

        None beside prompts: what a step of theirs takes says nothing about rows. A drafter that
        fails is not asked again; the answers go on without.

        Returns whether there is something to `learn` from the step.
        """
        newest = spans[-1]  # prompts come last
        if self._sleep and newest.count == 1 and newest.table in self._records:
            self._sleep -= 1
            self._slept += 1
            return False
        self._looked, self._turns, self._proposing, self.drafting = False, 0, 0.0, 0.0
        resting = (
            self._patience <= 0 and self._idle > _IDLE * self._elapsed and not self.depth.eager
        )
        began, promising = perf_counter(), False
        looking = reading = False
        try:
            for span in spans:
                if span.table not in self._records:
                    self._follow(span.table)
            reading = self.model is not None and self.model.following
            looking = self._likely(spans) if resting else self.lookup is not None
            if (looking or reading) and all(span.count == 1 and span.rows for span in spans):
                self._looked = True
                promising = self._guess(spans, looking)
        except Exception:
            self._give_up()
            for span in spans:
                drop_guesses(span, self._manager)
        self.drafting = perf_counter() - began
        if promising:
            self._patience = _PATIENCE
        elif self._looked and not reading:
            self._patience -= 1
            self._idle += self.drafting
        self._dozing = not (looking or reading)
        return True

    def step(self, batch: Batch, spans: List[Span[BlockTable]]) -> F32 | None:
        """Runs a step in place of the backend, where the drafter wants more of it than logits."""
        model = self.model
        return (
            model.step(batch, spans) if isinstance(model, MtpDrafter) and model.following else None
        )

    def learn(self, spans: List[Span[Sequence]], seconds: float) -> None:
        """What has become of a step's guesses; seconds: that it took, without guessing."""
        passed = seconds + self._slept * self._last
        self._last, self._slept, self._sleep = seconds, 0, 0
        if self._dozing:
            steps = _ASLEEP if self.lookup is None else int(self.drafting / (_GLANCES * seconds))
            self._sleep = min(max(steps, _GLANCE - 1), _ASLEEP)
        self._elapsed += passed
        if self._elapsed > _HORIZON * seconds:
            self._elapsed /= 2
            self._idle /= 2
        if self._looked:
            for span in spans:
                record = self._records.get(span.table)
                if record is not None:
                    self._judge(record, span.table.ids)
            rows = sum([span.count for span in spans])
            kept = self.model.seconds if isinstance(self.model, MtpDrafter) else 0.0
            turns = 0 if self.model is None or self.model.read_tokens else self._turns
            asking = self.drafting - self._proposing
            self.depth.learn(rows, seconds - kept, asking, self._proposing, turns)
        if self.model is not None:
            if self.depth.economy is not None:
                self.depth.economy.elapse(passed + self.drafting)
            if self.model.following:
                try:
                    self._read(self.model, spans, seconds)
                except Exception:
                    self._drop(self.model)

    def forget(self, sequence: Sequence) -> None:
        """The sequence has ended."""
        known = self._records.pop(sequence, None)
        if known and self.depth.economy is not None:
            self.depth.economy.ended(sequence.completion_tokens)
        for drafter in (self.lookup, self.model):
            if drafter is not None:
                drafter.forget(sequence)

    def _read(self, model: Reader, spans: List[Span[Sequence]], seconds: float) -> None:
        """Has a step's tokens read, and asks whether that pays."""
        economy, spent = self.depth.economy, self.drafting
        if isinstance(model, MtpDrafter):
            model.ran([span.table for span in spans])
            if economy is not None:
                economy.read(model.prompt_tokens, model.prompt_seconds)
            spent += model.seconds
            model.seconds = model.prompt_seconds = 0.0
            model.prompt_tokens = 0
        if economy is None:
            return
        if self._turns and model.read_tokens:
            economy.read(model.read_tokens, self._proposing)
            spent -= self._proposing
        answers, costs = len(spans), self.depth.costs
        plain = costs.of(answers) if costs.largest else seconds
        tokens, saved = sum([bool(span.rows) and self._reads(span.table) for span in spans]), -spent
        guesses, gained = self._gained(spans)
        if guesses:
            saved += gained * plain / answers + plain - costs.of(answers + guesses)
        economy.book(saved, tokens + gained, plain)
        if not economy.pays:
            self._stop(model)

    def _gained(self, spans: List[Span[Sequence]]) -> tuple[int, int]:
        """(guesses of the model, those of them that were right) of a step."""
        guesses = gained = 0
        if self._turns:
            for span in spans:
                record = self._records.get(span.table)
                if record is not None and record.dear and span.guesses:
                    guesses += len(span.guesses)
                    gained += len(span.table.ids) - record.start - 1
        return guesses, gained

    def _reads(self, sequence: Sequence) -> bool:
        """Whether the model reads it."""
        record = self._records.get(sequence)
        return record is not None and record.followed

    def _stop(self, model: Reader) -> None:
        """The model reads no answer any more, until one comes that seems worth it: then its guesses
        are as good as any that nothing is known of.
        """
        for sequence, record in self._records.items():
            if record.followed:
                record.followed = False
                model.forget(sequence)
        for kind in model.kinds:
            self._rates.pop(kind, None)

    def _follow(self, sequence: Sequence) -> None:
        """A new sequence, or one that was preempted before it ran."""
        self._records[sequence] = record = _Record()
        if self.lookup is not None:
            self.lookup.follow(sequence)
        economy = self.depth.economy
        if self.model is not None and (economy is None or economy.follows(sequence.pending)):
            try:
                self.model.follow(sequence)
                record.followed = True
            except Exception:
                self._drop(self.model)

    def _likely(self, spans: List[Span[Sequence]]) -> bool:
        """Whether one of the answers, another one each time, repeats a long piece: that is seen at
        once, and is looked at where nothing else is. Not without end.
        """
        if self.lookup is None or self._idle > _OFTEN * _IDLE * self._elapsed:
            return False
        self._turn += 1
        return self.lookup.repeats(spans[self._turn % len(spans)].table)

    def _guess(self, spans: List[Span[Sequence]], looking: bool) -> bool:
        """Guesses for all; looking: also what was said before. Whether that seems to pay."""
        sequences = [span.table for span in spans]
        rooms = [self._room(sequence) for sequence in sequences]
        found = [NOTHING] * len(spans)
        if self.lookup is not None and looking:
            most = self.lookup.most
            found = self.lookup.propose(
                [(s, min(most, r)) for s, r in zip(sequences, rooms, strict=True)]
            )
        offers, floor = [], self.depth.floor(len(spans))
        for sequence, guess, room in zip(sequences, found, rooms, strict=True):
            record = self._records[sequence]
            record.start, record.dear = len(sequence.ids), False
            if guess.tokens:
                record.guesses.append(guess)
                if self._rate(record, guess.kinds[0]) < floor:
                    guess = NOTHING
            offers.append(self._offer(sequence, guess, room, len(spans)))
        if not any(offer.gains for offer in offers):
            return False
        depths = self.depth.choose(offers, self._most_rows)
        for index, span in enumerate(spans):
            if depths[index]:
                depths[index] = self._reserve(span.table, depths[index])
        self._propose(spans, found, offers, depths)
        return self.depth.promising

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
            made = self._ask(self.model, [(spans[i].table, depths[i]) for i in dear])
            for index, guess in zip(dear, made, strict=True):
                if guess.tokens:
                    found[index] = guess
                    record = self._records[spans[index].table]
                    record.dear = True
                    record.guesses.append(guess)
        for span, guess, depth in zip(spans, found, depths, strict=True):
            if depth and guess.tokens:
                span.guesses = list(guess.tokens[:depth])
                span.count = span.rows = 1 + len(span.guesses)
            elif depth:
                drop_guesses(span, self._manager)

    def _ask(self, model: Reader, asked: list[tuple[Sequence, int]]) -> list[Guess]:
        """What the model guesses."""
        began = perf_counter()
        try:
            made = model.propose(asked)
        except Exception:
            self._drop(model)
            made = [NOTHING] * len(asked)
        self._proposing = perf_counter() - began
        return made

    def _offer(self, sequence: Sequence, guess: Guess, room: int, answers: int) -> Offer:
        """The better one of what was looked up and what the model may guess."""
        record = self._records[sequence]
        free = Offer(self._gains(record, guess.kinds)) if guess.tokens else _NONE
        if self.model is None or not record.followed or room < 1:
            return free
        kinds = self.model.offer(sequence, min(self.model.most, room))
        if not kinds:
            return free
        dear = Offer(self._gains(record, kinds), dear=True)
        if not free.gains or self.depth.value(dear, answers) > self.depth.value(free, answers):
            return dear
        return free

    def _gains(self, record: _Record, kinds: List[str]) -> list[float]:
        """For each token of a guess, the chance that it and those before are right, here."""
        gains, chance, rate, last = [], 1.0, 0.0, ""
        for kind in kinds:
            if kind != last:
                rate, last = self._rate(record, kind), kind
            chance *= rate
            gains.append(chance)
        return gains

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

    def _judge(self, record: _Record, ids: list[int]) -> None:
        """Compares its guesses, whether they were run or not, with what has come."""
        for guess in record.guesses:
            for place, token, kind in zip(
                range(record.start, len(ids)), guess.tokens, guess.kinds, strict=False
            ):
                hit = ids[place] == token
                for rates in (record.rates, self._rates):
                    known = rates.get(kind)
                    if known is None:
                        known = rates[kind] = Acceptance()
                    known.add(hit)
                if not hit:
                    break
        record.guesses.clear()

    def _room(self, sequence: Sequence) -> int:
        """How many guesses could be right: one more token is drawn behind them."""
        return max(0, sequence.limit - len(sequence.ids) - 1)

    def _reserve(self, sequence: Sequence, guesses: int) -> int:
        """Makes their rows writable, as far as nobody has to make room; how many."""
        guesses = min(guesses, self._manager.room(sequence) - 1)
        if guesses > 0:
            self._manager.append(sequence, 1 + guesses)
        return max(0, guesses)

    def _drop(self, model: Reader) -> None:
        """An exception of the model is no answer's fault; look-ups go on."""
        log.warning("the drafter has failed, and is off from now on", exc_info=True)
        self.model, self._turns = None, 0
        for sequence, record in self._records.items():
            if record.followed:
                record.followed = False
                model.forget(sequence)

    def _give_up(self) -> None:
        """Nor is any other one."""
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

    guesses: of the step that runs, behind `start` tokens, whether they are run or not. followed:
    the model reads it. dear: it was asked for a guess of the step that runs.
    """

    rates: dict[str, Acceptance] = field(default_factory=dict)
    guesses: list[Guess] = field(default_factory=list)
    start: int = 0
    followed: bool = False
    dear: bool = False


_NONE = Offer([])
