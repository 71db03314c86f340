"""A conversation of blocks and items, as Anthropic's and OpenAI's newer API have it, as messages.

Reasoning, text and calls that follow one another become one message of the assistant; what tools
gave back becomes a message of role "tool" for each call.
"""

from __future__ import annotations

from typing import Any

from deepmnn.serve.protocols.sampling import joined


class Turns:
    """Collects a conversation, part by part.

    Attributes:
        messages: the conversation so far, as chat templates know it.
    """

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self._open = False  # whether the last message is the assistant's, and goes on

    def system(self, text: str) -> None:
        """Instructions. The first ones are one message: some templates take one only."""
        self._open = False
        last = self.messages[-1] if len(self.messages) == 1 else None
        if last is not None and last["role"] == "system":
            last["content"] = joined([last["content"], text])
        elif text:
            self.messages.append({"role": "system", "content": text})

    def user(self, content: str | list[Any]) -> None:
        """What the user says: text, or parts in OpenAI's form."""
        self._open = False
        self.messages.append({"role": "user", "content": content})

    def thought(self, text: str) -> None:
        """What the assistant thought."""
        if text:
            message = self._assistant(begins="content" in self._last())
            message["reasoning_content"] = joined([message.get("reasoning_content", ""), text])

    def said(self, text: str) -> None:
        """What the assistant said."""
        message = self._assistant(begins=bool(self._last().get("tool_calls")))
        message["content"] = "\n".join(filter(None, (message.get("content"), text)))

    def called(self, id: str, name: str, arguments: str) -> None:
        """A call that the assistant made; arguments: JSON text."""
        message = self._assistant()
        message["content"] = message.get("content") or None
        call = {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
        message.setdefault("tool_calls", []).append(call)

    def result(self, id: str, content: str | list[Any]) -> None:
        """What a call gave back."""
        self._open = False
        self.messages.append({"role": "tool", "tool_call_id": id, "content": content})

    def next(self) -> None:
        """What comes now is another message."""
        self._open = False

    def finished(self) -> list[dict[str, Any]]:
        """The whole conversation."""
        for message in self.messages:
            message.setdefault("content", "")
        return self.messages

    def _last(self) -> dict[str, Any]:
        """The assistant's message that goes on; empty when there is none."""
        return self.messages[-1] if self._open else {}

    def _assistant(self, begins: bool = False) -> dict[str, Any]:
        if begins or not self._open:
            self.messages.append({"role": "assistant"})
            self._open = True
        return self.messages[-1]
