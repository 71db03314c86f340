"""Filling in the middle: a prompt that has the model write what stands between two texts."""

from __future__ import annotations

from deepmnn.errors import RequestError
from deepmnn.text.tokenizer import Tokenizer

_MARKS = (
    # What stands before the prefix, before the suffix, and where the answer begins.
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek-Coder, V2, V3
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5-Coder
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite
)


def fim_prompt(tokenizer: Tokenizer, prefix: str, suffix: str) -> str:
    """The text that asks for what stands between prefix and suffix.

    Raises RequestError when the model has no tokens for it.
    """
    for begin, hole, end in _MARKS:
        if all(tokenizer.token_id(mark) is not None for mark in (begin, hole, end)):
            return f"{begin}{prefix}{hole}{suffix}{end}"
    raise RequestError(
        "there is a suffix, and the model's tokenizer has no tokens for filling in the middle",
        f"those of a model for code, such as {_MARKS[0][0]} or {_MARKS[1][0]}",
        "Leave the suffix out, or ask such a model.",
    )
