"""What stands in a file's place: refused in words and at once, wherever it stands."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from deepmnn.conversion.convert import convert
from deepmnn.errors import ArtifactError, CheckpointError
from deepmnn.source.json_file import read_object, read_small
from deepmnn.source.open import open_source
from deepmnn.source.regular_file import RegularFile
from deepmnn.source.safetensors import read_safetensors
from deepmnn.source.torch_file import read_torch
from source.limited import outcome
from tiny_models import tiny_checkpoint

POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)


def make_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path has at most 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


STAND_INS: dict[str, tuple[Callable[[Path], object], str]] = {
    "FIFO": (os.mkfifo, "is a FIFO"),
    "socket": (make_socket, "is a socket"),
    "device": (lambda p: p.symlink_to("/dev/zero"), "is a device"),
    "terminal": (lambda p: p.symlink_to("/dev/tty"), "is a device"),
    "directory": (Path.mkdir, "is a directory"),
    "dangling link": (lambda p: p.symlink_to("../blobs/abc"), r"link to \.\./blobs/abc, which is"),
    "loop of links": (lambda p: p.symlink_to(p.name), "cannot be read"),
    "pointer": (lambda p: p.write_text(POINTER), "pointer of Git LFS.*git lfs pull"),
}


@pytest.mark.parametrize("kind", STAND_INS)
@pytest.mark.parametrize("read", [read_small, read_object, read_safetensors])
def test_no_reader_opens_them(tmp_path: Path, kind: str, read: Callable[..., object]) -> None:
    make, message = STAND_INS[kind]
    make(tmp_path / "x")
    with pytest.raises(ArtifactError, match=message):
        read(tmp_path / "x", ArtifactError)
    with pytest.raises(CheckpointError, match=message):
        read_torch(tmp_path / "x")


@pytest.mark.parametrize("kind", ["FIFO", "socket", "device", "dangling link", "pointer"])
@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ],
)
def test_no_file_of_a_checkpoint_may_be_one(tmp_path: Path, name: str, kind: str) -> None:
    path = tiny_checkpoint("llama", 0, tmp_path / "hf").path
    (path / name).unlink(missing_ok=True)
    if name.endswith("index.json"):
        (path / "model.safetensors").unlink()
    make, message = STAND_INS[kind]
    make(path / name)
    with pytest.raises(CheckpointError, match=message):
        convert(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model-00001-of-00002.safetensors"])
def test_nothing_waits_for_a_fifo(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    os.mkfifo(tmp_path / name)
    said = outcome(
        "from deepmnn.source.open import open_source", "open_source(sys.argv[1])", tmp_path
    )
    assert said.startswith("CheckpointError")
    assert "is a FIFO" in said


def test_a_file_that_becomes_a_fifo(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"1234")
    file = RegularFile(tmp_path / "x")
    (tmp_path / "x").unlink()
    os.mkfifo(tmp_path / "x")
    with pytest.raises(CheckpointError, match="is a FIFO"):
        file.read_all()


@pytest.mark.parametrize("name", ["a" * 300, "a\0b", "missing"])
def test_names_that_cannot_be(tmp_path: Path, name: str) -> None:
    for call in (RegularFile, open_source):
        with pytest.raises(CheckpointError):
            call(tmp_path / name)
        with pytest.raises(CheckpointError):
            call(tmp_path / name / "model.safetensors")


CHANGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda p: os.truncate(p, p.stat().st_size - 1),
    "emptied": lambda p: p.write_bytes(b""),
    "grown": lambda p: p.write_bytes(p.read_bytes() + b"1"),
    "removed": Path.unlink,
    "replaced": lambda p: shutil.copy(p, f"{p}2") and os.replace(f"{p}2", p),
    "written over": lambda p: (p.write_bytes(bytes(p.stat().st_size)), os.utime(p, (1, 1))),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_weights_that_change_while_they_are_converted(
    tmp_path: Path, kind: str, change: str
) -> None:
    """No number of another file, no bus fault: the conversion ends, and leaves nothing."""
    path = tiny_checkpoint("llama", 0, tmp_path / "hf").path
    file = path / "model.safetensors"
    if kind == "bin":
        entries = read_safetensors(file)
        state = {name: torch.from_numpy(entry.read()) for name, entry in entries.items()}
        file.unlink()
        file = path / "pytorch_model.bin"
        torch.save(state, file)
    calls: list[str] = []

    def progress(done: int, total: int, name: str) -> None:
        calls.append(name)
        if len(calls) == 3:
            CHANGES[change](file)

    with pytest.raises(CheckpointError, match=r"changed while it was read|is missing"):
        convert(path, tmp_path / "out", progress=progress)
    assert len(calls) == 3
    assert not (tmp_path / "out").exists()


def test_a_shard_of_a_name_that_is_too_long(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    index = {"weight_map": {"x": "a" * 300}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"shard aaa.* is missing"):
        open_source(tmp_path)


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode("模型".encode("gbk"))
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / os.fsdecode(b"\xff.txt")).write_text("")
    with pytest.raises(CheckpointError, match=r"\\xff\.txt"):
        open_source(path)
    save_file({"a": np.ones(2, np.float32)}, path / "model.safetensors")
    assert open_source(path).read("a").tolist() == [1, 1]
