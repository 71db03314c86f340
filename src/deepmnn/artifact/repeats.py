"""Finds the bytes of weights that are stored already, and zeros, so that a file has them once.

Equality is that of bytes, whatever weights they are of. Whole weights are compared at any size;
parts of weights at page borders, where the engine can map them one after another:

    weight   [ new ][ as in another weight ][ new ][ zeros ][ new ]
    file     [ new ][ new ][ new ]

Rows are found by samples. A block of rows that is equal to another block lies a multiple of
`stride` bytes from it: the least number that is a multiple of a block and of a page. So a few
bytes at the same places of every stride tell which pages may be equal, and only those are compared,
with what is on the disk: equal samples decide nothing. Memory is for a million samples at most,
about 150 MB.
"""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from deepmnn.artifact.shards import PAGED_NBYTES
from deepmnn.backends.cpu.pieces import PAGE, ZEROS, Piece, Pieces
from deepmnn.formats import U8

RUN_NBYTES = 64 << 10
"""Zeros, or bytes that are stored already, that are fewer than so many stay where they are."""

MOST_SAMPLES = 1 << 20
MOST_PIECES = 256
"""Of one weight."""

_SAMPLE = 32
"""Bytes of a sample."""

_PLACES = 16
"""Samples of a whole weight."""

_CHUNK = 1 << 20
"""About as many bytes are compared at a time."""

_FACTORS = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93], np.uint64
)

Read = Callable[[int, int, int], U8]
"""The bytes of a weight file, by its number, offset and size; fewer at what is written of it."""

Span = tuple[int, int]
"""Where bytes of a weight begin and end."""


@dataclass(frozen=True)
class Part:
    """Bytes of a weight that are not stored anew, and where they come from."""

    begin: int
    end: int
    source: Piece

    def covers(self, at: int) -> bool:
        """Whether a byte is in it."""
        return self.begin <= at < self.end


class Repeats:
    """What has been stored so far.

    Args:
        nbytes: of all weights.
        read: reads what is stored.
        most_pieces: of all weights that have several.
    """

    def __init__(self, nbytes: int, read: Read, most_pieces: int) -> None:
        self._read, self._left = read, most_pieces
        spacing = max(RUN_NBYTES, math.ceil(nbytes / MOST_SAMPLES))
        self._spacing = math.ceil(spacing / PAGE) * PAGE
        self._wholes: dict[tuple[int, bytes], list[Pieces]] = {}
        self._samples: dict[int, tuple[int, int]] = {}

    def whole(self, data: U8) -> Pieces | None:
        """A weight that is stored already, or zeros; None where it is neither."""
        if not data[:_SAMPLE].any() and not data.any():
            return (Piece(ZEROS, 0, data.nbytes),)
        for pieces in self._wholes.get(_key(data), ()):
            several = len(pieces) if len(pieces) > 1 else 0
            if several <= self._left and self._equal(data, pieces):
                self._left -= several
                return pieces
        return None

    def parts(self, data: U8, block_nbytes: int, shard: int, base: int) -> list[Part]:
        """The parts of a weight that need not be stored, in order.

        Args:
            data: its bytes.
            block_nbytes: of 16 rows.
            shard, base: where its first new byte is going to be.
        """
        if data.nbytes < PAGED_NBYTES:
            return []
        least = RUN_NBYTES
        while True:
            found, samples = self._search(data, block_nbytes, shard, base, least)
            count = 2 * len(found) + 1
            if count <= min(MOST_PIECES, self._left) or not found:
                break
            least *= 4  # fewer and longer ones
        if found:
            self._left -= count
        for key, place in samples.items():
            self._samples.setdefault(key, place)
        return found

    def remember(self, data: U8, pieces: Pieces) -> None:
        """A weight that is stored now."""
        same = self._wholes.setdefault(_key(data), [])
        if len(same) < 4:  # equal samples without equal bytes are rare
            same.append(pieces)

    def _search(
        self, data: U8, block_nbytes: int, shard: int, base: int, least: int
    ) -> tuple[list[Part], dict[int, tuple[int, int]]]:
        """Parts of so many bytes at least; and samples of what is new, with their places."""
        search = _Search(data, least, base, shard, self._read)
        stride = math.lcm(max(block_nbytes, 1), PAGE)
        apart = stride * math.ceil(self._spacing / stride)
        for at, key in _sampled(data, stride, self._spacing):
            known = self._samples.get(key)
            is_new = not search.look(at, key, known) and known is None
            if is_new and (stride >= self._spacing or at % apart == 0):
                search.samples.setdefault(key, at)
        places = {key: search.place(at) for key, at in search.samples.items()}
        return search.parts, places

    def _equal(self, data: U8, pieces: Pieces) -> bool:
        at = 0
        for piece in pieces:
            for begin in range(0, piece.nbytes, _CHUNK):
                size = min(_CHUNK, piece.nbytes - begin)
                ours = data[at : at + size]
                if piece.is_zeros:
                    if ours.any():
                        return False
                elif not np.array_equal(ours, self._read(piece.shard, piece.offset + begin, size)):
                    return False
                at += size
        return at == data.nbytes


