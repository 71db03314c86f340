"""tools/announce.py: progress of a command on a pipe; nothing of a failure is hidden."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "announce.py"
QUICK = f"""
import runpy, sys
sys.argv = ["announce.py", *sys.argv[1:]]
import time
source = open({str(TOOL)!r}).read().replace("EVERY = 5.0", "EVERY = 0.05")
exec(compile(source, "announce.py", "exec"))
"""


def announce(script: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", QUICK, "Doing it", "--", sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_it_says_what_begins_how_far_it_is_and_how_long_it_took() -> None:
    done = announce(
        "import time; print('[3/70] Building x.cc', flush=True); time.sleep(0.5)"
        "; print('WARNING: noise', flush=True); time.sleep(0.5)"
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0
    assert lines[0] == "== Doing it"
    assert lines[-1].startswith("   done in ")
    assert sum("[3/70] Building x.cc" in line for line in lines) > 3
    assert "noise" not in done.stdout


def test_a_failure_shows_everything_and_keeps_its_code() -> None:
    done = announce("import sys; print('first'); print('second', file=sys.stderr); sys.exit(7)")
    assert done.returncode == 7
    assert "first" in done.stdout
    assert "second" in done.stdout
    assert "== failed after" in done.stdout


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV"])
def test_a_killed_command(name: str) -> None:
    number = getattr(signal, name)
    assert announce(f"import os; os.kill(os.getpid(), {int(number)})").returncode == 128 + number


def test_odd_bytes_colours_and_carriage_returns() -> None:
    done = announce(
        "import os, time; os.write(1, b'\\xff\\x1b[31mred\\x1b[0m\\rover it'); time.sleep(0.5)"
    )
    assert done.returncode == 0
    assert "over it" in done.stdout
    assert "\x1b" not in done.stdout


def test_it_needs_a_title_and_a_command() -> None:
    for arguments in ([], ["title"], ["title", "x", "y"]):
        done = subprocess.run(
            [sys.executable, str(TOOL), *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert "usage" in done.stderr
