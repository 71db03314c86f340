"""The answers of a batch: a file of JSON lines that grows, and goes on where it was cut off.

While a batch runs, its answers are in OUT.partial; the last one renames it to OUT. A line is
written in one piece, and a process that is killed leaves at most its last line unfinished: whoever
opens the file next cuts that one off.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from deepmnn.errors import StorageError, Words

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW

SYNC_SECONDS = 1.0
"""So much may be lost when the machine itself goes down."""


def partial_of(path: Path) -> Path:
    """Where the answers are until they are complete."""
    return path.with_name(f"{path.name}.partial")


class Results:
    """Context manager: `add` each answer, then `finish`.

    Args:
        path: where all of them stand in the end.
        overwrite: replace a file that is there, and begin anew.

    Attributes:
        done: the custom_id of every line that is there.
        models: what the answers there are from.

    Raises StorageError: the file is there, another process writes it, the disk is full, ...
    """

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        self.path, self.partial = path, partial_of(path)
        if path.exists() and not overwrite:
            raise StorageError(
                f"{path} already exists",
                "a file that is not there yet",
                Words("Choose another one, or overwrite=True.", "Choose another, or --overwrite."),
            )
        self._synced = time.monotonic()
        try:
            self._file = os.open(self.partial, _FLAGS, 0o666)
        except OSError as error:
            raise self._failed(error) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if overwrite:
                os.ftruncate(self._file, 0)
            self.done = self._read()
        except BaseException as error:
            os.close(self._file)
            if isinstance(error, BlockingIOError):
                raise StorageError(
                    f"another process writes {self.partial}", "one at a time", "Wait for it."
                ) from None
            if isinstance(error, OSError):
                raise self._failed(error) from None
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._file)

    def add(self, custom_id: str, line: dict[str, Any]) -> None:
        """Writes an answer. Raises StorageError; then the file is as it was."""
        data = json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        end = os.fstat(self._file).st_size
        try:
            written = 0
            while written < len(data):
                written += os.write(self._file, data[written:])
            if time.monotonic() - self._synced > SYNC_SECONDS:
                os.fsync(self._file)
                self._synced = time.monotonic()
        except OSError as error:
            os.ftruncate(self._file, end)
            raise self._failed(error) from None
        self.done.add(custom_id)

    def finish(self) -> None:
        """All answers are there: gives the file its name."""
        try:
            os.fsync(self._file)
            os.replace(self.partial, self.path)
        except OSError as error:
            raise self._failed(error) from None

    def _read(self) -> set[str]:
        """The names of what is there; cuts off a line without an end. Raises StorageError."""
        done: set[str] = set()
        self.models: set[str] = set()
        end = 0
        with open(self._file, "rb", closefd=False) as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                done.add(self._custom_id(line, number))
                end += len(line)
        os.ftruncate(self._file, end)
        return done

    def _custom_id(self, line: bytes, number: int) -> str:
        try:
            match json.loads(line):
                case {"custom_id": str(name), "response": {"body": dict(body)}}:
                    if isinstance(body.get("model"), str):
                        self.models.add(body["model"])
                    return name
        except (ValueError, RecursionError):
            pass
        raise StorageError(
            f"line {number} of {self.partial} is no answer of a batch",
            "a file that a batch has written",
            Words(
                "Move it away, or begin anew with overwrite=True.",
                "Move it away, or begin anew with --overwrite.",
            ),
        )

    def _failed(self, error: OSError) -> StorageError:
        return StorageError(
            f"{self.partial} cannot be written: {error.strerror}",
            "a place with room for the answers",
            "What is there stays: the same call goes on from it.",
        )
