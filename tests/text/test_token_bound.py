"""The bound against the `tokenizers` library, on texts made to come close to it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from deepmnn.text.token_bound import byte_letters
from deepmnn.text.tokenizer import Tokenizer

PIECES = ["the", " the", " " * 9, "=" * 6, "你好", "12", "K", "\u00c5", "각", "A"]
TEXTS = [
    " " * 400,
    "\u212a" * 50,
    "\U0001d400" * 50,
    "\u1100\u1161\u11a8" * 40,
    "A\u030a" * 50,
    "\u0301" * 60,
    "\x07\x08" * 40,
    "<call> " * 30,
    "<call>" + " " * 300,
    "#" * 90,
    "==" * 60 + "the the 你好",
    "e" * 300,
]


def bpe(byte_level: bool, added: list[AddedToken]) -> tokenizers.Tokenizer:
    """Every piece is one token: with ignore_merges no merges need to lead there."""
    letters = {byte: letter for letter, byte in byte_letters().items()}
    tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens += sorted(letters.values()) if byte_level else []
    tokens += [
        "".join(letters[b] for b in piece.encode()) if byte_level else piece.replace(" ", "▁")
        for piece in PIECES
    ]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    model = models.BPE(vocab, [], ignore_merges=True, byte_fallback=True)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.add_tokens(added)
    return tokenizer


NORMALIZERS: list[Any] = [
    None,
    *(normalizers.NFC(), normalizers.NFD(), normalizers.NFKC(), normalizers.NFKD()),
    *(normalizers.Lowercase(), normalizers.Strip(), normalizers.StripAccents()),
    *(normalizers.Nmt(), normalizers.BertNormalizer(), normalizers.Prepend("▁")),
    *(
        normalizers.Replace(" ", "▁"),
        normalizers.Replace("####", "="),
        normalizers.Replace("e", ""),
    ),
    normalizers.Replace(tokenizers.Regex("e+"), "e"),
    normalizers.Sequence([normalizers.Lowercase(), normalizers.NFKC()]),
    normalizers.Sequence([normalizers.Replace("##", "="), normalizers.Replace("==", "=")]),
]
SPLIT = tokenizers.Regex(r"\s+|=+")
PRE_TOKENIZERS: list[Any] = [
    None,
    pre_tokenizers.Split(SPLIT, "isolated"),
    pre_tokenizers.Split(SPLIT, "removed"),
    pre_tokenizers.WhitespaceSplit(),
    pre_tokenizers.Whitespace(),
    pre_tokenizers.Digits(individual_digits=True),
    pre_tokenizers.Metaspace(),
    pre_tokenizers.CharDelimiterSplit("e"),
    pre_tokenizers.Punctuation("removed"),
]
ADDED = [
    [],
    [AddedToken("<call>", normalized=False)],
    [AddedToken("<call>", lstrip=True, rstrip=True)],
    [AddedToken("A" * 12)],
]


@pytest.mark.parametrize("byte_level", [True, False])
def test_no_text_has_fewer_tokens(tmp_path: Path, byte_level: bool) -> None:
    rng = random.Random(0)
    texts = TEXTS + ["".join(rng.choices([*PIECES, *"aé \n", "<call>"], k=80)) for _ in range(6)]
    bounded = 0
    for normalizer in NORMALIZERS:
        for pre_tokenizer in PRE_TOKENIZERS:
            for added in ADDED:
                tokenizer = bpe(byte_level, added)
                if normalizer is not None:
                    tokenizer.normalizer = normalizer
                level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
                parts = [pre_tokenizer] if pre_tokenizer else []
                parts += [level] if byte_level else []
                if parts:
                    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
                tokenizer.save(str(tmp_path / "tokenizer.json"))
                ours = Tokenizer(tmp_path)
                for text in texts:
                    least = ours.least_tokens(text)
                    assert least <= len(tokenizer.encode(text).ids), (normalizer, parts, text)
                    bounded += least > 0
    assert bounded > 1000


def test_the_bound_is_close_where_it_can_be(tmp_path: Path) -> None:
    tokenizer = bpe(True, [])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer(tmp_path)
    assert ours.least_tokens(" " * 9 * 1000) == 999, "one long token is 9 spaces"
    assert ours.least_tokens("?" * 1000) == 999, "a byte of no long token is a token"
    assert ours.least_tokens("") == 0


def test_bytes_that_the_vocabulary_lacks_count_for_nothing(tmp_path: Path) -> None:
    """SmolLM lacks some control characters, which are dropped."""
    vocab = {letter: index for index, letter in enumerate(letter for letter in "?=")}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    text = "\x04" * 100 + "?=" * 50
    assert len(tokenizer.encode(text).ids) == 100
    assert Tokenizer(tmp_path).least_tokens(text) == 99


def test_flags_of_the_settings_count(tmp_path: Path) -> None:
    """tokenizer_config.json may say that a token takes the space around it."""
    tokenizer = bpe(True, [])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer(tmp_path).least_tokens(" " * 9000) > 900
    token = {"content": "<call>", "rstrip": True, "lstrip": False, "special": True}
    listed = {"added_tokens_decoder": {str(tokenizer.get_vocab_size()): token}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(listed))
    ours = Tokenizer(tmp_path)
    text = "<call>" + " " * 9000
    assert ours.least_tokens(text) <= len(ours.encode(text)) == 1


@pytest.mark.parametrize("kind", ["WordLevel", "WordPiece", "Unigram"])
def test_unknown_text_counts_for_nothing(tmp_path: Path, kind: str) -> None:
    vocab: Any = [["[UNK]", 0.0], ["a", -1.0]] if kind == "Unigram" else {"[UNK]": 0, "a": 1}
    model = {"type": kind, "vocab": vocab, "unk_token": "[UNK]", "unk_id": 0}
    model |= {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    fields = {"version": "1.0", "added_tokens": [], "model": model}
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    assert Tokenizer(tmp_path).least_tokens("?" * 1000) <= 1
