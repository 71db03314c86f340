"""A source whose matrices have been rounded with a calibration set."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from deepmnn.artifact.directory import storage_errors
from deepmnn.formats import F32, U8, Codes, KeptCodes
from deepmnn.quant.rounder import Rounder
from deepmnn.source.source import Source
from deepmnn.source.wrapped import WrappedSource


class CalibratedSource(WrappedSource):
    """Another source, with codes for some of its tensors, as stored bytes in a directory.

    A tensor with codes reads as the numbers that the codes stand for: whatever is made of it (the
    transposed half of MLA's up-projection) rounds from the same numbers.

    Args:
        source: the one that is calibrated.
        directory: of the codes; it exists.
        rounder: what makes them, and knows what they stand for.
    """

    def __init__(self, source: Source, directory: Path, rounder: Rounder) -> None:
        super().__init__(source)
        self._directory, self._rounder = directory, rounder
        self._formats: dict[str, str] = {}

    def put(self, name: str, format: str, stored: U8) -> None:
        """Keeps a tensor's codes, as the rounder stores them."""
        path = self._path(name, format)
        part = path.with_suffix(".part")
        with storage_errors(path):
            part.write_bytes(stored.data)
            os.replace(part, path)
        self._formats[name] = format

    @property
    def count(self) -> int:
        """Tensors with codes."""
        return len(self._formats)

    def has(self, name: str, format: str) -> bool:
        """Whether a tensor has codes in a format; from then on it is read as these."""
        if self._path(name, format).is_file():
            self._formats[name] = format
        return self._formats.get(name) == format

    def codes(self, name: str) -> Codes | KeptCodes | None:
        """The codes that were put, or what the source itself has."""
        format = self._formats.get(name)
        if format is None:
            return self._source.codes(name)
        rows, cols = self.shape(name)
        return self._rounder.codes(self._stored(name, format), format, (rows, cols))

    def kept_format(self, name: str) -> str | None:
        """The source's: nothing that is kept is calibrated."""
        return self._source.kept_format(name)

    def read(self, name: str) -> F32:
        """The numbers of a tensor, or those that its codes stand for."""
        format = self._formats.get(name)
        if format is None:
            return self._source.read(name)
        rows, cols = self.shape(name)
        return self._rounder.values(self._stored(name, format), format, (rows, cols))

    def _stored(self, name: str, format: str) -> U8:
        path = self._path(name, format)
        with storage_errors(path, "read"):
            return np.fromfile(path, np.uint8)

    def _path(self, name: str, format: str) -> Path:
        digest = hashlib.blake2b(f"{format} {name}".encode(), digest_size=16).hexdigest()
        return self._directory / f"{digest}.codes"
