"""What a tokenizer.json may consist of: the types, their fields, and how much they grow a text.

The tables name what the `tokenizers` library knows, with the range of each field. They leave out
what makes it abort, panic or answer at random: a `continuing_subword_prefix` of a BPE model,
`dropout`, a decoder's Strip from the end.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from deepmnn.text.pattern_check import check_pattern

MAX_TEXT = 1 << 17
"""Characters of a token, or of what replaces another text."""
MAX_PIECE = 4096
"""Of a Unigram token: the library looks for the longest one at every place of a text."""
MAX_ID = 1 << 24
"""The largest published vocabularies have 2^18 tokens."""

Check = Callable[[Any], object]
"""Raises FieldError."""


class FieldError(Exception):
    """A field's value is not what `expected` says."""

    def __init__(self, expected: str) -> None:
        super().__init__(expected)
        self.expected = expected


@dataclass(frozen=True)
class Part:
    """A type of normalizer, pre-tokenizer, ...

    Attributes:
        fields: what to check of it; the library ignores others, and asks for those that it needs.
        growth: how many times longer it may make a text, by its fields, which are checked.
        together: what to check of all fields together.
    """

    fields: Mapping[str, Check] = field(default_factory=dict)
    growth: Callable[[Mapping[str, Any]], float] = lambda fields: 1.0
    together: Check = lambda fields: None


def flag(value: Any) -> None:
    """true or false."""
    if not isinstance(value, bool):
        raise FieldError("true or false")


def integer(low: int, high: int) -> Check:
    """low to high."""

    def check(value: Any) -> None:
        if type(value) is not int or not low <= value <= high:
            raise FieldError(f"an integer from {low} to {high}")

    return check


def text(low: int, high: int) -> Check:
    """A string of low to high characters."""

    def check(value: Any) -> None:
        if not isinstance(value, str) or not low <= len(value) <= high:
            raise FieldError(f"a string of {low} to {high} characters")

    return check


def one_of(*names: str) -> Check:
    """One of the names."""

    def check(value: Any) -> None:
        if value not in names:
            raise FieldError(" or ".join(names))

    return check


def optional(check: Check) -> Check:
    """null, or what `check` allows."""
    return lambda value: None if value is None else check(value)


def _pattern(value: Any) -> None:
    """{"String": text} or {"Regex": pattern}."""
    match value:
        case {"String": str(string), **rest} if not rest:
            text(0, MAX_TEXT)(string)
        case {"Regex": str(regex), **rest} if not rest:
            check_pattern(regex)
        case _:
            raise FieldError('{"String": text} or {"Regex": pattern}')


def _replaced(value: Any) -> None:
    """A pattern that matches something: the library counts beyond the text when it does not."""
    _pattern(value)
    if not _shortest(value):
        raise FieldError("a pattern that matches no empty text")


def _shortest(pattern: Mapping[str, str]) -> int:
    """Bytes of the shortest match, at least."""
    if "String" in pattern:
        return len(pattern["String"].encode("utf-8", "replace"))
    return check_pattern(pattern["Regex"])


def _charsmap(value: Any) -> None:
    """A table of SentencePiece: the size of a trie, the trie, and texts that end in a zero byte."""
    try:
        table = base64.b64decode(value, validate=True)
        size = int.from_bytes(table[:4], "little")
        table[4 + size :].decode()
    except (TypeError, ValueError, binascii.Error):
        raise FieldError("SentencePiece's table in base64") from None
    if len(table) < 8 or size % 4 or not 4 <= size <= len(table) - 4:
        raise FieldError("SentencePiece's table in base64")


def _charsmap_growth(fields: Mapping[str, Any]) -> float:
    table = base64.b64decode(fields["precompiled_charsmap"])
    texts = table[4 + int.from_bytes(table[:4], "little") :].split(b"\0")
    return float(max(1, *map(len, texts), 1))


def _replace_growth(fields: Mapping[str, Any]) -> float:
    content = len(fields["content"].encode("utf-8", "replace"))
    return max(1.0, content / _shortest(fields["pattern"]))


