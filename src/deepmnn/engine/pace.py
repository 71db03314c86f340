"""How many prompt tokens a step may run beside answers that are being written."""

from __future__ import annotations

_LEAST = 8
"""Tokens: with fewer a prompt would hardly get on, and a step reads all weights for them."""

_WEIGHT = 0.2
"""Of the newest step in the averages."""

_AUTO_FACTOR = 2.25


class Pace:
    """Bounds the time between two tokens of running answers while prompts are prefilled.

    It learns from the steps it sees: how long one takes without prompt tokens, and how much longer
    each of them makes it.

    max_stall: seconds that a step may take beside running answers, as far as a span of 8 tokens
        allows; None: 2.25 times a step without prompts, and more where more prompts wait than
        answers run: as many times as they are more, for whoever waits counts as much.
    """

    def __init__(self, max_stall: float | None = None) -> None:
        self._max_stall = max_stall
        self._plain: float | None = None
        self._per_token: float | None = None

    def prompt_tokens(self, most: int, answers: int, prompts: int) -> int:
        """How many the next step may run, at most `most`, beside so many answers.

        prompts: how many could be read now.
        """
        if self._per_token is None:
            return min(most, _LEAST)
        room = (self._stall(prompts / answers) - (self._plain or 0.0)) / self._per_token
        return min(most, max(_LEAST, int(room) // _LEAST * _LEAST))

    def learn(self, seconds: float, prompt_tokens: int) -> None:
        """What a step took that ran answers and so many prompt tokens."""
        if prompt_tokens == 0:
            self._plain = _average(self._plain, seconds)
        elif self._plain is not None:
            each = max(seconds - self._plain, 1e-3 * self._plain) / prompt_tokens
            self._per_token = _average(self._per_token, each)

    def _stall(self, prompts_per_answer: float) -> float:
        if self._max_stall is not None:
            return self._max_stall
        return _AUTO_FACTOR * (self._plain or 0.0) * max(1.0, prompts_per_answer)


def _average(old: float | None, new: float) -> float:
    return new if old is None else old + _WEIGHT * (new - old)
