"""How many tokens to guess ahead: as many as bring the most tokens a second, none where none pay.

A step that verifies m guesses of one answer gives 1 + a + a² + ... + a^m tokens on average, where a
is the chance that a guess is accepted after all before it were (Leviathan et al., arXiv:2211.17192,
section 3.3). What such a step costs is measured: by rows, for a matrix is read once for all of
them, but experts are not, and every row brings its own.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence as List
from dataclasses import dataclass, field
from functools import cache
from statistics import median

from deepmnn.engine.speculation.economy import Economy

_MARGIN = 1.03
"""Guessing must promise to be so much faster than not: less is the error of what is measured."""

_NEW_ROW = 0.1
"""What a row more is taken to cost before any was measured, as a part of a step's cost for a row:
nearly nothing, so that it is tried."""

_REACH = 1.5
"""Steps may have so many times the rows of the largest that was measured."""

_SAMPLES = 9
"""Steps of as many rows whose median counts."""

_SURE = 3
"""Fewer samples are not believed where they say that rows are dear."""

_STALE = 100
"""Steps after which of old samples only two are kept: two new ones are the median then."""

_ALIKE = 0.02
"""A median that has changed by less is the same: most steps change nothing of what is known."""

_OPEN = 32
"""One in so many guesses is thought over, likely or not."""

_DEEPEST = 8
"""Guesses of more tokens pay where those of so many do."""

_HORIZON = 2000
"""Steps that time for trials is saved up over: so much may be lost at once when text changes."""

_PROBES = 0.01

_MEMORY = 100.0
"""Guesses that a record of acceptance looks back on; older ones count less and less."""

_BELIEF = 12.0
"""So many guesses of one answer weigh as much as all that is known from other answers."""


@dataclass(slots=True)
class Acceptance:
    """How often one kind of guesses is right: decayed counts."""

    right: float = 0.0
    tried: float = 0.0

    def add(self, hit: bool) -> None:
        """Takes whether a guess was right; those behind a wrong one say nothing."""
        keep = 1.0 - 1.0 / _MEMORY
        self.right = self.right * keep + hit
        self.tried = self.tried * keep + 1

    def rate(self, prior: float, belief: float = _BELIEF) -> float:
        """The chance of the next one; prior: what is known otherwise."""
        return (self.right + belief * prior) / (self.tried + belief)


@dataclass(slots=True)
class Offer:
    """What can be guessed for one answer.

    gains: for each token, in order, the chance that it and all before it are right. dear: whether
    guessing itself takes time.
    """

    gains: List[float]
    dear: bool = False


@dataclass(slots=True)
class Costs:
    """Seconds of a step without prompts by its rows, all answers together.

    version: another one where something has changed.
    """

    version: int = 0
    _steps: int = 0
    _last: dict[int, int] = field(default_factory=dict)
    _samples: dict[int, deque[float]] = field(default_factory=dict)
    _known: list[int] = field(default_factory=list)
    _seconds: dict[int, float] = field(default_factory=dict)
    _asked: dict[int, float] = field(default_factory=dict)

    @property
    def largest(self) -> int:
        """The most rows that were measured; 0 before."""
        return self._known[-1] if self._known else 0

    def learn(self, rows: int, seconds: float) -> None:
        """What a step took."""
        samples = self._samples.get(rows)
        if samples is None:
            samples = self._samples[rows] = deque(maxlen=_SAMPLES)
            self._known.insert(bisect_left(self._known, rows), rows)
        self._steps += 1
        if self._steps - self._last.get(rows, self._steps) > _STALE:
            while len(samples) >= _SURE:
                samples.popleft()
        self._last[rows] = self._steps
        samples.append(seconds)
        known, found = self._seconds.get(rows), median(samples)
        if known is None or len(samples) <= _SURE or abs(found - known) > _ALIKE * known:
            self._seconds[rows] = found
            self._asked.clear()
            self.version += 1

    def of(self, rows: int) -> float:
        """What a step of so many rows takes, measured or reckoned from its neighbours."""
        found = self._asked.get(rows)
        if found is None:
            found = self._asked[rows] = self._of(rows)
        return found

    def _of(self, rows: int) -> float:
        measured = self._seconds.get(rows)
        if measured is not None and len(self._samples[rows]) >= _SURE:
            return measured
        reckoned = self._reckoned(rows)
        return reckoned if measured is None else min(measured, reckoned)

    def _reckoned(self, rows: int) -> float:
        """From other numbers of rows."""
        place = bisect_left(self._known, rows)
        below = self._known[place - 1] if place else None
        above = next((each for each in self._known[place:] if each > rows), None)
        if below is None:
            return self._seconds[rows if above is None else above]
        low = self._seconds[below]
        if above is not None:
            high = self._seconds[above]
            return low + max(0.0, high - low) * (rows - below) / (above - below)
        return low + self._slope(place - 1) * (rows - below)

    def _slope(self, last: int) -> float:
        """Seconds for each row more, beyond the known one at this place."""
        end = self._known[last]
        start = next((r for r in reversed(self._known[:last]) if 2 * r <= end), None)
        if start is None and last:
            start = self._known[0]
        if start is None:
            return _NEW_ROW * self._seconds[end] / end
        return max(0.0, self._seconds[end] - self._seconds[start]) / (end - start)


class Depth:
    """Decides for every step how many tokens are guessed for each answer in it.

    It learns: what steps cost by their rows, and what each token costs that a drafter guesses.

    probes: part of the time that may be lost with trying other numbers of guesses than seem best.

    Attributes:
        promising: whether guesses seemed to pay when it chose last.
        eager: whether each step is looked at, whatever that costs.
        economy: decides whether a drafter that takes time is kept; None keeps it.
    """

    def __init__(self, probes: float = _PROBES) -> None:
        self.costs = Costs()
        self.economy: Economy | None = Economy()
        self.promising = self.eager = False
        self._draft: float | None = None
        self._asking = 0.0
        self._total = 0.0
        self._probes = probes
        self._looks = 0
        self._floor = (0, 0), 0.0
        self._spent: dict[int, float] = {}

    def learn(self, rows: int, seconds: float, asking: float, drafting: float, turns: int) -> None:
        """What a step without prompts took.

        rows: of its answers and their guesses. asking: seconds in which it was decided what to
        guess. drafting: seconds in which a drafter ran `turns` times; 0 turns: nothing to learn.
        """
        self.costs.learn(rows, seconds)
        self._asking += 0.05 * (asking - self._asking)
        if turns:
            each = drafting / turns
            self._draft = each if self._draft is None else self._draft + 0.2 * (each - self._draft)
        self._total += seconds + asking + drafting
        if self._total > _HORIZON * seconds:
            self._total /= 2
            self._spent = {count: spent / 2 for count, spent in self._spent.items()}

    def choose(self, offers: List[Offer], most_rows: int) -> list[int]:
        """How many tokens to guess for each of the step's answers; most_rows: of the whole step.

        Guesses are dealt out one by one, the likeliest first; as many of them are taken as give
        the best rate. Now and then it is another number: what is known may be old, or too little.
        """
        answers = len(offers)
        if not self.costs.largest:
            return [0] * answers  # a plain step first, to compare with
        plan = _Plan(offers, most_rows - answers)
        if not plan.dealt:
            return [0] * answers
        reach = max(answers, self.costs.largest)
        reach = min(max(reach + 1, int(reach * _REACH)) - answers, len(plan.dealt))
        seconds = [self.costs.of(answers + count) for count in range(1 + reach)]
        each = self._draft_seconds(answers)
        plain = answers / seconds[0]
        best, taken, turns = plan.best(seconds, each, plain * _MARGIN)
        self.promising = taken > 0 and (
            plan.tokens(taken) > plain * (seconds[taken] + turns * each + self._asking)
        )
        probe = self._probe(plan, taken, each, best)
        return plan.depths(taken, turns) if probe is None else plan.depths(probe, None)

    def floor(self, answers: int) -> float:
        """The least chance of being right with which a guess that takes no time may pay, for one of
        so many answers. Now and then it is 0: what is known may be old.
        """
        self._looks += 1
        if self._looks % _OPEN == 0 or not self.costs.largest:
            return 0.0
        if self._floor[0] != (answers, self.costs.version):
            costs, plain = self.costs, answers / self.costs.of(answers) * _MARGIN
            for percent in range(100):
                tokens, gain = float(answers), 1.0
                for depth in range(1, _DEEPEST + 1):
                    gain *= percent / 100
                    tokens += gain
                    if tokens > plain * costs.of(answers + depth):
                        break
                else:
                    continue
                break
            self._floor = (answers, costs.version), percent / 100
        return self._floor[1]

    def _probe(self, plan: _Plan, taken: int, each: float, best: float) -> int | None:
        """A number of guesses to be tried; None where it is too early for that.

        taken: the number that seems best, of as many tokens a second. each: of the drafter's turns.
        """
        trials = _trials(len(plan.dealt))
        allowed = self._probes * self._total / len(trials)
        least = 0.1 * self.costs.of(plan.answers) / plan.answers  # for who knows what it loses
        for count in trials:
            spent = self._spent.get(count, 0.0)
            if count == taken or spent + least > allowed:
                continue
            seconds = self.costs.of(plan.answers + count) + plan.turns(count) * each
            spent += max(seconds - plan.tokens(count) / best, least)
            if spent <= allowed:
                self._spent[count] = spent
                return count
        return None

    def value(self, offer: Offer, answers: int) -> float:
        """Tokens a second at most, where one of so many answers gets guesses."""
        costs = self.costs
        if not costs.largest:
            return sum(offer.gains)
        each = self._draft_seconds(answers) if offer.dear else 0.0
        tokens, best = float(answers), 0.0
        for depth, gain in enumerate(offer.gains, 1):
            tokens += gain
            best = max(best, tokens / (costs.of(answers + depth) + each * depth))
        return best

    def _draft_seconds(self, answers: int) -> float:
        """What one turn of the drafter takes."""
        if self._draft is None:
            return _NEW_ROW * self.costs.of(answers)
        return self._draft


class _Plan:
    """Guesses dealt out to the answers of a step one by one, the likeliest first.

    most: guesses.
    """

    def __init__(self, offers: List[Offer], most: int) -> None:
        self.answers = len(offers)
        self._dear = [offer.dear for offer in offers]
        self.dealt = sorted(
            (-gain, depth, index)
            for index, offer in enumerate(offers)
            for depth, gain in enumerate(offer.gains)
        )[: max(0, most)]

    def best(self, seconds: List[float], each: float, rate: float) -> tuple[float, int, int]:
        """(tokens a second, guesses, the drafter's turns) of the best plan.

        seconds: of steps, by guesses, as many as may be taken. each: of a turn of the drafter.
        rate: to be beaten.
        """
        taken = turns = 0
        reach = len(seconds) - 1
        deepest = self.turns(len(self.dealt))
        for most in range(deepest + 1):
            tokens, count = float(self.answers), 0
            drafting = most * each
            for gain, depth, index in self.dealt:
                if depth >= most and self._dear[index]:
                    continue
                count += 1
                if count > reach:
                    break
                tokens -= gain
                found = tokens / (seconds[count] + drafting)
                if found > rate:
                    rate, taken, turns = found, count, most
        return rate, taken, turns

    def tokens(self, count: int) -> float:
        """How many come of a step with the first so many guesses, on average."""
        return self.answers - sum([gain for gain, _, _ in self.dealt[:count]])

    def turns(self, count: int) -> int:
        """How often the drafter runs for them."""
        depths = [depth + 1 for _, depth, index in self.dealt[:count] if self._dear[index]]
        return max(depths, default=0)

    def depths(self, count: int, turns: int | None) -> list[int]:
        """The first so many by answer; turns: of the drafter at most."""
        depths = [0] * self.answers
        for _, depth, index in self.dealt:
            if count and (turns is None or depth < turns or not self._dear[index]):
                depths[index] = depth + 1
                count -= 1
        return depths


@cache
def _trials(most: int) -> tuple[int, ...]:
    """Numbers of guesses that are tried: the most, ..., 4, 2, 1, 0; dear ones are due seldom."""
    numbers = {most, 0, *(1 << power for power in range(most.bit_length()))}
    return tuple(sorted(numbers, reverse=True))


class Fixed(Depth):
    """As many as are offered, at most `depth`, whatever they cost: to measure, and for tests."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.depth, self.economy, self.eager = depth, None, True

    def choose(self, offers: List[Offer], most_rows: int) -> list[int]:
        """How many tokens to guess for each answer."""
        room, depths = most_rows - len(offers), []
        for offer in offers:
            depths.append(max(0, min(self.depth, len(offer.gains), room)))
            room -= depths[-1]
        return depths

    def floor(self, answers: int) -> float:
        """Any guess is taken."""
        return 0.0
