"""Runs a function on files from strangers in a process of its own, with limits.

What a stranger's program (a chat template) does cannot be foreseen: it may loop, fill the memory,
or crash the interpreter. In a process of its own it can do none of that to this one.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import selectors
import signal
import struct
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

CPU_SECONDS = 5
"""Processor time of one call: a template of a published model takes milliseconds."""

MEMORY_BYTES = 512 << 20
"""Address space of the process; the interpreter takes 60 MB of it."""

_ANSWER_BYTES = 64 << 20
_WALL_SECONDS = 60.0
"""For a process that sleeps, or gets no processor."""

_NO_MEMORY = 3
"""Exit status of a process that met MemoryError."""

_HEADER = struct.Struct("<Q")


class LimitError(Exception):
    """The call took more than it may, or ended the process; the message says which."""


class LimitedProcess:
    """Calls `module.function(request) -> answer` in another process; both are plain JSON values.

    The process starts with the first call and serves one call at a time, from any thread. It ends
    with this object, and with a call that breaks a limit; the next call starts another. After a
    fork, parent and child have a process each.
    """

    def __init__(self, module: str, function: str) -> None:
        self._target = (module, function)
        self._servers: dict[int, _Server] = {}

    def call(self, request: Any) -> Any:
        """The answer. Raises LimitError; TypeError or ValueError for what JSON cannot say."""
        sent = json.dumps(request).encode()
        server = self._servers.setdefault(os.getpid(), _Server(self._target))
        answer = server.exchange(sent)
        try:
            return json.loads(answer)
        except (ValueError, RecursionError):
            raise LimitError("gives no answer") from None


class _Server:
    """The process of one owner. It is started under the lock, so an unused one costs nothing."""

    def __init__(self, target: tuple[str, str]) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._stop: weakref.finalize[Any, Any] | None = None

    def exchange(self, sent: bytes) -> bytes:
        with self._lock:
            try:
                return self._exchange(sent)
            except BaseException:  # Ctrl-C too: an answer that nobody reads must not be the next
                self._end()
                raise

    def _exchange(self, sent: bytes) -> bytes:
        process = self._process or self._start()
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None
        deadline = time.monotonic() + _WALL_SECONDS
        try:
            stdin.write(_HEADER.pack(len(sent)) + sent)
            stdin.flush()
            (length,) = _HEADER.unpack(_read(stdout.fileno(), _HEADER.size, deadline))
            if length > _ANSWER_BYTES:
                raise LimitError(f"makes more than {_ANSWER_BYTES >> 20} MB of text")
            return _read(stdout.fileno(), length, deadline)
        except (BrokenPipeError, EOFError):
            raise LimitError(_cause(process.wait())) from None

    def _start(self) -> subprocess.Popen[bytes]:
        module, function = self._target
        here = str(Path(__file__).parents[2])
        path = os.pathsep.join([here, *filter(None, sys.path)])
        serve = f"from {__name__} import serve; serve({module!r}, {function!r})"
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-P", "-c", serve],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
            start_new_session=True,  # Ctrl-C in the terminal is not for it
        )
        self._stop = weakref.finalize(self, _stop, self._process, os.getpid())
        return self._process

    def _end(self) -> None:
        if self._stop is not None:
            self._stop()
        self._process = self._stop = None


def serve(module: str, function: str) -> None:
    """The process's main loop: length and JSON on stdin, length and JSON on stdout."""
    import resource

    called = getattr(importlib.import_module(module), function)
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    _limit(resource.RLIMIT_AS, MEMORY_BYTES)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)
    while len(header := requests.read(_HEADER.size)) == _HEADER.size:
        (length,) = _HEADER.unpack(header)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        _limit(resource.RLIMIT_CPU, int(usage.ru_utime + usage.ru_stime) + CPU_SECONDS + 1)
        try:
            answer = json.dumps(called(json.loads(requests.read(length)))).encode()
        except MemoryError:
            os._exit(_NO_MEMORY)
        answers.write(_HEADER.pack(len(answer)) + answer)
        answers.flush()


def _limit(which: int, most: int) -> None:
    """Lowers a limit of this process."""
    import resource

    _, hard = resource.getrlimit(which)
    soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(which, (soft, hard))


def _read(descriptor: int, length: int, deadline: float) -> bytes:
    """Raises EOFError at the end of the pipe, LimitError at the deadline."""
    data = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while len(data) < length:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise LimitError(f"takes more than {_WALL_SECONDS:.0f} seconds")
            piece = os.read(descriptor, length - len(data))
            if not piece:
                raise EOFError
            data += piece
    return bytes(data)


def _cause(status: int) -> str:
    if status == -signal.SIGXCPU:
        return f"takes more than {CPU_SECONDS} seconds of processor time"
    if status < 0:
        return f"crashes its process ({signal.Signals(-status).name})"
    if status == _NO_MEMORY:
        return f"needs more than {MEMORY_BYTES >> 20} MB"
    return f"ends its process with status {status}"


def _stop(process: subprocess.Popen[bytes], owner: int) -> None:
    """Ends the process, unless it is that of a parent from which this process was forked."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # what was not sent stays unsent
                pipe.close()
    if os.getpid() == owner:
        process.kill()
        process.wait()
    else:
        process.returncode = 0  # not ours to wait for
