"""tokenizer.mtok is read back to the last byte."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from deepmnn.errors import ArtifactError
from deepmnn.exporters.mnn import mtok
from deepmnn.exporters.mnn.mtok_reader import check_tokenizer

PATH = Path("tokenizer.mtok")
VOCAB = 12
TOKENS = [(b"a", 0), (b"b", 1), (b"ab", 2), ("ü".encode(), 3), (b"", 4), (b"", 5)]
ADDED = [
    mtok.AddedToken(6, "<s>", True, False, True),
    mtok.AddedToken(11, "x y", False, True, False),
]
NORMALIZERS = [mtok.prepend("_"), mtok.replace(" ", "_"), mtok.replace("a", "")]
PRE = [mtok.split(r"\s+", True, mtok.REMOVED), mtok.split("x", False, mtok.ISOLATED)]
PRE += [mtok.byte_level(True), mtok.byte_level(False)]
DECODERS = [
    mtok.replace_decoder("_", " "),
    mtok.BYTE_FALLBACK_DECODER,
    mtok.FUSE_DECODER,
    mtok.strip_decoder(" ", 1, 0),
]


def tokenizer(
    *,
    head: bytes = mtok.head([1, 2], [0]),
    normalizer: bytes = mtok.normalizers(NORMALIZERS),
    pre: bytes = mtok.pre_tokenizers(PRE),
    model: bytes = mtok.bpe(TOKENS, [(0, 1), (1, 0)], True),
    decoder: bytes = mtok.decoders(DECODERS),
    added: bytes = mtok.added_tokens(ADDED),
) -> bytes:
    return head + normalizer + pre + model + decoder + added


SOUND = {
    "all": tokenizer(),
    "bytes": tokenizer(decoder=mtok.BYTE_LEVEL_DECODER),
    "nothing": tokenizer(
        head=mtok.head([], []),
        normalizer=mtok.NOTHING,
        pre=mtok.NOTHING,
        model=mtok.bpe([], [], False),
        decoder=mtok.BYTE_LEVEL_DECODER,
        added=mtok.added_tokens([]),
    ),
}


@pytest.mark.parametrize("name", SOUND)
def test_what_is_written_is_read(name: str) -> None:
    check_tokenizer(SOUND[name], PATH, VOCAB)


@pytest.mark.parametrize("name", SOUND)
def test_every_cut_and_every_byte_too_many(name: str) -> None:
    data = SOUND[name]
    for end in range(len(data)):
        with pytest.raises(ArtifactError, match="damaged"):
            check_tokenizer(data[:end], PATH, VOCAB)
    with pytest.raises(ArtifactError, match="after its end"):
        check_tokenizer(data + b"\0", PATH, VOCAB)


def raw_bpe(tokens: list[tuple[bytes, int]], merges: list[tuple[int, int, int]]) -> bytes:
    """As mtok.bpe, but as it is told."""
    parts = [struct.pack("<BIBBI", 0, len(tokens), 0, 0, len(merges))]
    parts += [struct.pack("<H", len(t)) + t + struct.pack("<I", i) for t, i in tokens]
    return b"".join(parts) + b"".join(struct.pack("<III", *merge) for merge in merges)


@pytest.mark.parametrize(
    "model",
    [
        raw_bpe([(b"b", 0), (b"a", 1)], []),  # out of order
        raw_bpe([(b"a", 0), (b"b", 2)], []),  # an id beyond the others
        raw_bpe([(b"a", 0), (b"b", 0)], []),  # an id twice
        raw_bpe([(b"a", 0xFFFFFFFF)], []),
        raw_bpe([(b"\xff", 0)], []),  # no UTF-8
        raw_bpe([(bytes([97 + i]), i) for i in range(13)], []),  # more than the model has
        raw_bpe([(b"a", 0), (b"b", 1)], [(0, 2, 0)]),  # of no token
        raw_bpe([(b"a", 0), (b"b", 1)], [(1, 0, 0), (0, 1, 1)]),  # out of order
        raw_bpe([(b"a", 0), (b"b", 1)], [(0, 1, 0), (1, 0, 0)]),  # a rank twice
        raw_bpe([(b"a", 0), (b"b", 1)], [(0, 1, 0xFFFFFFFF)]),
        struct.pack("<BIBBI", 1, 0, 0, 0, 0),  # WordPiece
        struct.pack("<BIBBI", 0, 0, 2, 0, 0),
        struct.pack("<BIBBI", 0, 0, 0, 1, 0),
        struct.pack("<BIBBI", 0, 0xFFFFFFFF, 0, 0, 0),
        struct.pack("<BIBBI", 0, 0, 0, 0, 0xFFFFFFFF),
    ],
)
def test_models_that_mnn_would_read_beyond(model: bytes) -> None:
    with pytest.raises(ArtifactError, match="damaged"):
        check_tokenizer(tokenizer(model=model), PATH, VOCAB)


@pytest.mark.parametrize(
    "parts",
    [
        {"head": b"430 3\n0 0 0\n\n"},
        {"head": b"430 4\n1 0 0\n5\n"},
        {"head": b"430 4\n0 2147483647 0\n1\n"},
        {"head": b"430 4\n0 -1 2\n1\n"},
        {"head": b"430 4\n0 1 0\n12\n"},
        {"head": b"430 4\n0 1 0\n-1\n"},
        {"head": b"430 4\n0 1 0\n 1\n"},
        {"head": b"430 4\n0 1 0\n1 \n"},
        {"head": b"430 4\n0 1 0\nx\n"},
        {"normalizer": b"\1"},
        {"normalizer": b"\4\xff\xff\xff\xff"},
        {"normalizer": mtok.normalizers([b"\4\0\0\0\0"])},
        {"normalizer": mtok.normalizers([mtok.replace("", "x")])},
        {"pre": b"\2\1"},
        {"pre": mtok.pre_tokenizers([mtok.split("x", False, 2)])},
        {"pre": mtok.pre_tokenizers([b"\1\2"])},
        {"decoder": b"\1"},
        {"decoder": mtok.decoders([b"\0"])},
        {"decoder": mtok.decoders([mtok.strip_decoder(" ", 1 << 31, 0)])},
        {"added": struct.pack("<I", 0xFFFFFFFF)},
        {"added": mtok.added_tokens([mtok.AddedToken(12, "x", True, True, True)])},
        {"added": mtok.added_tokens([mtok.AddedToken(1, "", True, True, True)])},
        {"added": struct.pack("<IIBBBH", 1, 1, 2, 0, 0, 1) + b"x"},
    ],
)
def test_records_that_are_not_ours(parts: dict[str, bytes]) -> None:
    with pytest.raises(ArtifactError, match="damaged"):
        check_tokenizer(tokenizer(**parts), PATH, VOCAB)


def test_random_bytes_raise_one_error() -> None:
    rng, read = np.random.default_rng(3), 0
    for _ in range(3000):
        data = bytearray(SOUND["all"])
        for at in rng.integers(len(data), size=int(rng.integers(1, 4))):
            data[at] = int(rng.integers(256))
        try:
            check_tokenizer(bytes(data), PATH, VOCAB)
            read += 1
        except ArtifactError:
            pass
    assert 0 < read < 1500
