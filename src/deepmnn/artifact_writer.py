"""Writes an artifact: streamed into a temporary directory, renamed when complete.

A conversion that is killed leaves a directory `.NAME.deepmnn-tmp-HOST-PID-…` beside the target,
which nothing loads and the next conversion to that target removes.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import re
import secrets
import shutil
import socket
import sys
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any

from deepmnn import __version__
from deepmnn.artifact import (
    ALIGNMENT,
    FORMAT,
    FORMAT_VERSION,
    MANIFEST,
    TEMP_MARK,
    FileRecord,
    ShardRecord,
    manifest_crc,
)
from deepmnn.backends.cpu import WeightLocation
from deepmnn.errors import ArtifactError, StorageError
from deepmnn.quant.pack import U8

MAX_SHARD_BYTES = 2 << 30
"""A shard ends at a layer's border before this size, or inside a layer that is larger."""

_HINTS = {
    errno.ENOSPC: "Free some space, or choose another disk.",
    errno.EDQUOT: "Your quota on this disk is used up.",
    errno.EFBIG: "This disk or process may not write files of that size.",
    errno.EACCES: "Choose a directory that you may write to.",
    errno.EROFS: "The disk is read-only.",
}


@dataclass
class Shard:
    """A weight file to be: its weights (name, bytes) in order, and its safetensors header."""

    file: str
    weights: list[tuple[str, int]] = field(default_factory=list)

    def header(self) -> bytes:
        """Length prefix and JSON header, padded with spaces so that the data is 64-byte aligned."""
        tensors: dict[str, Any] = {"__metadata__": {"format": FORMAT}}
        position = 0
        for name, nbytes in self.weights:
            offsets = [position, position + nbytes]
            tensors[name] = {"dtype": "U8", "shape": [nbytes], "data_offsets": offsets}
            position += nbytes
        text = json.dumps(tensors, separators=(",", ":")).encode()
        text += b" " * (-(len(text) + 8) % ALIGNMENT)
        return len(text).to_bytes(8, "little") + text


class ArtifactWriter:
    """Context manager: `plan_weights`, then `write_weight` in order, `add_file`, `commit`.

    Leaving the context without `commit` removes everything that was written.

    Args:
        target: the artifact's directory.
        overwrite: replaces an artifact that is already there; anything else that exists is refused.

    Raises StorageError: the target exists, the disk is full, no permission, ...
    """

    def __init__(self, target: str | os.PathLike[str], overwrite: bool = False) -> None:
        self.target = Path(os.path.realpath(target))
        self._overwrite = overwrite
        self._temp: Path | None = None
        self._shards: list[Shard] = []
        self._queue: deque[tuple[int, str, int]] = deque()
        self._sink: _Sink | None = None
        self._shard_records: list[ShardRecord] = []
        self._file_records: dict[str, FileRecord] = {}

    def __enter__(self) -> ArtifactWriter:
        with _storage_errors(self.target):
            self._check_target()
            self.target.parent.mkdir(parents=True, exist_ok=True)
            remove_stale(self.target)
            temp = self.target.parent / _temp_name(self.target.name)
            temp.mkdir()
            self._temp = temp
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._sink is not None:
            self._sink.abandon()
        if self._temp is not None:
            _remove(self._temp)

    @property
    def shard_names(self) -> list[str]:
        """File names of the weight shards, in the order that locations count them."""
        return [shard.file for shard in self._shards]

    def plan_weights(
        self, weights: Sequence[tuple[str, int]], max_shard_bytes: int = MAX_SHARD_BYTES
    ) -> dict[str, WeightLocation]:
        """Decides where every weight (name, bytes) will lie; they must then be written in order.

        Raises StorageError when the disk has not enough room for them.
        """
        self._check_space(sum(nbytes for _, nbytes in weights))
        self._shards = plan_shards(weights, max_shard_bytes)
        locations: dict[str, WeightLocation] = {}
        for index, shard in enumerate(self._shards):
            position = len(shard.header())
            for name, nbytes in shard.weights:
                self._queue.append((index, name, nbytes))
                locations[name] = WeightLocation(index, position, nbytes)
                position += nbytes
        return locations

    def write_weight(self, name: str, data: U8) -> None:
        """Appends the next planned weight. Raises StorageError."""
        planned = self._queue.popleft() if self._queue else None
        if planned is None or planned[1:] != (name, data.nbytes):
            raise ArtifactError(f"weight {name!r} of {data.nbytes} bytes", f"{planned} is next")
        index = planned[0]
        if index == len(self._shard_records) + (self._sink is not None):
            self._finish_shard()
            self._sink = self._open(self._shards[index].file)
            self._sink.write(self._shards[index].header())
        if self._sink is not None:
            self._sink.write(data.data)

    def add_file(self, name: str, data: bytes) -> None:
        """Writes a small file. Raises StorageError."""
        sink = self._open(name)
        try:
            sink.write(data)
        except BaseException:
            sink.abandon()
            raise
        self._file_records[name] = sink.finish()

    def commit(self, description: Mapping[str, Any]) -> None:
        """Writes the manifest (`description` plus versions and file tables) and renames.

        Raises StorageError.
        """
        self._finish_shard()
        if self._queue:
            raise ArtifactError(f"weight {self._queue[0][1]!r} was planned and not written")
        fields: dict[str, Any] = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "deepmnn_version": __version__,
            **description,
            "shards": self._shard_records,
            "files": dict(self._file_records),
        }
        fields["crc32"] = manifest_crc(fields)
        self.add_file(MANIFEST, json.dumps(fields, indent=1).encode())
        with _storage_errors(self.target):
            self._replace_target()

    def _open(self, name: str) -> _Sink:
        if self._temp is None:
            raise ArtifactError("the writer is not open", "use it in a with statement")
        return _Sink(self._temp / name)

    def _finish_shard(self) -> None:
        if self._sink is not None:
            record = self._sink.finish()
            file = self._shards[len(self._shard_records)].file
            self._shard_records.append({"file": file, **record})
            self._sink = None

    def _replace_target(self) -> None:
        """The one moment at which the artifact appears."""
        temp = self._temp
        if temp is None:
            return
        _sync_directory(temp)
        try:
            temp.rename(self.target)
            self._temp = None
        except OSError:  # not empty: an artifact to replace, or another process was quicker
            if not (self.target / MANIFEST).exists():
                raise
            if not _exchange(temp, self.target):
                old = self.target.parent / _temp_name(self.target.name)
                self.target.rename(old)
                temp.rename(self.target)
                self._temp = old
        _sync_directory(self.target.parent)

    def _check_target(self) -> None:
        if not self.target.exists():
            return
        if self.target.is_mount():  # a directory can be renamed onto any other empty one
            raise StorageError(
                f"{self.target} is a mount point",
                "a directory inside it",
                f"Write to {self.target / 'model'}, for example.",
            )
        if self.target.is_dir() and not any(self.target.iterdir()):
            return
        if not (self.target / MANIFEST).is_file():
            raise StorageError(
                f"{self.target} already exists and is no converted model",
                "a new directory",
                "Choose another output directory.",
            )
        if not self._overwrite:
            raise StorageError(
                f"{self.target} already exists", "a new directory", "Overwrite it with --overwrite."
            )

    def _check_space(self, nbytes: int) -> None:
        with _storage_errors(self.target):
            free = shutil.disk_usage(self.target.parent).free
        if free < nbytes:
            raise StorageError(
                f"{self.target.parent} has {free:,} bytes free",
                f"{nbytes:,} bytes for the weights",
                _HINTS[errno.ENOSPC],
            )