def _by(factor: float) -> Callable[[Mapping[str, Any]], float]:
    return lambda fields: factor


def _prepend_growth(name: str) -> Callable[[Mapping[str, Any]], float]:
    """A text of one byte gets it in front."""
    return lambda fields: 1.0 + len(fields[name].encode("utf-8", "replace"))


_ANY = text(0, MAX_TEXT)
_CHAR = text(1, 1)
_BEHAVIOR = one_of("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")
_LEVEL: dict[str, Check] = {"add_prefix_space": flag, "trim_offsets": flag, "use_regex": flag}
_METASPACE: dict[str, Check] = {
    "replacement": _CHAR,
    "str_rep": optional(_ANY),
    "add_prefix_space": optional(flag),
    "prepend_scheme": one_of("first", "never", "always"),
    "split": optional(flag),
}
_REPLACE = Part({"pattern": _replaced, "content": _ANY}, _replace_growth)

NORMALIZERS: dict[str, Part] = {
    "NFC": Part({}, _by(3)),
    "NFD": Part({}, _by(4)),
    "NFKC": Part({}, _by(11)),  # of U+FDFA
    "NFKD": Part({}, _by(11)),
    "Lowercase": Part({}, _by(1.5)),
    "StripAccents": Part(),
    "Nmt": Part(),
    "ByteLevel": Part({}, _by(2)),
    "BertNormalizer": Part(
        {
            "clean_text": flag,
            "handle_chinese_chars": flag,
            "strip_accents": optional(flag),
            "lowercase": flag,
        },
        _by(6),
    ),
    "Strip": Part({"strip_left": flag, "strip_right": flag}),
    "Precompiled": Part({"precompiled_charsmap": _charsmap}, _charsmap_growth),
    "Replace": _REPLACE,
    "Prepend": Part({"prepend": _ANY}, _prepend_growth("prepend")),
}

PRE_TOKENIZERS: dict[str, Part] = {
    "ByteLevel": Part(_LEVEL, _by(3)),
    "Split": Part({"pattern": _pattern, "behavior": _BEHAVIOR, "invert": flag}),
    "Digits": Part({"individual_digits": flag}),
    "Metaspace": Part(_METASPACE, _prepend_growth("replacement")),
    "Whitespace": Part(),
    "WhitespaceSplit": Part(),
    "BertPreTokenizer": Part(),
    "UnicodeScripts": Part(),
    "Punctuation": Part({"behavior": _BEHAVIOR}),
    "CharDelimiterSplit": Part({"delimiter": _CHAR}),
    "FixedLength": Part({"length": integer(1, 1 << 20)}),
}

DECODERS: dict[str, Part] = {
    "ByteLevel": Part(_LEVEL),
    "Metaspace": Part(_METASPACE),
    "Replace": _REPLACE,
    "ByteFallback": Part(),
    "Fuse": Part(),
    # At the end the library counts beyond tokens that are shorter.
    "Strip": Part({"content": _CHAR, "start": integer(0, MAX_TEXT), "stop": integer(0, 0)}),
    "WordPiece": Part({"prefix": _ANY, "cleanup": flag}, _by(2)),
    "BPEDecoder": Part({"suffix": _ANY}, _by(2)),
    "CTC": Part({"pad_token": _ANY, "word_delimiter_token": _ANY, "cleanup": flag}, _by(2)),
}


def _marked(value: Any) -> None:
    match value:
        case [str(), int(index)] if 0 <= index < MAX_ID:
            return
    raise FieldError("a token and its id")


def _template(*sequences: str) -> Check:
    """Pieces of a template: special tokens, and each of `sequences` once."""
    kind = one_of("A", "B")

    def check(value: Any) -> None:
        found = []
        for piece in value if isinstance(value, list) else [None]:
            match piece:
                case {"Sequence": {"id": str(name), "type_id": type_id}}:
                    kind(name)
                    found.append(name)
                case {"SpecialToken": {"id": str(), "type_id": type_id}}:
                    pass
                case _:
                    raise FieldError("special tokens and the text")
            integer(0, 255)(type_id)
        if sorted(found) != list(sequences) or len(value) > 32:
            raise FieldError(f"at most 32 pieces, among them {' and '.join(sequences)} once")

    return check


