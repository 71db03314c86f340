"""Whether a drafter that takes time pays: it must read what it guesses from, wanted or not."""

from __future__ import annotations

_CREDIT = 4.0
"""Steps' time that it may lose before it is given up: what is measured errs."""

_ANSWER = 128.0
"""Tokens that answers are taken to have before any has ended."""

_KNOWN = 32.0
"""Fewer tokens of answers say nothing about what it saves."""

_MEMORY = 1000.0
"""Tokens that what it saves is learned from; older ones count half."""


class Economy:
    """The seconds that a drafter saves, and those that it takes.

    Reading along with answers, it may lose a part of the time; who loses more is given up. Reading
    a new prompt is an investment: it is made where guesses are thought to save more in the answer,
    else as a trial, now and then.

    part: of the time that may be lost to either.

    Attributes:
        pays: False after it was given up, until something is followed again.
    """

    def __init__(self, part: float = 0.003) -> None:
        self.pays = True
        self._part = part
        self._balance = self._budget = self._step = 0.0
        self._saved = self._tokens = 0.0
        self._read_seconds = self._read_tokens = 0.0
        self._answer = _ANSWER

    def follows(self, prompt_tokens: int) -> bool:
        """Whether a new sequence shall be read, so many tokens of which are to be run."""
        reading = prompt_tokens * self._read_seconds / max(1.0, self._read_tokens)
        if self._tokens >= _KNOWN:
            gain, trial = self._answer * self._saved / self._tokens, _CREDIT * self._step
            if not self.pays or gain <= 0 or gain < reading:
                self._budget = min(self._budget, 2 * (reading + trial))
                price = reading if self.pays else reading + trial  # one that runs is paid for
                if self._budget < price:
                    return False
                self._budget -= price
        self.pays = True
        return True

    def elapse(self, seconds: float) -> None:
        """Time has passed, of whatever was done in it."""
        self._budget += self._part * seconds

    def read(self, tokens: int, seconds: float) -> None:
        """So many tokens were read."""
        self._read_tokens += tokens
        self._read_seconds += seconds
        if self._read_tokens > 100 * _MEMORY:
            self._read_tokens /= 2
            self._read_seconds /= 2

    def book(self, saved: float, tokens: int, step: float) -> None:
        """What a step with what is followed has saved, in seconds, less what the drafter took.

        tokens: that came, of answers that are followed. step: seconds of one without guesses.
        """
        self._saved += saved
        self._tokens += tokens
        if self._tokens > _MEMORY:
            self._saved /= 2
            self._tokens /= 2
        self._step = step
        limit = _CREDIT * step
        self._balance = min(self._balance + saved + self._part * step, limit)
        if self._balance < -limit:
            self.pays, self._balance = False, 0.0

    def ended(self, tokens: int) -> None:
        """An answer of so many tokens has ended."""
        self._answer += 0.1 * (tokens - self._answer)
