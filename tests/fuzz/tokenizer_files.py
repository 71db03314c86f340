"""Uses many damaged tokenizer.json files: run as a program, whose death would be the finding.

    python -m fuzz.tokenizer_files DIRECTORY SEED COUNT

Prints how many loaded, and how many were refused as TokenizerError.
"""

from __future__ import annotations

import base64
import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import deepmnn
from deepmnn.errors import RequestError, TokenizerError
from deepmnn.text.tokenizer import Tokenizer
from fuzz.mutations import mutate_json

TEXTS = (
    "",
    "1+1 aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!",
    "<think>\n é你好🐋 \u0301\ufdfa\x00",
    "a" * 3000,
)

ANY = {"String": " "}
CHARSMAP = base64.b64encode((8).to_bytes(4, "little") + b"\1\2\3\4\5\6\7\x08" + b"ab\0c\0").decode()
PARTS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "normalizer": (
        "normalizers",
        [
            *({"type": name} for name in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Nmt")),
            *({"type": name} for name in ("StripAccents", "ByteLevel", "Bert", "Unknown")),
            {"type": "Replace", "pattern": {"Regex": "."}, "content": "aaaaaaaaaa"},
            {"type": "Replace", "pattern": ANY, "content": "▁"},
            {"type": "Replace", "pattern": {"String": ""}, "content": "xyz"},
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Strip", "strip_left": True, "strip_right": True},
            {
                "type": "BertNormalizer",
                "clean_text": True,
                "handle_chinese_chars": True,
                "strip_accents": None,
                "lowercase": True,
            },
            {"type": "Precompiled", "precompiled_charsmap": CHARSMAP},
            {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
        ],
    ),
    "pre_tokenizer": (
        "pretokenizers",
        [
            *({"type": name} for name in ("Whitespace", "WhitespaceSplit", "BertPreTokenizer")),
            {"type": "UnicodeScripts"},
            {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
            {"type": "Split", "pattern": ANY, "behavior": "Removed", "invert": False},
            *(
                {"type": "Split", "pattern": {"Regex": r}, "behavior": "Isolated", "invert": True}
                for r in ("(a+)+$", r"\p{N}{1,3}", "(a|a)*b", "(?<x>a)\\k<x>", "", "[", "a{9999}")
            ),
            {"type": "Digits", "individual_digits": True},
            {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False},
            {"type": "Punctuation", "behavior": "Contiguous"},
            {"type": "CharDelimiterSplit", "delimiter": "a"},
            {"type": "FixedLength", "length": 0},
            {"type": "FixedLength", "length": 3},
        ],
    ),
    "decoder": (
        "decoders",
        [
            *({"type": name} for name in ("ByteFallback", "Fuse", "WordLevel")),
            {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
            {"type": "Replace", "pattern": ANY, "content": "y" * 50},
            {"type": "Strip", "content": "a", "start": 1, "stop": 0},
            {"type": "Strip", "content": "a", "start": 0, "stop": 5},
            {"type": "WordPiece", "prefix": "##", "cleanup": True},
            {"type": "BPEDecoder", "suffix": ""},
            {"type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": True},
            {"type": "Metaspace", "replacement": "a", "add_prefix_space": True},
        ],
    ),
    "post_processor": (
        "processors",
        [
            {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
            {"type": "BertProcessing", "sep": ["a", 1], "cls": ["b", 2]},
            {
                "type": "RobertaProcessing",
                "sep": ["a", 1],
                "cls": ["b", 1 << 31],
                "trim_offsets": True,
                "add_prefix_space": True,
            },
            {
                "type": "TemplateProcessing",
                "single": [
                    {"SpecialToken": {"id": "<s>", "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}},
                ],
                "pair": [
                    {"Sequence": {"id": "A", "type_id": 0}},
                    {"Sequence": {"id": "B", "type_id": 1}},
                ],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
            },
        ],
    ),
}


def models(vocab: dict[str, int]) -> list[dict[str, Any]]:
    """Of other types than the base's; BPE with what its builder stumbles over."""
    bpe = {"type": "BPE", "vocab": vocab, "merges": [["a", "b"], "b c"], "unk_token": "zz"}
    return [
        bpe,
        {**bpe, "merges": [], "dropout": 0.5},
        {**bpe, "merges": [], "continuing_subword_prefix": "é"},
        {**bpe, "merges": [], "end_of_word_suffix": "</w>", "byte_fallback": True},
        {"type": "WordLevel", "vocab": vocab, "unk_token": "zz"},
        {
            "type": "WordPiece",
            "vocab": vocab,
            "unk_token": "a",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
        },
        {"type": "Unigram", "vocab": [["a", -1.0], ["aa", -1e300]], "unk_id": 0},
        {"type": "Unigram", "vocab": [["a", -1.0], ["é", 0]], "unk_id": 7, "byte_fallback": True},
        {"type": "Unigram", "vocab": [], "unk_id": None},
    ]


def damaged(rng: np.random.Generator, base: dict[str, Any]) -> dict[str, Any]:
    """A file with other parts, or with a wrong value in some place, or with both."""
    spec = {**base}
    while rng.random() < 0.6:
        field = str(rng.choice(list(PARTS)))
        inner, kinds = PARTS[field]
        parts = [copy.deepcopy(kinds[i]) for i in rng.integers(len(kinds), size=rng.integers(1, 5))]
        spec[field] = parts[0] if len(parts) == 1 else {"type": "Sequence", inner: parts}
        if rng.random() < 0.1:
            for _ in range(int(rng.integers(60))):
                spec[field] = {"type": "Sequence", inner: [spec[field]]}
    if rng.random() < 0.2:
        found = models({"a": 0, "b": 1, "ab": 2, "é": 3})
        spec["model"] = found[int(rng.integers(len(found)))]
    model = spec["model"]
    large = {name: model[name] for name in ("vocab", "merges") if name in model}
    if rng.random() < 0.7:  # a place in the vocabulary is one of thousands
        spec["model"] = {name: value for name, value in model.items() if name not in large}
    for _ in range(int(rng.integers(4))):
        spec = mutate_json(rng, spec)
    if isinstance(spec, dict) and isinstance(spec.get("model"), dict):
        spec["model"] = large | spec["model"]
    return spec


def use(directory: Path) -> None:
    """All that a tokenizer is asked."""
    tokenizer = Tokenizer(directory)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert tokenizer.least_tokens(text) <= len(ids)
        tokenizer.decode(ids, skip_special_tokens=False)
        stream = tokenizer.detokenizer()
        for token in ids[:50]:
            stream.push(token)
            tokenizer.special_text(token)
        stream.flush()
    tokenizer.decode([])
    tokenizer.token_id("a")
    tokenizer.leading_special("<think>")


def main(directory: Path, seed: int, count: int) -> None:
    base = json.loads((Path(deepmnn.__file__).parent / "tiny_r1" / "tokenizer.json").read_text())
    rng = np.random.default_rng(seed)
    loaded = refused = 0
    for _ in range(count):
        spec = damaged(rng, base)
        (directory / "tokenizer.json").write_text(json.dumps(spec))
        try:
            use(directory)
            loaded += 1
        except (TokenizerError, RequestError):
            refused += 1
    print(loaded, refused)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
