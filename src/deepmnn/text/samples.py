"""Calibration samples: texts and conversations, from the set that deepmnn comes with or a file.

Rounding weights well needs to know what a model reads. `built_in` gives English, Chinese, code and
worked arithmetic (`calibration/README.md` says where each is from), `read_samples` a user's file,
and `sample_ids` turns either into what the model sees.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepmnn.errors import RequestError, argument, shown
from deepmnn.source.json_file import parse_object, read_small
from deepmnn.text.chat_template import Message, check_messages
from deepmnn.text.tokenizer import Tokenizer

BUILT_IN = Path(__file__).parent / "calibration" / "samples.jsonl"
COUNT = 500
"""Samples of the built-in set, and how many are used unless somebody says otherwise."""

LEAST_CHARACTERS, MOST_CHARACTERS = 1200, 2000
"""Of a sample that is cut from a file of plain text."""

LONGEST_SAMPLE = 200_000
"""Characters of one text or conversation; what follows is not read."""

_FORMS = '{"text": "..."} or {"messages": [{"role": "user", "content": "..."}, ...]}'


@dataclass(frozen=True)
class Sample:
    """Either a text or a conversation, oldest message first. kind: "english", "code", ... or ""."""

    text: str = ""
    messages: tuple[Message, ...] = ()
    kind: str = ""


def built_in(count: int = COUNT, seed: int = 0) -> list[Sample]:
    """Samples of the set that comes with deepmnn, at most COUNT: every kind in its share."""
    return _mixed(_read_lines(BUILT_IN), count, seed)


def read_samples(path: str | Path, count: int = COUNT, seed: int = 0) -> list[Sample]:
    """At most `count` samples of a file, in an order that `seed` chooses.

    Args:
        path: JSON Lines (`.jsonl`) with "text" or "messages" in each line and perhaps a "kind", or
            plain text, whose paragraphs become samples of up to MOST_CHARACTERS.

    Raises RequestError when the file cannot be read, is larger than 100 MB, is not UTF-8, or has a
    line that is no sample, or none at all.
    """
    path = Path(path)
    is_json = path.suffix.lower() == ".jsonl"
    found = _read_lines(path) if is_json else [Sample(text) for text in _passages(_decoded(path))]
    if not found:
        raise RequestError(f"{path} holds no text", _FORMS if is_json else "paragraphs of text")
    return _mixed(found, count, seed)


def sample_ids(sample: Sample, tokenizer: Tokenizer, max_tokens: int) -> list[int]:
    """The first `max_tokens` token ids of a sample, as the model would meet it.

    A conversation goes through the chat template, its last answer with the reasoning that templates
    leave out of answers. Without a template its messages are plain text.

    Raises TokenizerError when the template fails on the conversation.
    """
    if sample.messages and tokenizer.has_chat_template:
        text = _conversation(sample.messages, tokenizer)
        return tokenizer.encode(text, add_special_tokens=False)[:max_tokens]
    text = sample.text or "\n\n".join(message["content"] for message in sample.messages)
    return tokenizer.encode(text)[:max_tokens]


def _conversation(messages: Sequence[Message], tokenizer: Tokenizer) -> str:
    *before, last = messages
    if last["role"] != "assistant" or not before:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=False)
    prompt = tokenizer.apply_chat_template(before)
    answer: str = last["content"]
    if prompt.rstrip().endswith("<think>"):  # the template has begun the reasoning
        thinks = answer.startswith("<think>")
        answer = answer.removeprefix("<think>").lstrip() if thinks else f"</think>\n\n{answer}"
    return prompt + answer + tokenizer.special_tokens.get("eos_token", "")


# ---------------------------------------------------------------- files


def _decoded(path: Path) -> str:
    try:
        return read_small(path, RequestError).decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        raise RequestError(f"{path} cannot be read: {fault}", "a UTF-8 text file") from None


def _read_lines(path: Path) -> list[Sample]:
    lines = _decoded(path).split("\n")
    return [
        _sample(parse_object(line.encode(), place, RequestError), place)
        for number, line in enumerate(lines, 1)
        if line.strip()
        for place in [f"{path}, line {number}"]
    ]


def _sample(fields: dict[str, Any], place: str) -> Sample:
    if ("text" in fields) == ("messages" in fields):
        raise RequestError(f"{place} has the fields {shown(sorted(fields))}", _FORMS)
    kind = fields.get("kind", "")
    if not isinstance(kind, str):
        raise RequestError(f'{place} has "kind": {shown(kind)}', "a text")
    if "text" in fields:
        text = fields["text"]
        if not isinstance(text, str) or not text.strip():
            raise RequestError(f'{place} has "text": {shown(text)}', "some text")
        return Sample(_whole(text, place)[:LONGEST_SAMPLE], kind=kind)
    try:
        messages = check_messages(fields["messages"])
    except RequestError as fault:
        raise RequestError(f"{place}: {fault.found}", fault.expected) from None
    left = LONGEST_SAMPLE
    for message in messages:
        if not isinstance(message.get("content"), str):
            raise RequestError(f"{place} has the message {shown(message)}", "content that is text")
        message["content"] = _whole(message["content"], place)[:left]
        left -= len(message["content"])
    return Sample(messages=tuple(messages), kind=kind)


def _whole(text: str, place: str) -> str:
    """The text itself. JSON can say half of a surrogate pair, which no text holds."""
    try:
        text.encode()
    except UnicodeEncodeError as fault:
        raise RequestError(f"{place} cannot be encoded: {fault}", "valid Unicode") from None
    return text


def _passages(text: str) -> Iterator[str]:
    """Paragraphs joined to at least LEAST_CHARACTERS where there are enough, the last may be less.

    A paragraph is cut at the end of a line, a sentence or a word where it makes a passage longer
    than MOST_CHARACTERS.
    """
    passage = ""
    for paragraph in re.split(r"\n[^\S\n]*\n", text.replace("\r\n", "\n")):
        passage += ("\n\n" if passage else "") + paragraph.strip("\n")
        while len(passage) > MOST_CHARACTERS:
            end = _border(passage)
            if passage[:end].strip():
                yield passage[:end].strip("\n")
            passage = passage[end:].lstrip()
        if len(passage) >= LEAST_CHARACTERS:
            yield passage
            passage = ""
    if passage.strip():
        yield passage


def _border(text: str) -> int:
    """Where to cut a text that is too long: the latest of the best kind of border there is."""
    for border in ("\n", ". ", "。", " "):
        found = text.rfind(border, LEAST_CHARACTERS, MOST_CHARACTERS)
        if found >= 0:
            return found + len(border)
    return MOST_CHARACTERS


# ---------------------------------------------------------------- order


def _mixed(samples: list[Sample], count: int, seed: int) -> list[Sample]:
    """Shuffled so that every beginning holds each kind in about its share."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise RequestError(
            argument("count", f" is {shown(count)}"), "how many samples, a positive integer"
        )
    rng = random.Random(seed)
    kinds: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        kinds[sample.kind].append(sample)
    placed = []
    for kind in sorted(kinds):
        rng.shuffle(kinds[kind])
        share = len(kinds[kind])
        placed += [((i + rng.random()) / share, s) for i, s in enumerate(kinds[kind])]
    placed.sort(key=lambda place: place[0])
    return [sample for _, sample in placed[:count]]
