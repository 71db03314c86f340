"""Damaged and hostile files: typed errors, little memory, little time."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepmnn.errors import CheckpointError, DeepmnnError, UnsupportedModelError
from deepmnn.source.gguf.file import GgufFile
from deepmnn.source.open import open_source
from gguf_files import write_gguf
from source_memory import peak_of
from tiny_models import tiny_checkpoint

ARRAY, STRING, U32, BOOL = 9, 8, 4, 7


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str = "t", shape: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + dims + struct.pack("<IQ", kind, offset)


def head(tensors: int = 0, keys: int = 0, magic: bytes = b"GGUF", version: int = 3) -> bytes:
    return magic + struct.pack("<IQQ", version, tensors, keys)


def file_of(keys: list[bytes], tensors: list[bytes] = [], data: bytes = bytes(64)) -> bytes:  # noqa: B006
    body = head(len(tensors), len(keys)) + b"".join(keys) + b"".join(tensors)
    return body + bytes(-len(body) % 32) + data


HUGE = 1 << 62
DAMAGED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "4 bytes, and 0 are left"),
    "another format": (b"PK\x03\x04" + bytes(60), "no GGUF file"),
    "an older format": (b"tjgg" + bytes(60), "GGML file from before GGUF"),
    "version 1": (head(version=1), "GGUF 1; expected"),
    "version 9": (head(version=9), "GGUF 9; expected"),
    "big endian": (head(version=3 << 24), "big-endian.*gguf_convert_endian"),
    "huge count of tensors": (head(tensors=HUGE), "number of tensors is 4611686018427387904"),
    "more tensors than fit": (head(tensors=3) + bytes(64), "number of tensors is 3; expected at"),
    "huge count of keys": (head(keys=HUGE), "number of keys is 4611686018427387904"),
    "a huge key": (head(keys=1) + struct.pack("<Q", HUGE) + bytes(32), "a key has 4611"),
    "a long key": (file_of([text("k" * 2000)]), "a key has 2000 bytes; expected at most 1024"),
    "a huge text": (file_of([key("k", STRING, struct.pack("<Q", HUGE))]), "'k' has 4611"),
    "a text that ends": (file_of([key("k", STRING, struct.pack("<Q", 9999))]), "are left"),
    "no UTF-8": (
        file_of([key("tokenizer.ggml.model", STRING, text(b"\xff\xfe"))]),
        "'tokenizer.ggml.model' is .*expected UTF-8",
    ),
    "a token in no UTF-8": (
        file_of([key("tokenizer.k", ARRAY, struct.pack("<IQ", STRING, 1) + text(b"a\xff"))]),
        "'tokenizer.k' is .*expected UTF-8",
    ),
    "a key in no UTF-8": (
        file_of([text(b"\xff") + struct.pack("<I", U32) + bytes(4)]),
        "a key is .*expected UTF-8",
    ),
    "no type": (file_of([key("k", 99, bytes(8))]), "is of type 99"),
    "no bool": (file_of([key("k", BOOL, b"\x05")]), "'k' is 5"),
    "twice a key": (file_of([key("k", U32, bytes(4))] * 2), "'k' appears twice"),
    "huge array": (
        file_of([key("k", ARRAY, struct.pack("<IQ", U32, HUGE))]),
        "size of the key 'k' is 4611",
    ),
    "huge array of texts": (
        file_of([key("k", ARRAY, struct.pack("<IQ", STRING, HUGE))]),
        "size of the key 'k' is 4611",
    ),
    "array of arrays": (
        file_of([key("k", ARRAY, struct.pack("<IQ", ARRAY, 2) + bytes(64))]),
        "an array of arrays",
    ),
    "no alignment": (
        file_of([key("general.alignment", U32, struct.pack("<I", 48))]),
        "general.alignment is 48",
    ),
    "alignment 0": (file_of([key("general.alignment", U32, bytes(4))]), "general.alignment is 0"),
    "a text as alignment": (
        file_of([key("general.alignment", STRING, text("32"))]),
        "general.alignment is '32'",
    ),
    "no dimensions": (file_of([], [tensor(shape=())]), "0 dimensions"),
    "many dimensions": (file_of([], [tensor(shape=(1,) * 9)]), "9 dimensions"),
    "huge dimensions": (file_of([], [tensor(shape=(1 << 40, 1 << 40))]), "has the shape"),
    "a size of 0": (file_of([], [tensor(shape=(0, 4))]), "has the shape"),
    "half a block": (file_of([], [tensor(shape=(33,), kind=2)]), "33 columns of type Q4_0"),
    "beyond the file": (file_of([], [tensor(shape=(64,))]), "the tensor 't' ends at"),
    "far beyond": (file_of([], [tensor(offset=1 << 60)]), "the tensor 't' ends at"),
    "not aligned": (file_of([], [tensor(offset=4)]), "the tensor 't' is at 4"),
    "overlapping": (
        file_of([], [tensor("a", (16,)), tensor("b", (4,), offset=32)]),
        "'a' and 'b' overlap",
    ),
    "twice a tensor": (
        file_of([], [tensor("a"), tensor("a", offset=32)]),
        "two tensors have one name",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_heads(tmp_path: Path, name: str) -> None:
    data, match = DAMAGED[name]
    (tmp_path / "a.gguf").write_bytes(data)

    def read() -> None:
        with pytest.raises(CheckpointError, match=match):
            GgufFile(tmp_path / "a.gguf")

    _, peak = peak_of(read)
    assert peak < 4 << 20


@pytest.mark.parametrize(("kind", "name"), [(31, "Q4_0_4_4, which"), (77, "77; expected one of F")])
def test_types_that_are_not_known(tmp_path: Path, kind: int, name: str) -> None:
    (tmp_path / "a.gguf").write_bytes(file_of([], [tensor(kind=kind)]))
    with pytest.raises(UnsupportedModelError, match=f"'t' is of type {name}"):
        GgufFile(tmp_path / "a.gguf")


def test_a_sound_file_of_these_parts(tmp_path: Path) -> None:
    """What the others are broken from; holes and another alignment are allowed."""
    keys = [
        key("general.alignment", U32, struct.pack("<I", 64)),
        key("list", ARRAY, struct.pack("<IQ", STRING, 2) + text("ä") + text("b")),
        key("flags", ARRAY, struct.pack("<IQ", BOOL, 2) + b"\x00\x01"),
    ]
    body = head(2, 3) + b"".join(keys) + tensor("a") + tensor("b", (2,), offset=128)
    data = np.arange(34, dtype="<f4").tobytes()
    (tmp_path / "a.gguf").write_bytes(body + bytes(-len(body) % 64) + data)
    file = GgufFile(tmp_path / "a.gguf")
    assert file.metadata["list"] == ["ä", "b"]
    assert file.metadata["flags"].tolist() == [0, 1]
    np.testing.assert_array_equal(file.tensors["a"].read(), [0, 1, 2, 3])
    np.testing.assert_array_equal(file.tensors["b"].read(), [32, 33])


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A model with a tokenizer."""
    path = tmp_path_factory.mktemp("sound")
    tiny = tiny_checkpoint("deepseek_v3", 1, path / "hf")
    keys = {"model": "gpt2", "pre": "gpt-2", "merges": ["a b"], "token_type": [1, 1, 1, 3]}
    write_gguf(tiny, path / "a.gguf", tokenizer=keys | {"tokens": ["a", "b", "ab", "<|end|>"]})
    open_source(path / "a.gguf")
    return (path / "a.gguf").read_bytes()


