"""A server makes no connection to anywhere: not while it loads, answers, or ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CHILD = Path(__file__).with_name("watched_child.py")


def run(what: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(CHILD), what], capture_output=True, text=True)


def test_the_watch_sees_connections_and_lookups() -> None:
    for attempt in ("connect", "lookup", "send"):
        done = run(attempt)
        assert done.returncode == 1, attempt
        assert "RuntimeError: forbidden" in done.stderr


def test_a_server_makes_none() -> None:
    done = run("serve")
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
