"""Writes an artifact: weights streamed into shards, one after another."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from deepmnn.artifact.directory import DirectoryWriter, Sink, storage_errors
from deepmnn.artifact.manifest import FORMAT, FORMAT_VERSION, ShardRecord, SharedRecord
from deepmnn.artifact.repeats import Part, Repeats
from deepmnn.artifact.shards import Layout, Shard, expert_of, header
from deepmnn.artifact.target import Target
from deepmnn.backends.cpu.pieces import Piece, Pieces, merged
from deepmnn.backends.cpu.program import MAX_PIECES
from deepmnn.errors import ArtifactError
from deepmnn.formats import U8


class ArtifactWriter(DirectoryWriter):
    """Context manager: `expect`, then `write_weight` in order, `add_file`, `commit`.

    Args:
        target: the directory; its manifest, deepmnn.json, tells what it is.
        overwrite: replaces a converted model that is there, as long as it is as it was written.
        sources: what is read meanwhile; nothing of it may lie in the target.

    Attributes:
        locations: weight → where its bytes lie, of those that are written.
    """

    def __init__(
        self,
        target: str | os.PathLike[str],
        overwrite: bool = False,
        sources: Sequence[Path] = (),
    ) -> None:
        super().__init__(Target(target, FORMAT, overwrite, sources))
        self.locations: dict[str, Pieces] = {}
        self._shards: list[Shard] = []
        self._queue: deque[tuple[int, str, int]] = deque()
        self._sink: Sink | None = None
        self._layouts: list[Layout] = []
        self._shard_records: list[ShardRecord] = []
        self._repeats = Repeats(0, self._read, 0)
        self._savings = _Savings()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._sink is not None:
            self._sink.abandon()
        super().__exit__(kind, value, trace)

    def expect(self, shards: Sequence[Shard]) -> None:
        """The weight files to write; their weights must then be written in order.

        Raises StorageError when the disk has not enough room for them.
        """
        self._shards = list(shards)
        self._queue.extend(
            (index, name, nbytes)
            for index, shard in enumerate(shards)
            for name, nbytes in shard.weights
        )
        total = sum(nbytes for _, _, nbytes in self._queue)
        self.check_space(total)
        self._repeats = Repeats(total, self._read, MAX_PIECES)

    def write_weight(self, name: str, data: U8, block_nbytes: int | None = None) -> None:
        """Appends the next planned weight: what of it is not stored yet.

        Args:
            name: as planned.
            data: its bytes.
            block_nbytes: of 16 of its rows, 0 for a vector; None: it is stored whole, because
                nothing but the file's header says where it is.

        Raises StorageError.
        """
        planned = self._queue.popleft() if self._queue else None
        if planned is None or planned[1:] != (name, data.nbytes):
            raise ArtifactError(f"weight {name!r} of {data.nbytes} bytes", f"{planned} is next")
        shard = planned[0]
        self._begin(shard)
        known = None if block_nbytes is None else self._repeats.whole(data)
        pieces = known or self._append(name, data, shard, block_nbytes)
        if known is None:
            self._repeats.remember(data, pieces)
        self.locations[name] = pieces
        self._savings.count(name, pieces, data.nbytes, known is None)

    def commit(self, description: Mapping[str, Any]) -> None:
        """Writes the manifest (`description` plus versions, file tables and what was shared) and
        renames.

        Raises StorageError.
        """
        self._finish_shard()
        if self._queue:
            raise ArtifactError(f"weight {self._queue[0][1]!r} was planned and not written")
        version = {"format": FORMAT, "format_version": FORMAT_VERSION}
        shared = self._savings.record()
        more = {"shared": shared} if shared else {}
        super().commit({**version, **description, "shards": self._shard_records, **more})

    def _append(self, name: str, data: U8, shard: int, block_nbytes: int | None) -> Pieces:
        """Writes what of a weight is new; where all of it lies."""
        layout = self._layouts[shard]
        base = layout.next(data.nbytes)
        parts: list[Part] = []
        if block_nbytes is not None:
            parts = self._repeats.parts(data, block_nbytes, shard, base)
        new = data.nbytes - sum(part.end - part.begin for part in parts)
        self._savings.stored += new
        if new and self._sink is not None:
            self._sink.write(bytes(layout.add(name, base, new)))
        pieces: list[Piece] = []
        at, offset = 0, base
        for part in parts:
            offset = self._append_new(data[at : part.begin], shard, offset, pieces)
            pieces.append(part.source)
            at = part.end
        self._append_new(data[at:], shard, offset, pieces)
        return merged(pieces)

    def _append_new(self, data: U8, shard: int, offset: int, pieces: list[Piece]) -> int:
        """Writes bytes that are nowhere else; where the next ones will be."""
        if data.nbytes and self._sink is not None:
            self._sink.write(data.data)
            pieces.append(Piece(shard, offset, data.nbytes))
        return offset + data.nbytes

    def _begin(self, shard: int) -> None:
        """Opens the file of a weight, if it is its first one."""
        while len(self._layouts) <= shard:
            self._finish_shard()
            planned = self._shards[len(self._layouts)]
            self._layouts.append(Layout(planned.header_nbytes))
            self._sink = self.open(planned.file)
            self._sink.skip(planned.header_nbytes)

    def _finish_shard(self) -> None:
        if self._sink is not None:
            record = self._sink.finish(header(self._layouts[-1]))
            file = self._shards[len(self._shard_records)].file
            self._shard_records.append({"file": file, **record})
            self._sink = None

    def _read(self, shard: int, offset: int, nbytes: int) -> U8:
        """Bytes of weights that are written; fewer at their end. Raises StorageError."""
        layout, path = self._layouts[shard], self.temp / self._shards[shard].file
        count = min(nbytes, layout.end - offset) if offset >= layout.begin else 0
        with storage_errors(path, "read"):
            return np.fromfile(path, np.uint8, max(count, 0), offset=offset)


class _Savings:
    """What is stored once, counted."""

    def __init__(self) -> None:
        self.stored = self._zeros = self._whole = self._nbytes = 0
        self._experts: dict[str, bool] = {}

    def count(self, name: str, pieces: Pieces, nbytes: int, is_new: bool) -> None:
        """A weight, as it is located; is_new: not a whole one that was there."""
        self._nbytes += nbytes
        self._zeros += sum(piece.nbytes for piece in pieces if piece.is_zeros)
        gone = not is_new or all(piece.is_zeros for piece in pieces)
        expert = expert_of(name)
        if expert:
            self._experts[expert] = self._experts.get(expert, True) and gone
        elif gone:
            self._whole += 1

    def record(self) -> SharedRecord | None:
        """None where all is stored."""
        saved = self._nbytes - self.stored
        if not saved:
            return None
        return {
            "nbytes": saved,
            "zeros_nbytes": min(self._zeros, saved),
            "experts": sum(self._experts.values()),
            "weights": self._whole,
        }