def _template_tokens(value: Any) -> None:
    """{name: {"id": name, "ids": [...], "tokens": [...]}}."""
    if not isinstance(value, dict):
        raise FieldError("an object of special tokens")
    for token in value.values():
        match token:
            case {"id": str(), "ids": list(ids), "tokens": list(tokens)}:
                known = all(type(i) is int and 0 <= i < MAX_ID for i in ids)
                if known and len(ids) == len(tokens) <= 16:
                    continue
        raise FieldError("special tokens with at most 16 ids, and as many tokens")


def _known_tokens(fields: Mapping[str, Any]) -> None:
    """The library looks up special tokens of a template without asking whether they are there."""
    for name in ("single", "pair"):
        for piece in fields.get(name, ()):
            special = piece.get("SpecialToken")
            if special is not None and special["id"] not in fields.get("special_tokens", {}):
                raise FieldError("special tokens among special_tokens")


_BERT: dict[str, Check] = {"sep": _marked, "cls": _marked}
POST_PROCESSORS: dict[str, Part] = {
    "ByteLevel": Part(_LEVEL),
    "BertProcessing": Part(_BERT),
    "RobertaProcessing": Part({**_BERT, "trim_offsets": flag, "add_prefix_space": flag}),
    "TemplateProcessing": Part(
        {
            "single": _template("A"),
            "pair": _template("A", "B"),
            "special_tokens": _template_tokens,
        },
        together=_known_tokens,
    ),
}


def _vocab(value: Any) -> None:
    """{token: id}."""
    kinds = set(map(type, value.values())) if isinstance(value, dict) else {None}
    if kinds - {int} or (value and not 0 <= min(value.values()) <= max(value.values()) < MAX_ID):
        raise FieldError(f"an object of tokens and their ids, below {MAX_ID}")


def _scores(value: Any) -> None:
    """[[token, score], ...]."""
    for entry in value if isinstance(value, list) else [None]:
        match entry:
            case [str(token), int(score) | float(score)] if 0 < len(token) <= MAX_PIECE:
                if not isinstance(score, bool) and math.isfinite(score) and abs(score) <= 1e6:
                    continue
        raise FieldError("a list of tokens and their scores")


def _merges(value: Any) -> None:
    """["left right", ...] or [["left", "right"], ...]."""
    if not isinstance(value, list) or not set(map(type, value)) <= {str, list}:
        raise FieldError("a list of merges")


def _nothing(value: Any) -> None:
    if value:
        raise FieldError("none")


def _no_dropout(value: Any) -> None:
    if value is not None and (isinstance(value, bool) or value != 0):
        raise FieldError("none: it makes tokens random")


MODELS: dict[str, Part] = {
    "BPE": Part(
        {
            "vocab": _vocab,
            "merges": _merges,
            "dropout": _no_dropout,
            "unk_token": optional(_ANY),
            "continuing_subword_prefix": _nothing,
            "end_of_word_suffix": optional(text(0, 64)),
            "fuse_unk": optional(flag),
            "byte_fallback": optional(flag),
            "ignore_merges": optional(flag),
        }
    ),
    "Unigram": Part(
        {"vocab": _scores, "unk_id": optional(integer(0, MAX_ID)), "byte_fallback": flag}
    ),
    "WordPiece": Part(
        {
            "vocab": _vocab,
            "unk_token": _ANY,
            "continuing_subword_prefix": text(0, 64),
            "max_input_chars_per_word": integer(1, 1000),
        }
    ),
    "WordLevel": Part({"vocab": _vocab, "unk_token": _ANY}),
}

ADDED_TOKEN = Part(
    {
        "id": integer(0, MAX_ID),
        "content": _ANY,
        **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), flag),
    }
)
