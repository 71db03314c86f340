"""The head of a GGUF file, read value by value (ggml/docs/gguf.md).

Counts and lengths come from the file, so each is checked against the bytes that are left before
anything is allocated. Nothing is read twice, and one window of the file is in memory at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from deepmnn.errors import CheckpointError
from deepmnn.source.regular_file import RE_DOWNLOAD, RegularFile

MAX_KEYS = 1 << 16
"""Published files have some 50."""

MAX_STRINGS = 1 << 20
"""Strings in a file's arrays: Gemma's tokenizer has 260,000 tokens and 510,000 merges."""

MAX_NAME = 1 << 10
"""Bytes of a key, or of a tensor's name."""

MAX_STRING = 1 << 24
"""Bytes of a string; chat templates have up to 100,000."""

_WINDOW = 1 << 20

_NUMBERS: dict[int, np.dtype[Any]] = {
    0: np.dtype("u1"),
    1: np.dtype("i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
_BOOL, _STRING, _ARRAY = 7, 8, 9
"""What a value is, by the file's number for it."""


class Cursor:
    """A place in a file, which goes forward.

    Every method raises CheckpointError where the file ends, or holds what it must not.
    """

    def __init__(self, file: RegularFile) -> None:
        self.file = file
        self.position = 0
        self._window = b""
        self._begin = 0
        self._strings = 0

    def take(self, nbytes: int, what: str) -> bytes:
        """The next bytes."""
        left = self.file.size - self.position
        if nbytes > left:
            raise CheckpointError(
                f"{self.file.path}: {what} has {nbytes} bytes, and {left} are left in the file",
                "",
                RE_DOWNLOAD,
            )
        at = self.position - self._begin
        if at + nbytes > len(self._window):
            size = min(left, max(nbytes, _WINDOW))
            self._window = self.file.read(self.position, size, what).tobytes()
            self._begin, at = self.position, 0
        self.position += nbytes
        return self._window[at : at + nbytes]

    def integer(self, nbytes: int, what: str) -> int:
        """An unsigned integer."""
        return int.from_bytes(self.take(nbytes, what), "little")

    def count(self, least: int, most: int, what: str) -> int:
        """How many things of at least `least` bytes follow; no more than fit, or than `most`."""
        found = self.integer(8, what)
        limit = min(most, (self.file.size - self.position) // least)
        if found > limit:
            raise CheckpointError(
                f"{self.file.path}: {what} is {found}", f"at most {limit}", RE_DOWNLOAD
            )
        return found

    def string(self, what: str, most: int = MAX_STRING, strict: bool = True) -> str:
        """A text in UTF-8; not strict: what is none becomes U+FFFD."""
        length = self.integer(8, what)
        if length > most:
            raise CheckpointError(
                f"{self.file.path}: {what} has {length} bytes", f"at most {most}", RE_DOWNLOAD
            )
        data = self.take(length, what)
        try:
            return data.decode(errors="strict" if strict else "replace")
        except UnicodeDecodeError:
            raise CheckpointError(
                f"{self.file.path}: {what} is {data[:40]!r}", "UTF-8", RE_DOWNLOAD
            ) from None

    def value(self, what: str, strict: bool = True) -> Any:
        """A number, a text, or an array of either: numbers as numpy's, texts as a list.

        strict: texts must be UTF-8.

        A float32 is the shortest decimal that rounds to it: 1e-06 for what was written as that.
        """
        kind = self.integer(4, f"the type of {what}")
        if kind != _ARRAY:
            return self._single(kind, what, strict)
        kind = self.integer(4, f"the type of the elements of {what}")
        if kind == _ARRAY:
            raise CheckpointError(
                f"{self.file.path}: {what} is an array of arrays",
                "an array of numbers or texts",
                "llama.cpp reads no others, either.",
            )
        if kind == _STRING:
            count = self.count(8, MAX_STRINGS - self._strings, f"the size of {what}")
            self._strings += count
            return self._strings_of(count, what, strict)
        dtype = np.dtype("u1") if kind == _BOOL else self._number(kind, what)
        count = self.count(dtype.itemsize, self.file.size, f"the size of {what}")
        return np.frombuffer(self.take(count * dtype.itemsize, what), dtype)

    def _strings_of(self, count: int, what: str, strict: bool) -> list[str]:
        """So many texts: as `string`, which hundreds of thousands would take seconds for."""
        found = []
        for _ in range(count):
            window, at = self._window, self.position - self._begin
            end = at + 8 + int.from_bytes(window[at : at + 8], "little")
            if at + 8 <= end <= len(window):
                data = window[at + 8 : end]
                if data.isascii():
                    found.append(data.decode("ascii"))
                    self.position = self._begin + end
                    continue
            found.append(self.string(what, strict=strict))
        return found

    def _single(self, kind: int, what: str, strict: bool) -> Any:
        if kind == _STRING:
            return self.string(what, strict=strict)
        if kind == _BOOL:
            found = self.integer(1, what)
            if found > 1:
                raise CheckpointError(f"{self.file.path}: {what} is {found}", "0 or 1: a bool")
            return found == 1
        dtype = self._number(kind, what)
        number = np.frombuffer(self.take(dtype.itemsize, what), dtype)[0]
        return float(str(number)) if dtype == np.float32 else number.item()

    def _number(self, kind: int, what: str) -> np.dtype[Any]:
        if kind not in _NUMBERS:
            raise CheckpointError(
                f"{self.file.path}: {what} is of type {kind}", "a type from 0 to 12", RE_DOWNLOAD
            )
        return _NUMBERS[kind]
