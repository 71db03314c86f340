"""The prompt: token ids for engines that take them, and text that gives the same ids."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_lowercase

from deepmnn.errors import RequestError
from deepmnn.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Prompt:
    """Some tokens, as ids and as text, and those that follow. random: not from a text."""

    ids: list[int]
    text: str
    follow: list[int]
    random: bool


def random_prompt(tokenizer: Tokenizer, tokens: int, steps: int, seed: int) -> Prompt:
    """Words of three random letters: one token each in the vocabulary of bench.serve."""
    rng = random.Random(seed)
    words = ["".join(rng.choices(ascii_lowercase, k=3)) for _ in range(tokens + steps)]
    return replace(
        cut(tokenizer, "".join(f" {word}" for word in words), tokens, steps), random=True
    )


def cut(tokenizer: Tokenizer, text: str, tokens: int, steps: int) -> Prompt:
    """The beginning of a text. Raises RequestError when it is too short."""
    ids, most = tokenizer.encode(text, add_special_tokens=False), tokens + steps
    if len(ids) < most:
        raise RequestError(f"the text has {len(ids)} tokens", f"at least {most}")
    prompt = tokenizer.decode(ids[:tokens], skip_special_tokens=False)
    return Prompt(ids[:tokens], prompt, ids[tokens:most], random=False)


def read_prompt(model: Path, text: Path | None, tokens: int, steps: int, seed: int) -> Prompt:
    """With the tokenizer of a converted model. text: a file; None: random words."""
    tokenizer = Tokenizer(model)
    if text is None:
        return random_prompt(tokenizer, tokens, steps, seed)
    return cut(tokenizer, text.read_text(encoding="utf-8"), tokens, steps)
