"""From token ids to the text of an answer, as it grows."""

from __future__ import annotations

from deepmnn.text.reasoning import ReasoningSplitter
from deepmnn.text.stop import StopMatcher
from deepmnn.text.tokenizer import Tokenizer


class TextStream:
    """Detokenises, watches for stop strings and splits off the reasoning.

    reasoning and text hold what has been added since the last `take`.
    """

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...], inside_reasoning: bool) -> None:
        self._detokenizer = tokenizer.detokenizer()
        self._matcher = StopMatcher(stop)
        self._splitter = ReasoningSplitter(inside_reasoning)
        self._reasoning = self._text = ""
        self._closed = False

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the answer."""
        return self._matcher.stopped

    def push(self, token: int) -> None:
        """Adds one token of the answer."""
        self._add(self._splitter.push(self._matcher.push(self._detokenizer.push(token))))

    def close(self) -> None:
        """The answer is over: releases what was held back."""
        if self._closed:
            return
        self._closed = True
        if not self.stopped:
            rest = self._matcher.push(self._detokenizer.flush())
            self._add(self._splitter.push(rest + self._matcher.flush()))
        self._add(self._splitter.flush())

    def take(self) -> tuple[str, str]:
        """(reasoning, text) since the last call."""
        taken, self._reasoning, self._text = (self._reasoning, self._text), "", ""
        return taken

    def _add(self, delta: tuple[str, str]) -> None:
        self._reasoning += delta[0]
        self._text += delta[1]
