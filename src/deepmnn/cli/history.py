"""What was typed in earlier chats: one JSON text per line in a file that only its user reads."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from prompt_toolkit.history import History

MAX_BYTES = 1 << 20
"""What is older than this is forgotten."""


class FileHistory(History):
    """Kept in a file. A file that cannot be read or written is no error: nothing is kept, then."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def load_history_strings(self) -> Iterable[str]:
        """The last one first; cuts a file that has become too long."""
        try:
            with self._open(os.O_RDWR) as file:
                size = os.fstat(file).st_size
                kept = os.pread(file, MAX_BYTES, max(0, size - MAX_BYTES))
                if size > 2 * MAX_BYTES:
                    kept = kept.partition(b"\n")[2]
                    os.ftruncate(file, 0)
                    os.pwrite(file, kept, 0)
        except OSError:
            return []
        return filter(None, map(_text, reversed(kept.splitlines())))

    def store_string(self, string: str) -> None:
        """Appends one."""
        with contextlib.suppress(OSError), self._open(os.O_WRONLY | os.O_APPEND) as file:
            os.write(file, json.dumps(string).encode("ascii") + b"\n")

    @contextlib.contextmanager
    def _open(self, flags: int) -> Iterator[int]:
        """A descriptor of the file, which is made when it is missing. Raises OSError."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        safe = os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        file = os.open(self._path, flags | safe, 0o600)
        try:
            os.fchmod(file, 0o600)
            yield file
        finally:
            os.close(file)


def _text(line: bytes) -> str:
    """What a line holds; "" when it is damaged."""
    try:
        text = json.loads(line)
    except (ValueError, RecursionError):
        return ""
    return text if isinstance(text, str) else ""
