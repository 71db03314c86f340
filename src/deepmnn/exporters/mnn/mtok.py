"""MNN's binary tokenizer file (`tokenizer.mtok`): its records as bytes, all little-endian.

A text head of three lines, then: normalizer, pre-tokenizer, model, decoder, added tokens. Strings
are a u16 length and UTF-8 bytes; vocabulary and merges are sorted, for MNN searches them by
bisection. MNN reads the file without any check: a wrong byte is a crash on the phone.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from deepmnn.errors import TokenizerError

FILE = "tokenizer.mtok"
"""The file's name in an MNN model folder (`tokenizer_file` in its config.json)."""

ISOLATED, REMOVED = range(2)
NOTHING = b"\0"
"""No normalizer, or no pre-tokenizer. As a decoder this byte means BYTE_LEVEL_DECODER."""
BYTE_LEVEL_DECODER = b"\0"
BYTE_FALLBACK_DECODER = b"\1"
FUSE_DECODER = b"\4"
_MAX_TEXT = (1 << 16) - 1


@dataclass(frozen=True)
class AddedToken:
    """A token that is cut out of the text before anything else looks at it."""

    id: int
    content: str
    special: bool
    lstrip: bool
    rstrip: bool


def head(stop_ids: Sequence[int], prefix_ids: Sequence[int]) -> bytes:
    """Ids that end an answer, ids in front of every encoded text.

    MNN's own list of special tokens stays empty: it would search them before the added tokens,
    first match instead of longest.
    """
    ids = " ".join(str(i) for i in (*stop_ids, *prefix_ids))
    return f"430 4\n0 {len(stop_ids)} {len(prefix_ids)}\n{ids}\n".encode()


def prepend(content: str) -> bytes:
    """Normalizer: content in front of the text."""
    return b"\2" + _text(content)


def replace(pattern: str, content: str) -> bytes:
    """Normalizer: content wherever pattern (plain text) stands."""
    return b"\3" + _text(pattern) + _text(content)


def normalizers(steps: Sequence[bytes]) -> bytes:
    """Normalizer: one after another."""
    return _sequence(4, steps)


def byte_level(use_regex: bool) -> bytes:
    """Pre-tokenizer: bytes as GPT-2's letters; use_regex splits as GPT-2 does before."""
    return struct.pack("<BB", 1, use_regex)


def split(pattern: str, invert: bool, behavior: int) -> bytes:
    """Pre-tokenizer: matches of pattern (inverted: what lies between) are pieces of their own."""
    return b"\4" + _text(pattern) + struct.pack("<BB", invert, behavior)


def pre_tokenizers(steps: Sequence[bytes]) -> bytes:
    """Pre-tokenizer: one after another."""
    return _sequence(6, steps)


def bpe(
    vocab: Iterable[tuple[bytes, int]], merges: Iterable[tuple[int, int]], byte_fallback: bool
) -> bytes:
    """Model: tokens with ids 0 .. n-1, each once, and pairs of ids in the order of their rank.

    Of equal tokens MNN finds the first.
    """
    tokens = sorted(vocab, key=lambda entry: entry[0])
    ranked = sorted((left, right, rank) for rank, (left, right) in enumerate(merges))
    parts = [struct.pack("<BIBBI", 0, len(tokens), byte_fallback, 0, len(ranked))]
    parts += [_text(token) + struct.pack("<I", index) for token, index in tokens]
    parts += [struct.pack("<III", *merge) for merge in ranked]
    return b"".join(parts)


def replace_decoder(pattern: str, content: str) -> bytes:
    """Decoder: content wherever pattern (plain text) stands."""
    return b"\5" + _text(pattern) + _text(content)


def strip_decoder(content: str, start: int, stop: int) -> bytes:
    """Decoder: takes content from the ends of the whole text."""
    return b"\6" + _text(content) + struct.pack("<II", start, stop)


def decoders(steps: Sequence[bytes]) -> bytes:
    """Decoder: one after another."""
    return _sequence(7, steps)


def added_tokens(tokens: Sequence[AddedToken]) -> bytes:
    """The tokens that are cut out of the text first, the longest of those at a place."""
    parts = [struct.pack("<I", len(tokens))]
    for token in tokens:
        flags = (token.special, token.lstrip, token.rstrip)
        parts.append(struct.pack("<IBBB", token.id, *flags) + _text(token.content))
    return b"".join(parts)


def byte_letters() -> Mapping[int, str]:
    """The letter that stands for each byte in a byte-level vocabulary (GPT-2's table)."""
    plain = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in plain)
    return {byte: chr(byte) for byte in plain} | {b: chr(256 + i) for i, b in enumerate(others)}


def _sequence(kind: int, steps: Sequence[bytes]) -> bytes:
    return struct.pack("<BI", kind, len(steps)) + b"".join(steps)


def _text(value: str | bytes) -> bytes:
    data = value if isinstance(value, bytes) else value.encode()
    if len(data) > _MAX_TEXT:
        raise TokenizerError(
            f"the tokenizer holds a text of {len(data)} bytes, {data[:20]!r}…",
            f"at most {_MAX_TEXT}, for MNN",
        )
    return struct.pack("<H", len(data)) + data
