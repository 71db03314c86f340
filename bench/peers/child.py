"""Runs a worker process for one request to one engine, and ends all that it started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]
LAST_WORDS = 300


@dataclass(frozen=True)
class Peer:
    """An engine: its module, the interpreter that has it, and the checkout that it needs."""

    name: str
    python: str
    source: Path | None = None


class ChildError(Exception):
    """A worker failed; the message says how, in one line."""


def call(
    peer: Peer,
    verb: str,
    request: dict[str, Any],
    timeout: float,
    log: Path | None,
    worker: str = "bench.peers.worker",
) -> Any:
    """The worker's answer. Raises ChildError.

    timeout: seconds, after which the worker and its children are killed. log: the file for what
    the worker prints. worker: its module.
    """
    text = json.dumps({"source": peer.source and str(peer.source), **request})
    command = [peer.python, "-m", worker, verb, peer.name, text]
    with open(log, "w+b") if log else tempfile.TemporaryFile() as errors:
        try:
            code, output = _run(command, timeout, errors)
        except OSError as error:
            raise ChildError(f"{peer.python}: {error.strerror}") from error
        except subprocess.TimeoutExpired:
            raise ChildError(f"no answer within {timeout:.0f} s") from None
        if code:
            errors.seek(0)
            raise ChildError(_reason(code, errors.read().decode(errors="replace")))
    try:
        return json.loads(output)
    except ValueError as error:
        raise ChildError(f"it answered {output[:80]!r}") from error


def _run(command: Sequence[str], timeout: float, errors: IO[bytes]) -> tuple[int, bytes]:
    """Exit code and output of a command in its own session; ends all processes of it."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors,
        start_new_session=True,
    )
    with process:
        try:
            output, _ = process.communicate(timeout=timeout)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, output


def _reason(code: int, printed: str) -> str:
    words = [line.strip() for line in printed.splitlines() if line.strip()]
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    if code == -signal.SIGKILL:
        how += " (out of memory?)"
    return f"{how}: {words[-1][-LAST_WORDS:]}" if words else how
