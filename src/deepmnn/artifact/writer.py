"""Writes an artifact: weights streamed into shards, one after another."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from deepmnn.artifact.directory import DirectoryWriter, Sink
from deepmnn.artifact.manifest import FORMAT, FORMAT_VERSION, ShardRecord
from deepmnn.artifact.shards import Shard
from deepmnn.artifact.target import Target
from deepmnn.errors import ArtifactError
from deepmnn.formats import U8


class ArtifactWriter(DirectoryWriter):
    """Context manager: `expect`, then `write_weight` in order, `add_file`, `commit`.

    Args:
        target: the directory; its manifest, deepmnn.json, tells what it is.
        overwrite: replaces a converted model that is there, as long as it is as it was written.
        sources: what is read meanwhile; nothing of it may lie in the target.
    """

    def __init__(
        self,
        target: str | os.PathLike[str],
        overwrite: bool = False,
        sources: Sequence[Path] = (),
    ) -> None:
        super().__init__(Target(target, FORMAT, overwrite, sources))
        self._shards: list[Shard] = []
        self._queue: deque[tuple[int, str, int]] = deque()
        self._sink: Sink | None = None
        self._shard_records: list[ShardRecord] = []

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
        self.check_space(sum(nbytes for _, _, nbytes in self._queue))

    def write_weight(self, name: str, data: U8) -> None:
        """Appends the next planned weight. Raises StorageError."""
        planned = self._queue.popleft() if self._queue else None
        if planned is None or planned[1:] != (name, data.nbytes):
            raise ArtifactError(f"weight {name!r} of {data.nbytes} bytes", f"{planned} is next")
        index = planned[0]
        if index == len(self._shard_records) + (self._sink is not None):
            self._finish_shard()
            self._sink = self.open(self._shards[index].file)
            self._sink.write(self._shards[index].header())
        if self._sink is not None:
            self._sink.write(data.data)

    def commit(self, description: Mapping[str, Any]) -> None:
        """Writes the manifest (`description` plus versions and file tables) and renames.

        Raises StorageError.
        """
        self._finish_shard()
        if self._queue:
            raise ArtifactError(f"weight {self._queue[0][1]!r} was planned and not written")
        version = {"format": FORMAT, "format_version": FORMAT_VERSION}
        super().commit({**version, **description, "shards": self._shard_records})

    def _finish_shard(self) -> None:
        if self._sink is not None:
            record = self._sink.finish()
            file = self._shards[len(self._shard_records)].file
            self._shard_records.append({"file": file, **record})
            self._sink = None
