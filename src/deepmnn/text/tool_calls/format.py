"""What a format of tool calls can do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from deepmnn.text.tool_calls.call import ToolCallDelta

Tool = Mapping[str, Any]
"""As OpenAI's API has it: {"type": "function", "function": {"name": ..., "parameters": schema}}."""

Marker = Callable[[str], str]
"""A marker's text as Lark: a special token `<[id]>`, or a quoted string."""


class ToolCallSplitter(Protocol):
    """Splits one answer into text and tool calls, as it grows."""

    def push(self, text: str) -> tuple[str, list[ToolCallDelta]]:
        """Adds text of the answer; the text and the pieces of calls that are certain by now."""

    def flush(self) -> tuple[str, list[ToolCallDelta]]:
        """What was held back, when the answer ends."""


class ToolFormat(Protocol):
    """How a model writes tool calls.

    Attributes:
        special: the special tokens among its markers. They are hidden from text, but the
            splitter must see them.
        example: how a call is written, for a model that must be told.
    """

    special: frozenset[str]
    example: str

    def splitter(self) -> ToolCallSplitter:
        """For one answer, from behind its reasoning."""

    def grammar(self, tools: Sequence[Tool], marker: Marker, *, parallel: bool) -> str:
        """Lark, in llguidance's dialect, whose rule `answer` is calls of these tools.

        Args:
            tools: what may be called; the arguments follow their JSON schemas.
            marker: writes a marker as Lark.
            parallel: one call or more, instead of exactly one.

        Raises RequestError when a tool has the wrong form, or there is none.
        """
