"""A conversation: its system message, its turns, and the file that keeps them.

{"format": "deepmnn-chat", "format_version": 1, "system": null,
 "messages": [{"role": "user", "content": "..."},
              {"role": "assistant", "content": "...", "reasoning": "..."}, ...]}
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepmnn.cli.whole_file import write_file
from deepmnn.errors import RequestError, StorageError
from deepmnn.source.json_file import read_object

FORMAT = "deepmnn-chat"
FORMAT_VERSION = 1
MAX_BYTES = 16 << 20
"""No file of a conversation is larger."""

_HINT = "/save writes one."


@dataclass(frozen=True)
class Turn:
    """A question and its answer; after an interrupt, as much of the answer as there was."""

    question: str
    answer: str
    reasoning: str = ""


@dataclass
class Conversation:
    """What the model is told before the next question.

    Attributes:
        system: the system message, if any.
        turns: the oldest first.
    """

    system: str | None = None
    turns: list[Turn] = field(default_factory=list)

    def asking(self, question: str) -> list[dict[str, str]]:
        """The messages of a request; reasoning is not shown to the model again."""
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns:
            messages.append({"role": "user", "content": turn.question})
            messages.append({"role": "assistant", "content": turn.answer})
        return [*messages, {"role": "user", "content": question}]

    def save(self, path: Path) -> None:
        """Writes the file, whole or not at all, for this user only.

        Raises StorageError: no permission, the disk is full, or another file is there.
        """
        path = Path(os.path.realpath(path))
        if path.exists() and not _is_saved(path):
            raise StorageError(
                f"{path} exists and is no saved conversation", "another name, or a new one"
            )
        data = json.dumps(self._fields(), indent=1).encode("ascii")
        if len(data) > MAX_BYTES:
            raise StorageError(f"the conversation has {len(data)} bytes", f"at most {MAX_BYTES}")
        from deepmnn.artifact.directory import storage_errors

        with storage_errors(path):
            write_file(path, data, private=True)

    @classmethod
    def load(cls, path: Path) -> Conversation:
        """What `save` wrote. Raises RequestError, saying what is wrong with the file."""
        fields = _read(path)
        system, messages = fields.get("system"), fields.get("messages")
        if system is not None and not isinstance(system, str):
            raise RequestError(f"{path}: system is {system!r:.80}", "a text or null")
        if not isinstance(messages, list) or len(messages) % 2:
            raise RequestError(f"{path}: messages is {messages!r:.80}", "questions and answers")
        texts = [
            _content(path, message, ("user", "assistant")[index % 2])
            for index, message in enumerate(messages)
        ]
        pairs = zip(texts[::2], texts[1::2], strict=True)
        return cls(system, [Turn(asked, said, thought) for (asked, _), (said, thought) in pairs])

    def _fields(self) -> dict[str, Any]:
        messages = []
        for turn in self.turns:
            messages.append({"role": "user", "content": turn.question})
            answer = {"role": "assistant", "content": turn.answer}
            messages.append(answer | ({"reasoning": turn.reasoning} if turn.reasoning else {}))
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "system": self.system,
            "messages": messages,
        }


def _read(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        if path.stat().st_size > MAX_BYTES:
            raise RequestError(f"{path} is larger than {MAX_BYTES} bytes", "a conversation", _HINT)
    fields = read_object(path, RequestError)
    if fields.get("format") != FORMAT:
        raise RequestError(f"{path} is no saved conversation", f'"format": "{FORMAT}"', _HINT)
    if fields.get("format_version") != FORMAT_VERSION:
        raise RequestError(
            f"{path} has version {fields.get('format_version')!r:.40}", str(FORMAT_VERSION)
        )
    return fields


def _is_saved(path: Path) -> bool:
    try:
        _read(path)
    except RequestError:
        return False
    return True


def _content(path: Path, message: Any, role: str) -> tuple[str, str]:
    """(content, reasoning) of a message of this role. Raises RequestError."""
    if isinstance(message, dict) and message.get("role") == role:
        content, reasoning = message.get("content"), message.get("reasoning", "")
        if isinstance(content, str) and isinstance(reasoning, str):
            return content, reasoning
    raise RequestError(
        f"{path}: a message is {message!r:.80}", f'{{"role": "{role}", "content": "..."}}'
    )
