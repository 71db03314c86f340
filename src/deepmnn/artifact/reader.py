"""A converted model: the directory that `convert` writes and the engine runs in place.

config.json, tokenizer files, ...     as the checkpoint has them
graph.json                            the graph (graph/serialize.py)
draft.json                            that of its draft part, where it has one (graph/draft.py)
program.bin                           both lowered for the C++ core (docs/program.md)
model-0000i-of-0000N.safetensors      weights in kernel layout, U8 tensors, 64-byte aligned; of
                                      weights that share bytes what is not in another one
report.html, report.json              what the conversion did (docs/report.md), unless left out
deepmnn.json                          the manifest: versions, recipe, passes, sizes, checksums
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from deepmnn.artifact.manifest import (
    AGAIN,
    CONFIG,
    DRAFT,
    GRAPH,
    MANIFEST,
    PROGRAM,
    VERIFY_ALWAYS_BYTES,
    Manifest,
    ShardRecord,
    check_crc,
    check_size,
    read_manifest,
)
from deepmnn.artifact.shards import PADDING
from deepmnn.backends.cpu.pieces import Piece, Pieces
from deepmnn.backends.cpu.program import read_shards, read_weights
from deepmnn.errors import ArtifactError, GraphError, RequestError, shown
from deepmnn.formats import ALIGNMENT, U8
from deepmnn.graph.draft import Parts
from deepmnn.graph.ir import Graph, Weight
from deepmnn.graph.serialize import from_json
from deepmnn.source.json_file import read_object, read_small
from deepmnn.source.safetensors import SafetensorsFile
from deepmnn.text.text_files import TextFiles


class Artifact:
    """An opened artifact.

    Attributes:
        path: the directory.
        manifest: deepmnn.json.
        config: config.json.
        text_files: the tokenizer's and other small files that the manifest lists.
    """

    def __init__(self, path: Path, manifest: Manifest, shards: list[SafetensorsFile]) -> None:
        self.path = path
        self.manifest = manifest
        self.config: dict[str, Any] = read_object(path / CONFIG, ArtifactError)
        self.text_files = TextFiles(path, manifest["files"])
        self._shard_of = {name: shard for shard in shards for name in shard.entries}
        self._shard_paths = [shard.path for shard in shards]
        self._parts: Parts | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str], verify: bool | None = None) -> Artifact:
        """Opens and checks an artifact.

        Every file's presence and size and the small files' checksums are always checked; the
        weights' checksums when they total at most 256 MB, or always (verify=True), or never
        (verify=False).

        Raises ArtifactError, saying what is wrong with which file.
        """
        directory = Path(path)
        manifest = read_manifest(directory)
        for name, record in manifest["files"].items():
            check_size(directory / name, record)
            check_crc(directory / name, record)
        shards = [_open_shard(directory, record) for record in manifest["shards"]]
        _check_unique(shards)
        artifact = cls(directory, manifest, shards)
        if verify or (verify is None and artifact.weights_nbytes <= VERIFY_ALWAYS_BYTES):
            artifact.verify()
        return artifact

    def verify(self, forget: bool = False) -> None:
        """Raises ArtifactError unless the weights' checksums are right.

        forget: nothing of them stays in the system's cache of files.
        """
        for record in self.manifest["shards"]:
            check_crc(self.path / record["file"], record, forget=forget)

    @property
    def weights_nbytes(self) -> int:
        """Bytes of all weight files."""
        return sum(record["nbytes"] for record in self.manifest["shards"])

    @property
    def unshared_nbytes(self) -> int:
        """Bytes of all weights when those that are stored once are written for each."""
        shared = self.manifest.get("shared")
        return self.weights_nbytes + (shared["nbytes"] if shared else 0)

    def tensor(self, name: str) -> U8:
        """The stored bytes of a weight. Raises ArtifactError.

        A copy: to read a mapped file that has been cut would end the process.
        """
        pieces = self._shared.get(name)
        if pieces is not None:
            return np.concatenate([self._piece(piece) for piece in pieces])
        shard = self._shard_of.get(name)
        if shard is None:
            raise ArtifactError(f"{self.path} has no weight {name!r}", "", AGAIN)
        entry = shard.entries[name]
        return _read(shard.path, entry.begin, entry.nbytes)

    @cached_property
    def _shared(self) -> dict[str, Pieces]:
        """Weight → its pieces, where weights share bytes. Raises ArtifactError."""
        if "shared" not in self.manifest:
            return {}
        self.check_program()
        weights = read_weights(read_small(self.path / PROGRAM, ArtifactError))
        return {weight.name: weight.pieces for weight in weights}

    def _piece(self, piece: Piece) -> U8:
        """Its bytes."""
        if piece.is_zeros:
            return np.zeros(piece.nbytes, np.uint8)
        return _read(self._shard_paths[piece.shard], piece.offset, piece.nbytes)

    def _stored_nbytes(self, name: str) -> int | None:
        """Bytes of a weight; None where there is none of that name."""
        pieces, shard = self._shared.get(name), self._shard_of.get(name)
        if pieces is not None:
            return sum(piece.nbytes for piece in pieces)
        return shard.entries[name].nbytes if shard else None

    def graph(self) -> Graph:
        """The graph of the main part; as `parts`."""
        return self.parts().main

    def parts(self) -> Parts:
        """The graphs, checked against the stored weights. Raises ArtifactError."""
        if self._parts is None:
            found = Parts(self._read_graph(GRAPH), self._read_draft())
            try:
                found.check()
            except GraphError as fault:
                raise ArtifactError(f"{self.path}: {fault}"[:500], "", AGAIN) from None
            self._check_weights(found.weights)
            self._parts = found
        return self._parts

    def _read_graph(self, name: str) -> Graph:
        return from_json(read_object(self.path / name, ArtifactError), name)

    def _read_draft(self) -> Graph | None:
        return self._read_graph(DRAFT) if DRAFT in self.manifest["files"] else None

    def check_program(self) -> None:
        """Raises ArtifactError unless program.bin maps the weight files that the manifest lists,
        and no others: the core reads what it names.
        """
        path = self.path / PROGRAM
        named = list(read_shards(read_small(path, ArtifactError)))
        listed = [record["file"] for record in self.manifest["shards"]]
        if named != listed:
            raise ArtifactError(
                f"{path} maps {', '.join(map(shown, named)):.200}",
                f"{', '.join(listed):.200}, as {MANIFEST} lists",
                AGAIN,
            )

    def _check_weights(self, weights: Mapping[str, Weight]) -> None:
        for weight in weights.values():
            found = self._stored_nbytes(weight.name)
            try:
                expected = weight.nbytes
            except (RequestError, ValueError) as fault:
                raise ArtifactError(f"weight {weight.name!r:.200}: {fault}", "", AGAIN) from None
            if found != expected:
                raise ArtifactError(
                    f"weight {weight.name!r:.200} has {found} stored bytes",
                    f"{expected} for {weight.format} {list(weight.shape)}",
                    AGAIN,
                )


def _open_shard(directory: Path, record: ShardRecord) -> SafetensorsFile:
    path = directory / record["file"]
    check_size(path, record)
    shard = SafetensorsFile(path, ArtifactError)
    for name, entry in shard.entries.items():
        if entry.dtype != "U8" or len(entry.shape) != 1 or entry.begin % ALIGNMENT:
            raise ArtifactError(
                f"{path}: weight {name!r:.200} is {entry.dtype:.20} {list(entry.shape)!s:.80} "
                f"at {entry.begin}",
                f"bytes at a multiple of {ALIGNMENT}",
                AGAIN,
            )
    return shard


def _read(path: Path, offset: int, nbytes: int) -> U8:
    """Raises ArtifactError."""
    try:
        size = path.stat().st_size
        found = np.fromfile(path, np.uint8, min(nbytes, max(0, size - offset)), offset=offset)
    except (OSError, OverflowError) as fault:
        raise ArtifactError(f"{path} cannot be read: {fault}") from None
    if found.nbytes != nbytes:
        raise ArtifactError(
            f"{path} has shrunk since it was opened, to {size} bytes",
            f"{offset + nbytes}, where a weight ends, or more",
            AGAIN,
        )
    return found


def _check_unique(shards: list[SafetensorsFile]) -> None:
    seen: dict[str, Path] = {}
    for shard in shards:
        for name in shard.entries:
            if name.startswith(PADDING):
                continue
            if name in seen:
                raise ArtifactError(
                    f"weight {name!r:.200} is in {seen[name].name} and {shard.path.name}",
                    "",
                    AGAIN,
                )
            seen[name] = shard.path
