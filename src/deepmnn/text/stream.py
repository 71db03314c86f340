"""From token ids to the text of an answer, as it grows."""

from __future__ import annotations

from typing import NamedTuple

from deepmnn.text.reasoning import CLOSE, OPEN, ReasoningSplitter
from deepmnn.text.stop import StopMatcher
from deepmnn.text.tokenizer import Tokenizer
from deepmnn.text.tool_calls.call import ToolCallDelta, joined
from deepmnn.text.tool_calls.format import ToolFormat


class Streamed(NamedTuple):
    """What an answer has grown by."""

    reasoning: str
    text: str
    tool_calls: list[ToolCallDelta]


class TextStream:
    """Detokenises, watches for stop strings, splits off the reasoning and the tool calls.

    Args:
        tokenizer: the model's.
        stop: text that ends the answer, special tokens included.
        inside_reasoning: whether the prompt has opened the reasoning; None leaves it in the text.
        end_ids: tokens that end the answer, beside the engine's (answer_end.py).
        tools: how the model writes tool calls; None leaves them in the text. Calls within the
            reasoning are none.

    Attributes:
        reasoning_tokens: how many tokens of the answer were reasoning, tags included.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: tuple[str, ...],
        inside_reasoning: bool | None,
        end_ids: frozenset[int] = frozenset(),
        tools: ToolFormat | None = None,
    ) -> None:
        self.end_ids = end_ids
        self.reasoning_tokens = 0
        self._tokenizer = tokenizer
        self._detokenizer = tokenizer.detokenizer()
        self._matcher = StopMatcher(stop)
        self._splitter = ReasoningSplitter(inside_reasoning)
        self._calls = None if tools is None else tools.splitter()
        self._special = frozenset[str]() if tools is None else tools.special
        self._reasoning = self._text = ""
        self._tool_calls: list[ToolCallDelta] = []
        self._tokens = 0
        self._closed = False

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the answer."""
        return self._matcher.stopped

    @property
    def stop_string(self) -> str:
        """Which one has; "" when none has."""
        return self._matcher.found

    def push(self, token: int) -> None:
        """Adds one token of the answer."""
        special = self._tokenizer.special_text(token)
        inside = self._splitter.inside
        hidden = bool(special) and special not in {OPEN, CLOSE, *self._special}
        if special and not hidden:  # it ends a character that was unfinished
            text = self._detokenizer.flush() + special
        else:
            text = special or self._detokenizer.push(token)
        self._add(self._splitter.push(self._matcher.push(text, hidden=hidden)))
        self._tokens += 1
        if inside or self._splitter.inside:  # reasoning is what an answer begins with
            self.reasoning_tokens = self._tokens

    def close(self) -> None:
        """The answer is over: releases what was held back."""
        if self._closed:
            return
        self._closed = True
        if not self.stopped:
            rest = self._matcher.push(self._detokenizer.flush())
            self._add(self._splitter.push(rest + self._matcher.flush()))
        self._add(self._splitter.flush())
        if self._calls is not None:
            self._take_calls(self._calls.flush())

    def take(self) -> Streamed:
        """What was added since the last call."""
        taken = Streamed(self._reasoning, self._text, joined(self._tool_calls))
        self._reasoning, self._text, self._tool_calls = "", "", []
        return taken

    def _add(self, delta: tuple[str, str]) -> None:
        reasoning, text = delta
        for mark in self._special:
            reasoning = reasoning.replace(mark, "")
        self._reasoning += reasoning
        if self._calls is None:
            self._text += text
        elif text:
            self._take_calls(self._calls.push(text))

    def _take_calls(self, delta: tuple[str, list[ToolCallDelta]]) -> None:
        self._text += delta[0]
        self._tool_calls += delta[1]
