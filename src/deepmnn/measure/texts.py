"""The texts a model is judged on, and the pieces they are cut into."""

from __future__ import annotations

import inspect
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from deepmnn.api.prompts import read_message
from deepmnn.errors import RequestError, shown
from deepmnn.source.json_file import read_small
from deepmnn.text.chat_template import Message
from deepmnn.text.tokenizer import Tokenizer

Text = str | Sequence[Message]
"""Plain text, or a conversation for the model's chat template."""

DEFAULT_TOKENS = 512
"""Of a piece, where the context holds as many."""

_LINES = (".jsonl", ".ndjson")
_EXPECTED = '{"text": "..."} or {"messages": [{"role": "...", "content": "..."}, ...]}'


def built_in_texts() -> list[list[Text]]:
    """English and Python that come with Python itself: its help pages, its module `statistics`.

    They are a little different in each version of Python.
    """
    pages = "\n\n".join(topics[name] for name in sorted(topics))
    return [[pages], [inspect.getsource(statistics)]]


def read_texts(path: str | Path) -> list[Text]:
    """The texts of a file: all of it, or of JSON Lines (.jsonl, .ndjson) one for each line.

    A line is {"text": ...} or {"messages": [...]}. Raises RequestError when the file cannot be
    read, is larger than 100 MB, has nothing in it, or has a line that is something else.
    """
    path = Path(path)
    try:
        content = read_small(path, RequestError).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(f"{path} is not UTF-8: {error}", "a text in UTF-8") from None
    if not content.strip():
        raise RequestError(f"{path} is empty", "a text")
    if path.suffix.lower() not in _LINES:
        return [content]
    lines = content.split("\n")  # a text may hold other line ends, which are no ends of lines here
    return [
        _parse(line, f"{path}, line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]


def cut(
    tokenizer: Tokenizer, texts: Sequence[Text], tokens: int, most: int | None = None
) -> list[list[int]]:
    """The texts' pieces of `tokens` tokens; the last one of a text is shorter, but has two.

    Where the tokenizer puts a token in front of a text (begin of sequence), every piece begins with
    it. most: stop after so many pieces.

    Raises RequestError, or TokenizerError where a conversation has no template to be rendered with.
    """
    if tokens < 2:
        raise RequestError(f"a piece has {tokens} tokens", "at least 2")
    prefix = _prefix(tokenizer)
    size, pieces = max(1, tokens - len(prefix)), list[list[int]]()
    for text in texts:
        ids = _encode(tokenizer, text)
        if ids[: len(prefix)] == prefix:
            del ids[: len(prefix)]
        parts = (prefix + ids[start : start + size] for start in range(0, len(ids), size))
        pieces += [part for part in parts if len(part) > 1]
        if most is not None and len(pieces) >= most:
            return pieces[:most]
    return pieces


def _prefix(tokenizer: Tokenizer) -> list[int]:
    """What the tokenizer puts in front of a text."""
    whole, plain = tokenizer.encode("a"), tokenizer.encode("a", add_special_tokens=False)
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start]
    return []


def _encode(tokenizer: Tokenizer, text: Text) -> list[int]:
    if not isinstance(text, str):
        text = tokenizer.apply_chat_template(text, add_generation_prompt=False)
    return tokenizer.encode(text, add_special_tokens=False)


def _parse(line: str, place: str) -> Text:
    """The text of a line of JSON. Raises RequestError."""
    try:
        found: Any = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict) and isinstance(found.get("text"), str):
        return str(found["text"])
    messages = found.get("messages") if isinstance(found, dict) else None
    if isinstance(messages, list) and messages and all(isinstance(m, Mapping) for m in messages):
        return [read_message(index, message) for index, message in enumerate(messages)]
    raise RequestError(f"{place} is {shown(line)}", _EXPECTED)
