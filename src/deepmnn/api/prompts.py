"""The prompts of a call, as callers and other libraries hand them over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

from deepmnn.api.chat import Chat
from deepmnn.errors import RequestError, shown
from deepmnn.text.chat_template import Message, check_messages
from deepmnn.text.token_ids import integer, plain, token_ids

Prompt = str | Chat | Sequence[Message] | Sequence[int]
"""Plain text, a conversation (rendered with the chat template; a list of messages is a Chat without
more), or token ids."""

_EXPECTED = "text, a list of messages, a list of token ids, or a list of those"


def read_prompts(given: object) -> tuple[bool, list[Prompt]]:
    """(whether it is a single prompt, the prompts in plain types: str, Chat, int).

    Arrays and tensors stand for their nested lists, what a Hugging Face tokenizer returns for its
    input_ids without the padding. Raises RequestError for anything else that is no prompt.
    """
    value = _unpacked(given)
    single = _read(value, "the prompt")
    if single is not None:
        return True, [single]
    prompts: list[Prompt] = []
    for index, item in enumerate(cast(Sequence[object], value)):
        prompt = _read(_unpacked(item), f"prompt {index}")
        if prompt is None:
            raise _refusal(f"prompt {index}", item)
        prompts.append(prompt)
    return False, prompts


def _read(value: object, name: str) -> Prompt | None:
    """The one prompt that an unpacked value is; None when it can only be a list of prompts.

    Raises RequestError when it can be neither.
    """
    if isinstance(value, str):
        return str.__str__(value)  # the text of a str subclass, whatever its own __str__ says
    if isinstance(value, Chat):
        return replace(value, messages=_read_messages(value.messages))
    if isinstance(value, bytes | bytearray | memoryview) or not isinstance(value, Sequence):
        raise _refusal(name, value)
    if not value:
        raise RequestError(f"{name} is empty", _EXPECTED)
    if isinstance(value, range) or set(map(type, value)) == {int}:
        return token_ids(value)
    kinds = {_kind(item) for item in value}
    if kinds == {"token id"}:
        return token_ids(value)
    if kinds == {"message"}:
        return Chat(_read_messages(value))
    if kinds == {"prompt"}:
        return None
    if "" in kinds:
        raise _refusal(name, next(item for item in value if not _kind(item)), " has the item")
    raise RequestError(f"{name} has items of several kinds: {shown(value)}", _EXPECTED)


def _kind(item: object) -> str:
    """What a list of such items is a list of; "" when it is no prompt."""
    item = _unpacked(item)
    if integer(item) is not None:
        return "token id"
    if isinstance(item, Mapping):
        return "message"
    if isinstance(item, Chat):
        return "prompt"
    if isinstance(item, Sequence) and not isinstance(item, bytes | bytearray | memoryview):
        return "prompt"
    return ""


def _unpacked(value: object) -> object:
    """Arrays and tensors as lists, a tokenizer's output as its token ids; all else as it is."""
    if not isinstance(value, Mapping):
        return plain(value)
    if "input_ids" not in value or "role" in value:
        return value
    return _unmasked(plain(value["input_ids"]), plain(value.get("attention_mask")))


def _unmasked(ids: object, mask: object) -> object:
    """Token ids, or rows of them, without the places where the mask is 0: the padding."""
    if mask is None or not isinstance(ids, Sequence):
        return ids
    if not isinstance(mask, Sequence) or len(mask) != len(ids):
        raise RequestError(
            f"attention_mask is {shown(mask)} for {len(ids)} input_ids", "a number for each"
        )
    pairs = [(plain(id), plain(kept)) for id, kept in zip(ids, mask, strict=True)]
    if any(isinstance(id, Sequence) for id, _ in pairs):
        return [_unmasked(row, kept) for row, kept in pairs]
    return [id for id, kept in pairs if kept]


def read_message(index: int, message: Message) -> Message:
    """A message whose content is text: that of OpenAI's content parts, a line for each.

    Raises RequestError for content of another kind, such as an image.
    """
    content, role = message.get("content"), message.get("role")
    if isinstance(content, str) or not isinstance(role, str):  # the template's to refuse
        return message
    if content is None and role in ("assistant", "tool"):  # one that calls tools says nothing
        return message
    parts = content if isinstance(content, list | tuple) else [content]
    texts = []
    for part in parts:
        text = part
        if isinstance(part, Mapping) and part.get("type") == "text":
            text = part.get("text")
        if not isinstance(text, str):
            raise RequestError(
                f"the content of message {index} has {shown(part)}"
                if parts is content
                else f"the content of message {index} is {shown(content)}",
                'text, or a list of parts such as {"type": "text", "text": "Hello"}',
            )
        texts.append(text)
    return {**message, "content": "\n".join(texts)}


def _read_messages(messages: Sequence[Message]) -> list[Message]:
    return [read_message(index, each) for index, each in enumerate(check_messages(messages))]


def _refusal(name: str, value: object, verb: str = " is") -> RequestError:
    hint = ""
    if isinstance(value, Mapping):
        hint = "Put a message into a list."
    elif hasattr(value, "model_dump"):
        hint = "Pass a message as a dict: its model_dump()."
    elif isinstance(value, bytes | bytearray | memoryview):
        hint = "Decode it first."
    elif hasattr(value, "__iter__"):
        hint = "Make it a list."
    return RequestError(f"{name}{verb} {shown(value)}", _EXPECTED, hint)
