"""An input that is several files: each a byte that says which, 4 bytes of length, and its bytes."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence

import numpy as np

from fuzz.harness import Target
from fuzz.mutations import mutate_bytes, mutate_json, rewrite

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
