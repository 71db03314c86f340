"""The prompt: token ids for engines that take them, and text that gives the same ids."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase

from deepmnn.errors import RequestError
from deepmnn.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Prompt:
    """Some tokens."""

    ids: list[int]
    text: str


def random_prompt(tokenizer: Tokenizer, tokens: int, seed: int) -> Prompt:
    """Words of three random letters: one token each in the vocabulary of bench.serve."""
    rng = random.Random(seed)
    words = ["".join(rng.choices(ascii_lowercase, k=3)) for _ in range(tokens)]
    return cut(tokenizer, "".join(f" {word}" for word in words), tokens)


def cut(tokenizer: Tokenizer, text: str, tokens: int) -> Prompt:
    """The beginning of a text. Raises RequestError when it is too short."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) < tokens:
        raise RequestError(f"the text has {len(ids)} tokens", f"at least {tokens}")
    return Prompt(ids[:tokens], tokenizer.decode(ids[:tokens], skip_special_tokens=False))


def read_prompt(model: Path, text: Path | None, tokens: int, seed: int) -> Prompt:
    """With the tokenizer of a converted model. text: a file; None: random words."""
    tokenizer = Tokenizer(model)
    if text is None:
        return random_prompt(tokenizer, tokens, seed)
    return cut(tokenizer, text.read_text(encoding="utf-8"), tokens)
