"""Where the bytes of a stored weight lie: pieces of weight files, one after another, and zeros.

Most weights are one piece. Bytes that are stored already, in whatever weight, are a piece of the
file that has them, and runs of zeros are in no file.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise

ZEROS = (1 << 32) - 1
"""The shard of a piece that no file has."""

PAGE = 4096
"""Bytes; a weight in several pieces is cut between these, so that they can be mapped in order."""

MAX_PIECE_NBYTES = 1 << 48


@dataclass(frozen=True)
class Piece:
    """`nbytes` at `offset` of a shard file, both multiples of 64; of ZEROS the offset is 0."""

    shard: int
    offset: int
    nbytes: int

    @property
    def is_zeros(self) -> bool:
        """Whether no file has it."""
        return self.shard == ZEROS

    def is_before(self, other: Piece) -> bool:
        """Whether both are one piece when the other one follows."""
        if self.shard != other.shard:
            return False
        return self.is_zeros or self.offset + self.nbytes == other.offset


Pieces = tuple[Piece, ...]
"""The bytes of a weight in order."""


def whole(shard: int, offset: int, nbytes: int) -> Pieces:
    """A weight in one piece."""
    return (Piece(shard, offset, nbytes),)


def merged(pieces: Iterable[Piece]) -> Pieces:
    """The same bytes, in as few pieces as there can be."""
    found: list[Piece] = []
    for piece in pieces:
        if found and found[-1].is_before(piece):
            found[-1] = replace(found[-1], nbytes=found[-1].nbytes + piece.nbytes)
        else:
            found.append(piece)
    return tuple(found)


def fault_of(pieces: Pieces) -> str:
    """What is wrong with the pieces of a weight, each of them sound by itself; "": nothing."""
    if not pieces:
        return "no pieces"
    for piece in pieces:
        if piece.is_zeros and piece.offset:
            return f"zeros at offset {piece.offset}"
        if len(pieces) > 1 and piece.offset % PAGE:
            return f"a piece of several at {piece.offset}, no multiple of {PAGE}"
    for piece, following in pairwise(pieces):
        if piece.nbytes % PAGE:
            return f"a piece of {piece.nbytes} bytes before another, no multiple of {PAGE}"
        if piece.is_before(following):
            return "two pieces that are one"
    return ""
