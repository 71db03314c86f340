"""Converting, exporting and running open no socket and start no process, in Python or in C++.

Chat templates alone have one: `text/limited_process.py`.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

CHILD = Path(__file__).with_name("locked_child.py")
NOT_HERE = 77


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CHILD), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("attempt", ["socket", "process", "system"])
def test_python_cannot(attempt: str) -> None:
    done = run(attempt)
    assert done.returncode == 1
    assert "RuntimeError: forbidden" in done.stderr


@pytest.mark.parametrize("attempt", ["native-socket", "native-process"])
def test_native_code_cannot(attempt: str) -> None:
    status = run(attempt).returncode
    if status == NOT_HERE:
        pytest.skip("no seccomp here")
    assert status == -signal.SIGSYS


def test_a_conversion_an_export_and_a_run_need_neither(tmp_path: Path) -> None:
    done = run("work", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
