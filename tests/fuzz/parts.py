"""An input that is several files: each a byte that says which, 4 bytes of length, and its bytes."""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from deepmnn.artifact.manifest import MANIFEST, manifest_crc
from fuzz.harness import Target
from fuzz.mutations import mutate_bytes, mutate_json, rewrite

BASE = "base"
SHARD = "model-00001-of-00001.safetensors"

_HEAD = struct.Struct("<BI")


def pack(parts: Mapping[str, bytes], names: Sequence[str]) -> bytes:
    """The input of these files, which are among `names`."""
    return b"".join(_HEAD.pack(names.index(n), len(data)) + data for n, data in parts.items())


def unpack(data: bytes, names: Sequence[str]) -> dict[str, bytes]:
    """The files of an input, whatever it is."""
    found, at = {}, 0
    while at + _HEAD.size <= len(data):
        index, size = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        found[names[index % len(names)]] = data[at : at + size]
        at += size
    return found


class PartsTarget(Target):
    """One whose inputs are several files.

    Attributes:
        names: of the files, in the order of their numbers; never changed, for the corpus has them.
    """

    names: tuple[str, ...]

    def put(self, data: bytes) -> None:
        parts = unpack(data, self.names)
        for name in self.names:
            path = self.model / name
            if name in parts:
                path.parent.mkdir(exist_ok=True)
                rewrite(path, parts[name])
            else:
                path.unlink(missing_ok=True)

    def pack(self, parts: Mapping[str, bytes]) -> bytes:
        """The input of these files."""
        return pack(parts, self.names)

    def mutate(self, rng: np.random.Generator, data: bytes) -> bytes:
        """One file is other than it was, or has gone, or comes from another input."""
        parts = unpack(data, self.names)
        if not parts or rng.integers(16) == 0:
            parts |= unpack(self.seeds[int(rng.integers(len(self.seeds)))], self.names)
        name = list(parts)[int(rng.integers(len(parts)))]
        if rng.integers(32) == 0:
            del parts[name]
        else:
            parts[name] = self.mutate_part(rng, name, parts[name])
        return self.pack(parts)

    def mutate_part(self, rng: np.random.Generator, name: str, data: bytes) -> bytes:
        """Something like that file."""
        return mutate_text(rng, data) if name.endswith(".json") else mutate_bytes(rng, data)


class FolderTarget(PartsTarget):
    """One whose inputs are what some files of a sound folder hold instead, with checksums that fit.

    Attributes:
        bases: the files of sound folders; the part BASE is the number of one, by default the first.
    """

    bases: list[dict[str, bytes]]

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._files: dict[str, bytes] = {}

    def put(self, data: bytes) -> None:
        parts = unpack(data, self.names)
        number = (parts.pop(BASE, b"") or b"\0")[0]
        files = self.bases[number % len(self.bases)] | parts
        files[MANIFEST] = sealed(files, set(parts))
        for name in self._files.keys() - files.keys():
            (self.model / name).unlink()
        for name, content in files.items():
            if content != self._files.get(name):
                (self.model / name).parent.mkdir(exist_ok=True)
                rewrite(self.model / name, content)
        self._files = files
        shutil.rmtree(self.out)
        self.out.mkdir()

    def nbytes(self, data: bytes) -> int:
        return sum(map(len, self._files.values()))


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path there."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def sealed(files: dict[str, bytes], changed: set[str]) -> bytes:
    """The manifest with the sizes and checksums of files that have changed, and its own."""
    try:
        fields = json.loads(files[MANIFEST])
    except (ValueError, RecursionError):
        return files[MANIFEST]
    if not isinstance(fields, dict):
        return files[MANIFEST]
    listed, shards = fields.get("files"), fields.get("shards")
    records = [*listed.items()] if isinstance(listed, dict) else []
    records += [(SHARD, record) for record in shards] if isinstance(shards, list) else []
    for name, record in records:
        if name in changed and isinstance(record, dict):
            record |= {"nbytes": len(files[name]), "crc32": zlib.crc32(files[name])}
    try:
        fields["crc32"] = manifest_crc(fields)
    except (ValueError, RecursionError):
        return files[MANIFEST]
    return json.dumps(fields).encode()


def mutate_text(rng: np.random.Generator, data: bytes) -> bytes:
    """Other JSON, mostly."""
    if rng.integers(4):
        try:
            return json.dumps(mutate_json(rng, json.loads(data)), ensure_ascii=False).encode(
                "utf-8", "surrogatepass"
            )
        except (ValueError, RecursionError):
            pass
    return mutate_bytes(rng, data)