class _Search:
    """The parts of one weight, found from its first byte to its last.

    Attributes:
        parts: in order.
        samples: sample → where in the weight it is, of bytes that are new.
    """

    def __init__(self, data: U8, least: int, base: int, shard: int, read: Read) -> None:
        self._data, self._least, self._read = data, least, read
        self._base, self._shard = base, shard
        self._used = 0  # what is new before this stays new: it is another part's source
        self.parts = [
            Part(begin, end, Piece(ZEROS, 0, end - begin)) for begin, end in _zeros(data, least)
        ]
        self.samples: dict[int, int] = {}

    def place(self, at: int) -> tuple[int, int]:
        """The shard and the offset of a byte that is new."""
        elsewhere = sum(part.end - part.begin for part in self.parts if part.end <= at)
        return self._shard, self._base + at - elsewhere

    def look(self, at: int, key: int, known: tuple[int, int] | None) -> bool:
        """Whether what is there is in a part, after bytes were compared that have its sample."""
        begin, end = self._gap(at)
        if begin == end:
            return True
        source = self.samples.get(key) if known is None else None
        if known is not None:
            part = self._matched(at, max(begin, self._used), end, _Stored(self._read, *known))
        elif source is not None:
            since, until = self._gap(source)
            part = self._matched(
                at,
                max(begin, self._used),
                end,
                _Same(self._data, source, since, min(until, at), until < at),
            )
        else:
            return False
        if part is None:
            return False
        if source is not None:
            source -= at - part.begin
            self._used = max(self._used, source + part.end - part.begin)
            part = Part(part.begin, part.end, Piece(*self.place(source), part.end - part.begin))
        self.samples = {key: at for key, at in self.samples.items() if not part.covers(at)}
        insort(self.parts, part, key=lambda part: part.begin)
        return True

    def _gap(self, at: int) -> Span:
        """The new bytes around a place, as far as is known; empty inside a part."""
        index = bisect_right(self.parts, at, key=lambda part: part.begin)
        begin = self.parts[index - 1].end if index else 0
        end = self.parts[index].begin if index < len(self.parts) else self._data.nbytes
        return (begin, end) if at >= begin else (at, at)

    def _matched(self, at: int, begin: int, end: int, source: _Stored | _Same) -> Part | None:
        """Whole pages around a place, in [begin, end), that the source has, too."""
        until = at
        size = PAGE
        while until < end:
            ours = self._data[until : min(until + size, end)]
            theirs = source.read(until - at, ours.size)
            equal = _equal_prefix(ours, theirs)
            until += equal
            if equal < ours.size:
                break
            size = min(4 * size, _CHUNK)
        if until < self._data.nbytes:
            until -= (until - at) % PAGE
        if until == at:
            return None
        since = at
        most = source.room(until - at)
        while since - PAGE >= begin and at - since + PAGE <= most:
            theirs = source.read(since - PAGE - at, PAGE)
            if not np.array_equal(self._data[since - PAGE : since], theirs):
                break
            since -= PAGE
        if until - since < self._least:
            return None
        return Part(since, until, source.piece(since - at, until - since))


