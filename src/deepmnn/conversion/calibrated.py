"""A source whose matrices have been rounded with a calibration set."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from deepmnn import _core
from deepmnn.artifact.directory import storage_errors
from deepmnn.formats import F32, U8, Codes
from deepmnn.quant.layout import unpack_codes
from deepmnn.source.source import Source


class CalibratedSource(Source):
    """Another source, with codes for some of its tensors, as stored bytes in a directory.

    A tensor with codes reads as the numbers that the codes stand for: whatever is made of it (the
    transposed half of MLA's up-projection) rounds from the same numbers.

    Args:
        source: the one that is calibrated.
        directory: of the codes; it exists.
    """

    def __init__(self, source: Source, directory: Path) -> None:
        self.config, self.paths = source.config, source.paths
        self._source = source
        self._directory = directory
        self._formats: dict[str, str] = {}

    def put(self, name: str, codes: Codes, threads: int = 1) -> None:
        """Keeps a tensor's codes."""
        data = _core.pack(
            np.ascontiguousarray(codes.levels),
            np.ascontiguousarray(codes.scales),
            codes.format,
            threads,
        )
        path = self._path(name, codes.format)
        part = path.with_suffix(".part")
        with storage_errors(path):
            part.write_bytes(data.data)
            os.replace(part, path)
        self._formats[name] = codes.format

    @property
    def count(self) -> int:
        """Tensors with codes."""
        return len(self._formats)

    def has(self, name: str, format: str) -> bool:
        """Whether a tensor has codes in a format; from then on it is read as these."""
        if self._path(name, format).is_file():
            self._formats[name] = format
        return self._formats.get(name) == format

    def codes(self, name: str) -> Codes | None:
        """The codes that were put, or what the source itself has."""
        format = self._formats.get(name)
        if format is None:
            return self._source.codes(name)
        rows, cols = self.shape(name)
        whole = unpack_codes(self._stored(name, format), format, cols)
        return Codes(format, whole.levels[:rows], whole.scales[:rows])

    def read(self, name: str) -> F32:
        """The numbers of a tensor, or those that its codes stand for."""
        format = self._formats.get(name)
        if format is None:
            return self._source.read(name)
        return _core.unpack(self._stored(name, format), format, *self.shape(name))

    def names(self) -> list[str]:
        """Those of the source, as all that follows."""
        return self._source.names()

    def __contains__(self, name: object) -> bool:
        return name in self._source

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        return self._source.shape(name)

    def sample(self, name: str) -> bytes:
        """A little of what is stored of a tensor."""
        return self._source.sample(name)

    def nbytes(self) -> int:
        """Bytes of all tensors as stored."""
        return self._source.nbytes()

    def left_out(self) -> list[str]:
        """Files that would change the model, and are not read."""
        return self._source.left_out()

    def side_files(self) -> dict[str, bytes]:
        """config.json and the tokenizer's files."""
        return self._source.side_files()

    def _stored(self, name: str, format: str) -> U8:
        path = self._path(name, format)
        with storage_errors(path, "read"):
            return np.fromfile(path, np.uint8)

    def _path(self, name: str, format: str) -> Path:
        digest = hashlib.blake2b(f"{format} {name}".encode(), digest_size=16).hexdigest()
        return self._directory / f"{digest}.codes"
