"""A lower bound on how many tokens a text has, without tokenising it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

_UNICODE = {"NFC": 4.0, "NFD": 4.0, "NFKC": 4.0, "NFKD": 4.0, "Lowercase": 3.0}
"""How many times smaller a text may become in UTF-8: "\U0001d400" to "A", "\u212a" to "k"."""
_DROP_SPACE = ("Whitespace", "WhitespaceSplit", "BertPreTokenizer")
_DROP_NOTHING = ("ByteLevel", "Digits", "Metaspace", "UnicodeScripts", "FixedLength")


class TokenBound:
    """Adds up the weights of a text's bytes; those of any one token's bytes sum to at most 1.

    That holds when a byte weighs 1 / the size of the longest token that it is in. Where the
    normalizer changes bytes, each weighs 1 / the size of the longest token / how many times
    smaller a text may become. White space that may be dropped weighs nothing, and so do bytes that
    the vocabulary lacks; where any text may be dropped, nothing has a weight.

    Args:
        spec: the fields of tokenizer.json.
        vocab: the tokens of its model.
        added: the added tokens' texts, as they are and normalised.
        strips: whether one of them takes the white space around it.
    """

    def __init__(
        self, spec: Mapping[str, Any], vocab: Iterable[str], added: Iterable[str], strips: bool
    ) -> None:
        normalizers = _parts(spec.get("normalizer"), "normalizers")
        pre_tokenizers = _parts(spec.get("pre_tokenizer"), "pretokenizers")
        names = [part.get("type") for part in pre_tokenizers]
        self._drops_space = strips or any(name in _DROP_SPACE for name in names)
        levels = [part for part in (*normalizers, *pre_tokenizers) if part["type"] == "ByteLevel"]
        letters = byte_letters() if levels else {}
        vocab = set(vocab)
        longest = np.ones(256)
        for token in (*(_bytes(t, letters) for t in vocab), *(_bytes(t, {}) for t in added)):
            held = np.frombuffer(token, np.uint8)
            longest[held] = np.maximum(longest[held], len(token))
        known = _known_bytes(spec["model"], vocab, letters)
        if not all(map(_drops_nothing, pre_tokenizers)):
            known[:] = False
        shrink = _shrink(normalizers) if known.all() else 0.0
        self._uniform = np.full(256, 1 / longest.max() / shrink if shrink else 0.0)
        self._weights = known / longest
        same = len(levels) == 1 and "Metaspace" not in names
        changing = {part["type"] for part in normalizers} - {"ByteLevel"}
        self._exact = same and not changing
        self._ascii_exact = same and changing <= _UNICODE.keys() - {"Lowercase"}

    def least_tokens(self, text: str) -> int:
        """No more than the number of text's tokens."""
        exact = self._exact or (self._ascii_exact and text.isascii())
        if self._drops_space:
            text = "".join(text.split())
        held = np.frombuffer(text.encode("utf-8", "replace"), np.uint8)
        counts = np.bincount(held, minlength=256)
        weights = self._weights if exact else self._uniform
        return int(float(counts @ weights) * (1 - 1e-9))


def byte_letters() -> dict[str, int]:
    """The letters by which ByteLevel writes the 256 bytes: printable ones stand for themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + index): byte for index, byte in enumerate(others)
    }


def _bytes(token: str, letters: Mapping[str, int]) -> bytes:
    """What a token covers of a text; one that is not written in letters covers nothing."""
    try:
        return bytes(letters[letter] for letter in token) if letters else token.encode()
    except (KeyError, UnicodeEncodeError):
        return b""


def _known_bytes(
    model: Mapping[str, Any], vocab: set[str], letters: Mapping[str, int]
) -> npt.NDArray[np.bool_]:
    """Which bytes surely end in some token: others are dropped, or become one unknown token."""
    known = np.zeros(256, bool)
    affixes = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
    if model.get("type", "BPE") in ("BPE", "Unigram") and not affixes:
        known[[byte for letter, byte in letters.items() if letter in vocab]] = True
        fallback = (f"<0x{byte:02X}>" for byte in range(256))
        known |= bool(model.get("byte_fallback")) and vocab.issuperset(fallback)
    return known


def _drops_nothing(pre_tokenizer: Mapping[str, Any]) -> bool:
    """But for white space."""
    name = pre_tokenizer.get("type")
    if name in ("Split", "Punctuation"):
        return bool(pre_tokenizer.get("behavior") != "Removed")
    return name in _DROP_SPACE or name in _DROP_NOTHING


def _shrink(normalizers: Iterable[Mapping[str, Any]]) -> float:
    """How many times smaller they may make a text; 0: any number of times."""
    times = 1.0
    for part in normalizers:
        match part:
            case {"type": "ByteLevel" | "Prepend"}:
                pass
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if new:
                times *= max(1.0, len(old.encode()) / len(new.encode()))
            case {"type": str(name)} if name in _UNICODE:
                times *= _UNICODE[name]
            case _:
                return 0.0
    return times


def _parts(part: Mapping[str, Any] | None, name: str) -> list[Mapping[str, Any]]:
    """A normalizer or pre-tokenizer, or those of a sequence of them, in order."""
    if not part:
        return []
    if part.get("type") != "Sequence":
        return [part]
    return [inner for each in part[name] for inner in _parts(each, name)]