class _Sink:
    """One file being written: counts, checksums, and syncs when finished."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._crc = 0
        self._nbytes = 0
        with _storage_errors(path):
            self._file = path.open("xb", buffering=0)

    def write(self, data: bytes | memoryview) -> None:
        view = memoryview(data).cast("B")
        self._crc = zlib.crc32(view, self._crc)
        self._nbytes += view.nbytes
        with _storage_errors(self._path):
            while view.nbytes:
                view = view[self._file.write(view) :]

    def finish(self) -> FileRecord:
        with _storage_errors(self._path), self._file:
            os.fsync(self._file.fileno())
        return {"nbytes": self._nbytes, "crc32": self._crc}

    def abandon(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()


def plan_shards(weights: Sequence[tuple[str, int]], max_shard_bytes: int) -> list[Shard]:
    """Distributes weights (name, bytes), in order, over shards; whole layers while they fit."""
    shards: list[list[tuple[str, int]]] = [[]]
    filled = 0
    for _, items in groupby(weights, key=lambda item: _layer(item[0])):
        layer = list(items)
        fits = sum(nbytes for _, nbytes in layer) <= max_shard_bytes
        for piece in [layer] if fits else [[item] for item in layer]:
            size = sum(nbytes for _, nbytes in piece)
            if filled and filled + size > max_shard_bytes:
                shards.append([])
                filled = 0
            shards[-1] += piece
            filled += size
    used = [items for items in shards if items]
    return [
        Shard(f"model-{index:05}-of-{len(used):05}.safetensors", items)
        for index, items in enumerate(used, 1)
    ]


def remove_stale(target: Path) -> None:
    """Removes what killed conversions to this target left, if their process is gone."""
    pattern = re.compile(re.escape(_temp_prefix(target.name)) + r"(\d+)-[0-9a-f]+")
    for entry in target.parent.iterdir():
        match = pattern.fullmatch(entry.name)
        if match and not _is_alive(int(match[1])):
            shutil.rmtree(entry, ignore_errors=True)


def _remove(directory: Path) -> None:
    """Removes all of it, however often Ctrl-C is pressed meanwhile."""
    try:
        shutil.rmtree(directory, ignore_errors=True)
    except KeyboardInterrupt:
        _remove(directory)
        raise


def _temp_prefix(name: str) -> str:
    """Host names tell apart machines (and containers) that share a disk but not process ids."""
    return f".{name}{TEMP_MARK}{socket.gethostname()}-"


def _temp_name(name: str) -> str:
    return f"{_temp_prefix(name)}{os.getpid()}-{secrets.token_hex(4)}"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _exchange(a: Path, b: Path) -> bool:
    """Swaps two directories in one step where the system can (renameat2, RENAME_EXCHANGE)."""
    if sys.platform != "linux":
        return False
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    here, exchange = -100, 2
    return renameat2 is not None and not renameat2(
        here, os.fsencode(a), here, os.fsencode(b), exchange
    )


def _layer(name: str) -> str:
    """The layer a weight belongs to, "" for the embedding and the head."""
    match = re.search(r"(?:^|\.)layers\.(\d+)\.", name)
    return match[1] if match else ""


def _sync_directory(path: Path) -> None:
    """Makes the directory's entries durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as fault:
        hint = _HINTS.get(fault.errno or 0, "")
        raise StorageError(f"{path} cannot be written: {fault.strerror}", "", hint) from None
