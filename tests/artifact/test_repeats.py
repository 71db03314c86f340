"""What is found equal is equal, to the byte, whatever the weights are."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from deepmnn.artifact.crc import joined
from deepmnn.artifact.repeats import Repeats
from deepmnn.backends.cpu.pieces import PAGE, ZEROS, Piece, Pieces, fault_of, merged, whole
from deepmnn.formats import U8

BLOCKS = (64 * 16, 4096, 16640, 33024, 65536)
"""Bytes of 16 rows."""


class Files:
    """One weight file in memory, filled as the writer does it."""

    def __init__(self, most_pieces: int = 1 << 14) -> None:
        self.file = np.zeros(PAGE, np.uint8)  # a header
        self.repeats = Repeats(0, self.read, most_pieces)

    def read(self, shard: int, offset: int, nbytes: int) -> U8:
        assert shard == 0
        return self.file[offset : offset + nbytes] if offset >= PAGE else self.file[:0]

    def add(self, data: U8, block: int) -> Pieces:
        known = self.repeats.whole(data)
        if known is not None:
            return known
        base = -(-len(self.file) // PAGE) * PAGE
        found, new, at, offset = [], [np.zeros(base - len(self.file), np.uint8)], 0, base
        for part in self.repeats.parts(data, block, 0, base):
            if at < part.begin:
                new.append(data[at : part.begin])
                found.append(Piece(0, offset, part.begin - at))
                offset += part.begin - at
            found.append(part.source)
            at = part.end
        if at < data.nbytes:
            new.append(data[at:])
            found.append(Piece(0, offset, data.nbytes - at))
        self.file = np.concatenate([self.file, *new])
        pieces = merged(found)
        self.repeats.remember(data, pieces)
        return pieces

    def get(self, pieces: Pieces) -> U8:
        return np.concatenate(
            [
                np.zeros(piece.nbytes, np.uint8)
                if piece.is_zeros
                else self.read(piece.shard, piece.offset, piece.nbytes)
                for piece in pieces
            ]
        )


def drawn(rng: np.random.Generator, nbytes: int) -> U8:
    return rng.integers(0, 256, nbytes, dtype=np.uint8)


def changed(rng: np.random.Generator, data: U8, block: int, others: list[U8]) -> None:
    """Some blocks become zeros, other blocks, another weight's, or one pattern."""
    blocks = data.nbytes // block
    first, count = int(rng.integers(blocks)), int(rng.integers(1, blocks + 1))
    rows = data[first * block : (first + count) * block]
    match int(rng.integers(4)):
        case 0:
            rows[:] = 0
        case 1:
            other = int(rng.integers(blocks)) * block
            rows[: data.nbytes - other] = data[other : other + rows.nbytes].copy()
        case 2 if others:
            other = others[int(rng.integers(len(others)))][: data.nbytes]
            data[: other.nbytes] = other
        case _:
            rows[:] = np.resize(rows[: int(rng.choice([64, PAGE]))], rows.nbytes)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_equal_the_bytes_are_those_of_the_weight(seed: int) -> None:
    rng, given, stored = np.random.default_rng(seed), 0, 0
    for _ in range(5):
        files, weights, places = Files(), [], []
        for _ in range(4):
            block = int(rng.choice(BLOCKS))
            data = drawn(rng, block * int(rng.integers(1, 50)))
            for _ in range(int(rng.integers(4))):
                changed(rng, data, block, weights)
            weights.append(data)
            places.append(files.add(data, block))
        for data, pieces in zip(weights, places, strict=True):
            assert fault_of(pieces) == ""
            assert np.array_equal(files.get(pieces), data)
        given += sum(data.nbytes for data in weights)
        stored += files.file.nbytes
    assert stored < 0.99 * given


def test_blocks_of_rows_are_found_where_they_are() -> None:
    """Zeros to the page, blocks where they lie a multiple of pages apart."""
    rng, block = np.random.default_rng(1), 33024  # 16 rows of w8 of 2048 columns: 16 blocks a page
    data = drawn(rng, 100 * block)
    data[10 * block : 30 * block] = 0
    data[60 * block : 90 * block] = data[44 * block : 74 * block].copy()
    files = Files()
    pieces = files.add(data, block)
    assert len(pieces) == 5
    zeros, again = pieces[1], pieces[3]
    assert zeros.shard == ZEROS
    assert 20 * block - 2 * PAGE < zeros.nbytes <= 20 * block
    assert again.nbytes > 15 * block  # all that does not overlap with itself
    assert files.add(data.copy(), block) == pieces
    assert np.array_equal(files.get(pieces), data)


def test_small_ones_stay_where_they_are() -> None:
    rng = np.random.default_rng(2)
    files, data = Files(), drawn(rng, 1 << 20)
    data[: 60 << 10] = 0
    data[700_032 : 700_032 + (60 << 10)] = data[200_000 : 200_000 + (60 << 10)]
    assert len(files.add(data, PAGE)) == 1
    vector = drawn(rng, 64)
    assert files.add(vector, 0) == files.add(vector.copy(), 0)
    assert files.add(np.zeros(128, np.uint8), 0) == whole(ZEROS, 0, 128)


def test_equal_samples_are_not_believed() -> None:
    """Weights that differ in one byte, where no sample is."""
    rng = np.random.default_rng(3)
    files, data = Files(), drawn(rng, 1 << 20)
    (first,) = files.add(data, PAGE)
    for at in (100, 500_000, (1 << 20) - 40):
        other = data.copy()
        other[at] ^= 1
        pieces = files.add(other, PAGE)
        assert np.array_equal(files.get(pieces), other)
        assert len(pieces) > 1
    assert np.array_equal(files.get((first,)), data)


def test_there_are_only_so_many_pieces() -> None:
    """Of one weight, and of all: the longest runs come first."""
    rng = np.random.default_rng(4)
    pattern = np.resize(drawn(rng, 64 << 10), 24 << 20)
    files = Files()
    pieces = files.add(pattern, PAGE)
    assert len(pieces) <= 256
    assert np.array_equal(files.get(pieces), pattern)
    assert files.file.nbytes < pattern.nbytes / 8
    few = Files(most_pieces=5)
    data = drawn(rng, 1 << 20)
    data[1 << 18 : 1 << 19] = 0
    assert len(few.add(data, PAGE)) == 3
    assert len(few.add(data.copy(), PAGE)) == 1


@pytest.mark.parametrize("nbytes", [0, 1, 64, 100_003])
def test_a_checksum_whose_beginning_comes_last(nbytes: int) -> None:
    first, second = b"head" * 9, np.random.default_rng(nbytes).bytes(nbytes)
    found = joined(zlib.crc32(first), zlib.crc32(second), nbytes)
    assert found == zlib.crc32(first + second)
