"""Types into a `deepmnn` that runs on a terminal of its own, and reads what it shows."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

SECONDS = 60
"""Far above what anything here takes."""

_ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[ -/]*[@-~]|\][^\x07]*\x07|[=>()][0AB]?)")


class Typist:
    """A child on a pseudo-terminal of 80 × 24, with stdout in a pipe if `piped`.

    read: what the terminal has received since the last `expect`, escapes taken out.
    """

    def __init__(
        self, *arguments: object, piped: bool = False, env: Mapping[str, str] | None = None
    ) -> None:
        self.master, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        code += "from deepmnn.cli import main; main()"
        self.child = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdin=terminal,
            stdout=subprocess.PIPE if piped else terminal,
            stderr=terminal,
            env={**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", **(env or {})},
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            start_new_session=True,
        )
        os.close(terminal)
        self.raw = ""
        self.all = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.child.kill()
        self.child.wait()
        if self.child.stdout:
            self.child.stdout.close()
        os.close(self.master)

    def type(self, keys: str) -> None:
        """As from a keyboard."""
        os.write(self.master, keys.encode())

    def enter(self, keys: str) -> None:
        """At the next prompt."""
        self.expect(r"\n>")
        self.type(keys)

    def expect(self, wanted: str) -> str:
        """Waits until the pattern has been shown; what came up to its end, without escapes."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            plain = _ESCAPES.sub("", self.raw).replace("\r", "")
            if found := re.search(wanted, plain):
                self.raw = plain[found.end() :]
                return plain[: found.end()]
            if not self._read(end - time.monotonic()):
                break
        raise AssertionError(f"{wanted!r} never came; last: {self.raw[-2000:]!r}")

    def leave(self) -> int:
        """Waits for the end; its exit code."""
        end = time.monotonic() + SECONDS
        while self._read(max(0.0, end - time.monotonic())):
            pass
        return self.child.wait(SECONDS)

    def _read(self, seconds: float) -> bool:
        """More of the output; False at its end."""
        ready, _, _ = select.select([self.master], [], [], seconds)
        try:
            data = os.read(self.master, 65536) if ready else b""
        except OSError:  # nobody has the terminal open any more
            data = b""
        text = data.decode(errors="replace")
        self.raw += text
        self.all += text
        return bool(data)


def history(cache: Path) -> str:
    """The file of what was typed."""
    return (cache / "deepmnn" / "chat-history.jsonl").read_text()