@dataclass(frozen=True)
class _Stored:
    """Bytes of a weight file, from a place on and before it."""

    file: Read
    shard: int
    offset: int

    def read(self, at: int, nbytes: int) -> U8:
        return self.file(self.shard, self.offset + at, nbytes)

    def room(self, nbytes: int) -> int:
        """How far back it may be read when so many bytes after the place are wanted."""
        return self.offset

    def piece(self, at: int, nbytes: int) -> Piece:
        return Piece(self.shard, self.offset + at, nbytes)


@dataclass(frozen=True)
class _Same:
    """New bytes of the weight itself, [begin, end) of it, from a place on and before it.

    apart: they end before the part may begin that is looked for.
    """

    data: U8
    place: int
    begin: int
    end: int
    apart: bool

    def read(self, at: int, nbytes: int) -> U8:
        first = self.place + at
        return self.data[first : min(first + nbytes, self.end)] if first >= self.begin else _NONE

    def room(self, nbytes: int) -> int:
        """How far back, too: a part does not overlap with its own source."""
        return self.place if self.apart else self.end - self.place - nbytes

    def piece(self, at: int, nbytes: int) -> Piece:
        return Piece(ZEROS, 0, nbytes)  # its place in the file is not known here


_NONE: U8 = np.zeros(0, np.uint8)


def _equal_prefix(ours: U8, theirs: U8) -> int:
    """How many bytes are the same, from the first on."""
    count = min(ours.size, theirs.size)
    different = ours[:count] != theirs[:count]
    return int(different.argmax()) if different.any() else count


def _key(data: U8) -> tuple[int, bytes]:
    """What equal weights have in common, and few others."""
    places = np.linspace(0, data.nbytes - _SAMPLE, _PLACES).astype(np.int64)
    samples = data[places[:, None] + np.arange(_SAMPLE)]
    return data.nbytes, blake2b(samples.tobytes(), digest_size=16).digest()


def _sampled(data: U8, stride: int, spacing: int) -> Iterator[tuple[int, int]]:
    """Places in a weight, and samples of it there; none of zeros."""
    begins = np.arange(0, data.nbytes - PAGE + 1, stride)
    places = (begins[:, None] + np.arange(0, stride, spacing)).reshape(-1)
    places = places[places + PAGE <= data.nbytes]
    words = data.view(np.uint64)
    samples = words[places[:, None] // 8 + np.arange(_SAMPLE // 8)]
    keys: NDArray[np.uint64] = (samples * _FACTORS).sum(axis=1, dtype=np.uint64)
    return ((at, key) for at, key in zip(places.tolist(), keys.tolist(), strict=True) if key)


def _zeros(data: U8, least: int) -> list[Span]:
    """Runs of pages that are zeros, of so many bytes at least; the last page may be a part of one.

    The first number of each page says where to look.
    """
    words, step = data.view(np.uint64), PAGE // 8
    pages: NDArray[np.bool_] = words[::step] == 0
    for first, last in _runs(pages):
        if (last - first) * PAGE < least:
            continue
        whole = min(last, data.nbytes // PAGE)
        for page in range(first, whole, _CHUNK // PAGE):
            some = slice(page, min(page + _CHUNK // PAGE, whole))
            inside = words[some.start * step : some.stop * step].reshape(-1, step)
            pages[some] = ~inside.any(axis=1)
        if whole < last:
            pages[whole] = not words[whole * step :].any()
    spans = ((first * PAGE, min(last * PAGE, data.nbytes)) for first, last in _runs(pages))
    return [(begin, end) for begin, end in spans if end - begin >= least]


def _runs(flags: NDArray[np.bool_]) -> list[Span]:
    """Where they are true: from, to."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
