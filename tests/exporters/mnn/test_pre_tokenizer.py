"""Patterns that pass match in MNN as Oniguruma matches them in the tokenizers library."""

from __future__ import annotations

import contextlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Library

from deepmnn.errors import TokenizerError
from deepmnn.exporters.mnn.pre_tokenizer import pre_tokenizer
from deepmnn.exporters.mnn.tokenizer import pack_tokenizer
from deepmnn.text.pattern_check import check_pattern
from deepmnn.text.tokenizer import Tokenizer
from mnn_text import mnn_text

_CHARS = "abSs09 _.-$'\n\r\té中½\u00a0’e\u0301▁"


def _library(*steps: Any) -> Library:
    """Any two bytes merge, so that every border between two pieces shows in the ids."""
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    text = letters.pre_tokenize_str(_CHARS)[0][0]
    pairs = [(left, right) for left in sorted(set(text)) for right in sorted(set(text))]
    random.Random(5).shuffle(pairs)
    tokens = [*sorted(set(text)), *(left + right for left, right in pairs)]
    library = Library(models.BPE({token: index for index, token in enumerate(tokens)}, pairs))
    library.pre_tokenizer = pre_tokenizers.Sequence([*steps, letters])
    library.decoder = decoders.ByteLevel()
    return library


def _texts(count: int = 40) -> list[str]:
    rng = random.Random(11)
    return ["".join(rng.choice(_CHARS) for _ in range(1 + i % 17)) for i in range(count)]


def _assert_same(directory: Path, library: Library, texts: list[str]) -> None:
    directory.mkdir(exist_ok=True)
    library.save(str(directory / "tokenizer.json"))
    tokenizer = Tokenizer(directory)
    mnn = mnn_text(directory, pack_tokenizer(tokenizer, vocab_size=1 << 17, stop_ids=[]))
    for text in texts:
        assert mnn.tokenizer_encode(text) == tokenizer.encode(text), ascii(text)


class _Patterns:
    """Random patterns of the kind that pass."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def __call__(self) -> str:
        while True:
            pattern = "|".join(self._branch() for _ in range(self._rng.randint(1, 4)))
            with contextlib.suppress(TokenizerError):
                check_pattern(pattern)
                return pattern

    def _branch(self) -> str:
        atoms = [self._atom() + self._choose(_QUANTIFIERS) for _ in range(self._rng.randint(0, 2))]
        atoms.insert(
            self._rng.randint(0, len(atoms)), self._atom() + self._choose(["", "+", "{2}"])
        )
        return "".join(atoms) + self._choose(["", "", self._group()])

    def _group(self) -> str:
        words = ["".join(self._atom() for _ in range(self._rng.randint(1, 2))) for _ in range(2)]
        return self._choose([f"(?!{self._atom()})", f"(?:{'|'.join(words)})", f"(?i:{words[0]})"])

    def _atom(self) -> str:
        inside = "".join(self._choose(_ITEMS) for _ in range(self._rng.randint(1, 3)))
        return self._choose([*_SINGLE, f"[{inside}]", f"[^{inside}]"])

    def _choose(self, options: list[str]) -> str:
        return self._rng.choice(options)


_SINGLE = ["a", "b", " ", "_", "'", "\\.", "\\$", "\\s", "\\S", "\\n", ".", "\n"] + [
    f"\\{case}{{{kind}}}" for case in "pP" for kind in "LNMPS"
]
_QUANTIFIERS = ["", "", "+", "*", "?", "{2}", "{1,3}", "{2,}", "{0,2}"]
_ITEMS = [*_SINGLE[:-1], "a-s", "0-9", "A-Z", "\\-", "\\[", "_^", "$"]


def test_random_patterns(tmp_path: Path) -> None:
    patterns = _Patterns(1)
    for number in range(150):
        pattern = patterns()
        inverted = number % 5 == 4
        behavior = ("isolated", "removed")[number % 2]
        split = pre_tokenizers.Split(Regex(pattern), behavior, invert=inverted)
        try:
            _assert_same(tmp_path, _library(split), _texts())
        except AssertionError as error:
            raise AssertionError(f"{pattern!r} {behavior} {inverted}: {error}") from error


@pytest.mark.parametrize(
    "split",
    [
        pre_tokenizers.Split(" ", "removed"),
        pre_tokenizers.Split(".", "isolated"),
        pre_tokenizers.Split("$_", "isolated"),
        pre_tokenizers.Split("▁", "isolated"),
        pre_tokenizers.Split("é.", "isolated"),
        pre_tokenizers.Split(Regex("\\s+$"), "isolated"),
        pre_tokenizers.Split(Regex("[.$]$|a"), "isolated"),
        pre_tokenizers.Split(Regex("\\s?[a-z中é]+"), "isolated"),
        pre_tokenizers.Split(Regex("[^中’]+"), "removed"),
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.Digits(individual_digits=False),
        pre_tokenizers.Sequence([pre_tokenizers.Split("a", "isolated")]),
    ],
    ids=lambda split: str(json.loads(split.__getstate__()))[:60],
)
def test_other_forms(tmp_path: Path, split: Any) -> None:
    _assert_same(tmp_path, _library(split), _texts(200))


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "a|",
        "a*",
        "a?|b",
        "a{0,2}",
        "a?(?!b)",
        "^a",
        "a+?",
        "a++",
        "a{,3}",
        "\\p{N}{1,3}+",
        "\\p{Lu}+",
        "\\p{Han}+",
        "\\p{Z}",
        "\\w+",
        "\\d",
        "\\bfoo",
        "\\x41",
        "(a)\\1",
        "(?<=a)b",
        "a(?=b)",
        "(?>a)",
        "(?i)a",
        "(?:a|ab)c",
        "(?:a)+",
        "(?:a(?:b))",
        "[a&&b]",
        "[[:alpha:]]",
        "[a[b]]",
        "[中\\s]+",
        "中+文",
        "[中]|a",
        "[中]\\p{L}",
        "\\s+[中]",
    ],
)
def test_patterns_that_mnn_would_misread(pattern: str) -> None:
    step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    with pytest.raises(TokenizerError, match="pattern is"):
        pre_tokenizer(step)