def test_texts_that_nothing_reads_may_be_in_any_encoding(tmp_path: Path) -> None:
    """As in llama.cpp, which reads bytes: a Latin-1 author, in a text or in a list of them."""
    latin = "Université".encode("latin-1")
    tags = struct.pack("<IQ", STRING, 2) + text("a") + text(latin)
    (tmp_path / "file.gguf").write_bytes(
        file_of(
            [key("general.organization", STRING, text(latin)), key("general.tags", ARRAY, tags)],
            [tensor()],
        )
    )
    found = GgufFile(tmp_path / "file.gguf")
    assert found.metadata["general.organization"] == "Universit\ufffd"
    assert found.metadata["general.tags"] == ["a", "Universit\ufffd"]
    assert list(found.tensors) == ["t"]


def test_an_architecture_in_no_encoding(tmp_path: Path) -> None:
    """What is used must be a name that is known."""
    kind = key("general.architecture", STRING, text(b"llam\xe1"))
    (tmp_path / "file.gguf").write_bytes(file_of([kind], [tensor()]))
    with pytest.raises(UnsupportedModelError, match="llam\ufffd"):
        open_source(tmp_path / "file.gguf")


def test_a_file_that_ends_anywhere(tmp_path: Path, sound: bytes) -> None:
    rng = np.random.default_rng(0)
    cuts = [*range(0, 6000, 131), *rng.integers(0, len(sound), 40).tolist()]
    for cut in cuts:
        (tmp_path / "a.gguf").write_bytes(sound[:cut])
        with pytest.raises(CheckpointError):
            open_source(tmp_path / "a.gguf")


