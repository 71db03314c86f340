"""Reads `tokenizer.mtok` back, to the last byte: it must be a file that mtok.py could have written.

MNN takes every length, count and id in it as it stands.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deepmnn.errors import ArtifactError
from deepmnn.exporters.mnn import mtok

MAX_STEPS = 1 << 16
"""Of a normalizer: NFC takes 13,233."""

_Step = Callable[["_Reader"], None]


def check_tokenizer(data: bytes, path: Path, vocab_size: int) -> None:
    """Raises ArtifactError unless every record is whole, every id below `vocab_size`, and no byte
    left over.
    """
    try:
        reader = _Reader(data, vocab_size)
        reader.head()
        reader.steps(4, _NORMALIZERS)
        reader.steps(6, _PRE_TOKENIZERS)
        reader.model()
        reader.decoder()
        reader.added_tokens()
        reader.need(reader.at == len(data), "bytes after its end")
    except (struct.error, ValueError, IndexError) as fault:  # UnicodeDecodeError is a ValueError
        raise ArtifactError(
            f"{path} is damaged: {fault!s:.80}",
            "a tokenizer that export wrote",
            "Export the model again.",
        ) from None


class _Reader:
    """Takes one record after another. Raises ValueError, struct.error or IndexError."""

    def __init__(self, data: bytes, vocab_size: int) -> None:
        self.data, self.vocab_size, self.at = data, vocab_size, 0

    def need(self, condition: bool, found: str) -> None:
        if not condition:
            raise ValueError(f"byte {self.at}: {found}")

    def take(self, code: str) -> tuple[Any, ...]:
        """Little-endian numbers."""
        values = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
        return values

    def count(self, most: int, size: int) -> int:
        """How many records follow, of at least `size` bytes each."""
        (count,) = self.take("I")
        room = (len(self.data) - self.at) // size
        self.need(count <= min(most, room), f"{count} records in {len(self.data) - self.at} bytes")
        return int(count)

    def flag(self) -> None:
        (value,) = self.take("B")
        self.need(value in (0, 1), f"{value} for true or false")

    def text(self, empty: bool = True) -> bytes:
        """UTF-8."""
        (length,) = self.take("H")
        text = self.data[self.at : self.at + length]
        self.need(len(text) == length and (empty or length > 0), f"a text of {length} bytes")
        text.decode()
        self.at += length
        return text

    def head(self) -> None:
        """Stop and prefix ids, as text."""
        lines = self.data.split(b"\n", 3)[:3]
        self.need(len(lines) == 3 and len(lines[1]) < 64, "no head of three lines")
        counts = [int(word) for word in lines[1].split()]
        ids = [int(word) for word in lines[2].split()]
        self.need(len(counts) == 3 and counts[1] >= 0, "no head")
        self.need(all(0 <= index < self.vocab_size for index in ids), "an id that no token has")
        stop, prefix = ids[: counts[1]], ids[counts[1] :]
        head = mtok.head(stop, prefix)
        self.need(self.data.startswith(head), "a head that says something else")
        self.at = len(head)

    def steps(self, sequence: int, kinds: Mapping[int, _Step]) -> None:
        """Nothing, or a sequence of steps."""
        (kind,) = self.take("B")
        self.need(kind in (0, sequence), f"a record of kind {kind}")
        for _ in range(self.count(MAX_STEPS, 1) if kind else 0):
            (step,) = self.take("B")
            self.need(step in kinds, f"a step of kind {step}")
            kinds[step](self)

    def model(self) -> None:
        """Tokens, each id once, and merges; both sorted, for MNN bisects them."""
        (kind,) = self.take("B")
        self.need(kind == 0, f"a model of kind {kind}")
        tokens = self.count(self.vocab_size, 6)
        self.flag()
        (byte_level,) = self.take("B")
        self.need(byte_level == 0, "a model over bytes")
        merges = self.count((1 << 31) - 1, 12)
        ids, last = np.empty(tokens, np.int64), b""
        for index in range(tokens):
            token = self.text()
            self.need(token >= last, "tokens out of order")
            last = token
            (ids[index],) = self.take("I")
        self.need(_is_permutation(ids), "ids that are missing or twice there")
        self._merges(merges, tokens)

    def _merges(self, count: int, tokens: int) -> None:
        self.need(12 * count <= len(self.data) - self.at, f"{count} merges")
        table = np.frombuffer(self.data, "<u4", 3 * count, self.at).reshape(count, 3)
        table = table.astype(np.int64)
        self.at += 12 * count
        keys = table[:, 0] << 32 | table[:, 1]
        self.need(not count or int(table[:, :2].max()) < tokens, "merges of no tokens")
        self.need(bool((np.diff(keys) >= 0).all()), "merges out of order")
        self.need(_is_permutation(table[:, 2]), "ranks that are missing or twice there")

    def decoder(self) -> None:
        """BYTE_LEVEL_DECODER, or a sequence."""
        if self.data[self.at : self.at + 1] == mtok.BYTE_LEVEL_DECODER:
            self.at += 1
        else:
            self.steps(7, _DECODERS)

    def added_tokens(self) -> None:
        """Id, three flags and a text each."""
        for _ in range(self.count((1 << 31) - 1, 9)):
            (index,) = self.take("I")
            self.need(index < self.vocab_size, f"the id {index}")
            for _ in range(3):
                self.flag()
            self.text(empty=False)  # MNN would find an empty one everywhere


def _is_permutation(values: np.ndarray) -> bool:
    return np.array_equal(np.sort(values), np.arange(len(values)))


def _replace(reader: _Reader) -> None:
    reader.text(empty=False)
    reader.text()


def _split(reader: _Reader) -> None:
    reader.text(empty=False)
    reader.flag()
    (behavior,) = reader.take("B")
    reader.need(behavior in (mtok.ISOLATED, mtok.REMOVED), f"a split of kind {behavior}")


def _strip(reader: _Reader) -> None:
    reader.text(empty=False)
    most = max(reader.take("II"))
    reader.need(most < 1 << 16, f"{most} characters to strip")


_NORMALIZERS: dict[int, _Step] = {2: lambda reader: _text(reader), 3: _replace}
_PRE_TOKENIZERS: dict[int, _Step] = {1: _Reader.flag, 4: _split}
_DECODERS: dict[int, _Step] = {
    mtok.BYTE_FALLBACK_DECODER[0]: lambda reader: None,
    mtok.FUSE_DECODER[0]: lambda reader: None,
    5: _replace,
    6: _strip,
}


def _text(reader: _Reader) -> None:
    reader.text()
