"""The text to judge on, and other text to calibrate with, as token ids."""

from __future__ import annotations

import argparse
import inspect
import random
import sys
import tarfile
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.peers.child import ROOT
from tokenizers import Tokenizer

from deepmnn.conversion.bundled import CHECKPOINT
from deepmnn.errors import RequestError
from deepmnn.measure.texts import built_in_texts

Pieces = list[list[int]]
SAMPLE_TOKENS = 512
"""Of a piece of calibration text."""


@dataclass(frozen=True)
class Texts:
    """held_out: judged on. calibration: never judged on."""

    held_out: Sequence[str]
    calibration: str

    @staticmethod
    def of(checkpoint: Path, files: Sequence[Path], calibration: Path | None) -> Texts:
        """The given files, or what suits the checkpoint. Raises RequestError."""
        arithmetic = checkpoint.resolve() == CHECKPOINT.resolve()
        own = _problems() if arithmetic else _prose_and_code(checkpoint)
        held_out = [_read(path) for path in files] or own.held_out
        return Texts(held_out, _read(calibration) if calibration else own.calibration)


def _prose_and_code(checkpoint: Path) -> Texts:
    """Judged on: what `deepmnn eval` judges on, and what a model kept out of its training, where
    `tools/train_mixture.py` left it beside the model. Calibration: our pages, modules of Python.
    """
    held_out = ["".join(map(str, texts)) for texts in built_in_texts()]
    own = checkpoint.resolve().parent / "HELDOUT.txt"
    if own.is_file():
        held_out.append(_read(own))
    pages = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))]
    modules = [inspect.getsource(module) for module in (argparse, typing, tarfile)]
    paragraphs = [part for text in (*pages, *modules) for part in text.split("\n\n")]
    random.Random(0).shuffle(paragraphs)
    return Texts(held_out, "\n\n".join(paragraphs))


def _problems() -> Texts:
    """tiny-r1's: held-out problems, and problems like those that it was trained on."""
    sys.path.insert(0, str(ROOT / "tools"))
    from arithmetic import Conversation, held_out_set, sample_conversation
    from tiny_r1_tokenizer import prompt_and_response

    rng = random.Random(0)
    problems = held_out_set(per_kind=20)
    rng.shuffle(problems)
    judged_on = ("".join(prompt_and_response(Conversation("", (), one))) for one in problems)
    chats = ("".join(prompt_and_response(sample_conversation(rng))) for _ in range(500))
    return Texts(["".join(judged_on)], "".join(chats))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: {error}", "a file of UTF-8 text") from error


def tokenizer_of(checkpoint: Path) -> Tokenizer:
    """Raises RequestError."""
    path = checkpoint / "tokenizer.json"
    if not path.is_file():
        raise RequestError(f"{checkpoint} has no tokenizer.json", "a Hugging Face checkpoint")
    return Tokenizer.from_file(str(path))


def pieces(tokenizer: Tokenizer, texts: Sequence[str], tokens: int, most: int) -> Pieces:
    """Up to `most` runs of so many tokens from each text. Raises RequestError without any."""
    found: Pieces = []
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        starts = range(0, len(ids) - tokens + 1, tokens)
        found += [ids[start : start + tokens] for start in starts[:most]]
    if not found:
        raise RequestError(f"no text of {tokens} tokens", "longer text, or fewer --tokens")
    return found