def test_a_model_whose_keys_are_of_other_types(tmp_path: Path) -> None:
    """Every key in turn is a text, a huge number, negative, a list, or missing."""
    tiny = tiny_checkpoint("deepseek_v2", 2, tmp_path / "hf")
    write_gguf(tiny, tmp_path / "a.gguf")
    from deepmnn.source.gguf.config import config_of
    from deepmnn.source.gguf.contents import read_contents

    contents = read_contents(tmp_path / "a.gguf")
    others: list[Any] = ["x", 1 << 63, -1, 0, 1.5, float("nan"), np.arange(3), ["a"], None]
    for name in list(contents.metadata):
        before = contents.metadata[name]
        for value in others:
            if value is None:
                del contents.metadata[name]
            else:
                contents.metadata[name] = value
            with suppress(DeepmnnError):
                assert isinstance(config_of(contents, "it"), dict)
            contents.metadata[name] = before


SHAPES: dict[str, Callable[[dict[str, Any]], None]] = {
    "experts": lambda t: t.update({"blk.1.ffn_up_exps.weight": t["blk.1.ffn_norm.weight"]}),
    "keys": lambda t: t.update({"blk.0.attn_k_b.weight": t["blk.0.attn_v_b.weight"][1:]}),
    "half of them": lambda t: t.pop("blk.0.attn_v_b.weight"),
}


@pytest.mark.parametrize("change", SHAPES)
def test_tensors_that_do_not_fit(tmp_path: Path, change: str) -> None:
    from gguf import GGUFWriter

    from gguf_files import add_config

    tiny = tiny_checkpoint("deepseek_v2", 0, tmp_path / "hf")
    stored = write_gguf(tiny, tmp_path / "a.gguf")
    SHAPES[change](stored)
    writer = GGUFWriter(tmp_path / "b.gguf", "deepseek2")
    add_config(writer, tiny.config)
    for name, values in stored.items():
        writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=r"expected \[|expected both"):
        open_source(tmp_path / "b.gguf")


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.gguf")
    with pytest.raises(CheckpointError, match="is a FIFO"):
        open_source(tmp_path / "a.gguf")
    (tmp_path / "b.gguf").symlink_to(tmp_path / "missing")
    with pytest.raises(CheckpointError, match="is a link to"):
        open_source(tmp_path / "b.gguf")
    (tmp_path / "c.gguf").mkdir()
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        open_source(tmp_path / "c.gguf")
    with pytest.raises(CheckpointError, match="is missing"):
        open_source(tmp_path / "d.gguf")


def test_a_file_that_changes_while_it_is_read(tmp_path: Path, sound: bytes) -> None:
    (tmp_path / "a.gguf").write_bytes(sound)
    source = open_source(tmp_path / "a.gguf")
    (tmp_path / "a.gguf").write_bytes(sound[: len(sound) // 2])
    for name in source.names()[:5]:
        with pytest.raises(CheckpointError, match="changed while it was read"):
            source.read(name)
