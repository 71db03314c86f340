"""What the streams of OpenAI's two older APIs have in common."""

from __future__ import annotations

from typing import Any

from deepmnn.serve.body import Body
from deepmnn.serve.protocols.sse import encode
from deepmnn.serve.protocols.usage import Usage


class StreamOptions(Body):
    """include_usage: a last event with the usage; continuous_usage_stats: all events have it."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class OpenAIEvents:
    """Events of one stream. What never changes in them is written once.

    Args:
        head: the first fields of every event.
        options: what the client asks for.
        usage: of the answers.
    """

    def __init__(self, head: dict[str, Any], options: StreamOptions | None, usage: Usage) -> None:
        self._head = "data: " + encode(head)[:-1]
        self._usage = usage
        self._last = bool(options and options.include_usage)
        self._always = bool(self._last and options and options.continuous_usage_stats)

    def begin(self) -> str:
        """Nothing: the first event is that of the first token."""
        return ""

    def ping(self) -> str:
        """A comment."""
        return ": ping\n\n"

    def event(self, choice: str, more: str = "") -> str:
        """An event with one choice; choice, more: fields as JSON text, without braces."""
        if self._last:
            more += f',"usage":{encode(self._usage.openai()) if self._always else "null"}'
        return f'{self._head},"choices":[{{{choice}}}]{more}}}\n\n'

    def end(self) -> str:
        """The usage, when it is asked for, and the end."""
        last = ""
        if self._last:
            facts = encode({"usage": self._usage.openai(), "timings": self._usage.timings()})
            last = f'{self._head},"choices":[],{facts[1:]}\n\n'
        return f"{last}data: [DONE]\n\n"

    def error(self, body: dict[str, Any]) -> str:
        """The error, and the end."""
        return f"data: {encode(body)}\n\ndata: [DONE]\n\n"
