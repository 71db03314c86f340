"""Runs a long command and tells how far it is, on a terminal or not.

    python tools/announce.py "Compiling the engine, about two minutes" -- COMMAND ARGUMENT ...

Says what begins, then every few seconds the last line that the command printed, and how long it
took. If the command fails, all that it printed follows, and its exit code is this one's. Python's
standard library alone: it runs before anything is installed.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time

EVERY = 5.0
"""Seconds between two lines."""

WIDTH = 100
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Printed:
    """What a command has printed; filled by a thread."""

    def __init__(self) -> None:
        self.data = b""
        self.began = time.monotonic()

    @property
    def text(self) -> str:
        return self.data.decode("utf-8", "replace")

    @property
    def last(self) -> str:
        """The last line with words on it that is no warning, as far as it fits."""
        lines = re.split(r"[\r\n]+", _COLOURS.sub("", self.data[-8000:].decode("utf-8", "replace")))
        words = (line.strip() for line in reversed(lines))
        said = next((line for line in words if line and not line.startswith("WARNING")), "")
        return said if len(said) <= WIDTH else f"{said[: WIDTH - 1]}…"

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began


def run(title: str, command: list[str]) -> int:
    """The exit code of the command; 128 and more for a signal."""
    say(f"== {title}")
    printed, finished = Printed(), threading.Event()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    teller = threading.Thread(target=tell, args=(printed, finished))
    teller.start()
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())  # `make` passes it on
    try:
        code = follow(process, printed)
    finally:
        finished.set()
        teller.join()
    if code:
        say(printed.text)
        say(f"== failed after {printed.seconds:.0f} s: {' '.join(command)}")
    else:
        say(f"   done in {printed.seconds:.0f} s")
    return code if code >= 0 else 128 - code


def follow(process: subprocess.Popen[bytes], printed: Printed) -> int:
    """Reads until the command has ended; Ctrl-C reaches it too, so it is waited for."""
    assert process.stdout
    while True:
        try:
            while piece := process.stdout.read1(65536):  # type: ignore[attr-defined]
                printed.data += piece
            return process.wait()
        except KeyboardInterrupt:
            continue


def tell(printed: Printed, finished: threading.Event) -> None:
    """A line every few seconds until it is finished."""
    while not finished.wait(EVERY):
        say(f"   {printed.seconds:4.0f} s  {printed.last}")


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 4 or sys.argv[2] != "--":
        sys.exit('usage: announce.py "What happens" -- COMMAND ARGUMENT ...')
    sys.exit(run(sys.argv[1], sys.argv[3:]))
