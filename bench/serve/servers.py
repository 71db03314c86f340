"""The servers: how each is made, started and stopped."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from types import TracebackType
from typing import Protocol
from urllib.error import URLError
from urllib.request import urlopen

from bench.peers.child import ROOT, ChildError
from bench.peers.engine import commit
from bench.peers.worker import read_files
from bench.serve.loads import Target

KV_DTYPE = "int8"
"""deepmnn's cache, as in bench.peers."""

PAGE = 256
"""llama.cpp rounds each slot's context to this."""

MODEL = "bench"
"""What clients call the model."""


@dataclass(frozen=True)
class Room:
    """What a server must hold: `sequences` together, of at most `tokens` each."""

    sequences: int
    tokens: int

    @property
    def rows(self) -> int:
        """Of the KV cache, in all."""
        return self.sequences * -(-self.tokens // PAGE) * PAGE


class Command(Protocol):
    """What starts a server."""

    def __call__(
        self, model: Path, port: int, room: Room, threads: int, source: Path | None
    ) -> list[str]:
        """source: the checkout of a peer."""


@dataclass(frozen=True)
class Kind:
    """A server. `builder` makes its model (bench.peers.models)."""

    name: str
    title: str
    settings: str
    builder: str
    command: Command


def _deepmnn(model: Path, port: int, room: Room, threads: int, source: Path | None) -> list[str]:
    command = [sys.executable, "-m", "deepmnn", "serve", str(model), "--port", str(port)]
    command += ["--model-name", MODEL, "--threads", str(threads), "--kv-dtype", KV_DTYPE]
    command += ["--cache-tokens", str(room.rows), "--max-sequences", str(room.sequences)]
    return command


def _llama(model: Path, port: int, room: Room, threads: int, source: Path | None) -> list[str]:
    if source is None:
        raise ChildError("its checkout is missing: --source, see bench/README.md")
    binary = source / "build" / "bin" / "llama-server"
    command = [str(binary), "-m", str(model), "--host", "127.0.0.1", "--port", str(port)]
    command += ["-t", str(threads), "-np", str(room.sequences), "-c", str(room.rows)]
    return [*command, "-fa", "on"]


def _ik_llama(model: Path, port: int, room: Room, threads: int, source: Path | None) -> list[str]:
    return [*_llama(model, port, room, threads, source), "-rtr"]


GGUF = "bench.serve.served_gguf"
KINDS = (
    Kind(
        "deepmnn",
        "deepmnn serve",
        f"w4, lm_head too; KV cache {KV_DTYPE}",
        "bench.serve.served_model",
        _deepmnn,
    ),
    Kind(
        "ik_llama",
        "llama-server of ik_llama.cpp",
        "Q4_0, run-time repack; flash attention, KV cache f16",
        GGUF,
        _ik_llama,
    ),
    Kind(
        "llama_cpp",
        "llama-server of llama.cpp",
        "Q4_0, repacked at load; flash attention, KV cache f16",
        GGUF,
        _llama,
    ),
)


def version(kind: Kind, source: Path | None) -> str:
    """For the report."""
    return commit(source or Path(__file__).parent) or "unknown version"


class Running:
    """A server on a free port of this machine, from its first good answer to its end.

    log: the file for what it prints. seconds: how long it may take to start. place: its working
    directory, where llama-server leaves a log of its own.

    Raises ChildError when it ends, or does not get ready.
    """

    def __init__(
        self, command: Callable[[int], list[str]], log: Path, seconds: float, place: Path = ROOT
    ) -> None:
        self._command, self._log, self._seconds, self._place = command, log, seconds, place

    def __enter__(self) -> Running:
        port = free_port()
        self.target = Target(port, MODEL)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command(port),
                cwd=self._place,
                env=os.environ | {"HF_HUB_OFFLINE": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait(f"http://127.0.0.1:{port}/health")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._process.pid

    def _wait(self, url: str) -> None:
        end = monotonic() + self._seconds
        while monotonic() < end:
            if self._process.poll() is not None:
                words = self._log.read_text(errors="replace").strip().splitlines() or [""]
                raise ChildError(f"it ended with {self._process.returncode}: {words[-1][-300:]}")
            try:
                with urlopen(url, timeout=5) as answer:
                    if answer.status == 200:
                        return
            except (URLError, OSError):
                pass
            sleep(0.1)
        raise ChildError(f"it was not ready within {self._seconds:.0f} s")

    def _end(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def start(
    kind: Kind,
    model: Path,
    room: Room,
    threads: int,
    source: Path | None,
    log: Path,
    seconds: float = 300,
) -> Running:
    """A server of that kind. Its files are read first, so that it does not wait for the disk."""
    read_files(model)
    command = partial(kind.command, model, room=room, threads=threads, source=source)
    return Running(command, log, seconds, log.parent)


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
