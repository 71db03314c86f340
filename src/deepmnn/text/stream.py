"""From token ids to the text of an answer, as it grows."""

from __future__ import annotations

from deepmnn.text.reasoning import ReasoningSplitter
from deepmnn.text.stop import StopMatcher
from deepmnn.text.tokenizer import Tokenizer


class TextStream:
    """Detokenises, watches for stop strings and splits off the reasoning.

    Args:
        tokenizer: the model's.
        stop: text that ends the answer, special tokens included.
        inside_reasoning: whether the prompt has opened the reasoning.
        end_ids: tokens that end the answer, beside the engine's (answer_end.py).
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: tuple[str, ...],
        inside_reasoning: bool,
        end_ids: frozenset[int] = frozenset(),
    ) -> None:
        self.end_ids = end_ids
        self._tokenizer = tokenizer
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
        special = self._tokenizer.special_text(token)
        text = special or self._detokenizer.push(token)
        self._add(self._splitter.push(self._matcher.push(text, hidden=bool(special))))

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
