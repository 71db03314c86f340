"""Log probabilities of tokens, as OpenAI's APIs write them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from deepmnn.engine.completion import TokenLogprobs
from deepmnn.text.tokenizer import Tokenizer

_LOWEST = -9999.0
"""What OpenAI gives for a token that cannot be: JSON has no infinity."""

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def _byte_characters() -> dict[str, int]:
    """GPT-2's characters for bytes: those that can be seen are themselves, others follow 256."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {chr(b): b for b in seen} | {chr(256 + i): b for i, b in enumerate(hidden)}


_BYTES = _byte_characters()


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """How a token is written, a special one, too; U+FFFD stands for parts of a character."""
    return tokenizer.special_text(token) or tokenizer.decode_one(token)


def token_bytes(tokenizer: Tokenizer, token: int) -> list[int]:
    """The bytes of a token, which may be a part of a character."""
    text = token_text(tokenizer, token)
    if "\ufffd" in text:
        name = tokenizer.library.id_to_token(token) or ""
        if byte := _BYTE.fullmatch(name):
            return [int(byte[1], 16)]
        if all(character in _BYTES for character in name):
            return [_BYTES[character] for character in name]
    return [*text.encode()]


def chat_logprobs(tokenizer: Tokenizer, given: Sequence[TokenLogprobs]) -> list[dict[str, Any]]:
    """`content` of the Chat Completions API, and `logprobs` of the Responses API."""

    def one(token: int, logprob: float) -> dict[str, Any]:
        return {
            "token": token_text(tokenizer, token),
            "logprob": max(logprob, _LOWEST),
            "bytes": token_bytes(tokenizer, token),
        }

    return [
        one(each.id, each.logprob) | {"top_logprobs": [one(*pair) for pair in each.top.items()]}
        for each in given
    ]


class TextLogprobs:
    """`logprobs` of the Completions API; offset: where the answer's text begins."""

    def __init__(self, tokenizer: Tokenizer, offset: int = 0) -> None:
        self._tokenizer, self._offset = tokenizer, offset

    def of(self, given: Sequence[TokenLogprobs]) -> dict[str, Any]:
        """Of the next tokens."""
        texts = [token_text(self._tokenizer, each.id) for each in given]
        offsets = []
        for text in texts:
            offsets.append(self._offset)
            self._offset += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [max(each.logprob, _LOWEST) for each in given],
            "top_logprobs": [self._top(each) for each in given],
            "text_offset": offsets,
        }

    def _top(self, given: TokenLogprobs) -> dict[str, float]:
        found: dict[str, float] = {}
        for token, logprob in given.top.items():  # the likeliest of those with one text
            found.setdefault(token_text(self._tokenizer, token), max(logprob, _LOWEST))
        return found
