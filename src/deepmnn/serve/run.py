"""Running a server: a thread with an event loop that listens from the start, and its end.

with Server(options, name) as server:  # says "loading"
    server.ready(deepmnn.load(...))  # answers requests
    server.handle_signals()
    server.join()  # until a signal, and what runs has ended
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import gc
import logging
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import FrameType, TracebackType
from typing import Any, Self

import uvicorn

from deepmnn.api.llm import LLM
from deepmnn.engine.pace import Pace
from deepmnn.errors import RequestError, StorageError, argument
from deepmnn.serve.app import create_app
from deepmnn.serve.connection import Connection
from deepmnn.serve.lifecycle import Lifecycle
from deepmnn.serve.log import Log
from deepmnn.serve.options import ServeOptions
from deepmnn.serve.service import Service
from deepmnn.text.sampling_params import SamplingParams

_LAST_WORDS = 5
"""Seconds for clients to read the ends of answers that were cut short."""

_FIRST_TOKENS = 8
"""Of the answer that a model gives before it is served."""

_HEADERS = [
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
]
"""Of every answer."""


class Server:
    """Listens from the moment it is made; `with` runs it, and ends it at once when it is left.

    Args:
        options: how.
        name: of the model.
        log: where requests are written; None is standard error.

    Attributes:
        port: where it listens, also when the options said 0.
        status: of the process when the server has ended: 0 after draining, 128 + the number of a
            second signal.

    Raises RequestError or StorageError when it cannot listen there.
    """

    def __init__(self, options: ServeOptions, name: str, log: Log | None = None) -> None:
        self.options, self.name = options, name
        self.log = log or Log()
        self._lifecycle = Lifecycle(name)
        self.app = create_app(self._lifecycle, options, self.log)
        self._config = uvicorn.Config(
            self.app,
            http=partial(Connection, options=options),  # type: ignore[arg-type]
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            headers=_HEADERS,
            timeout_keep_alive=options.idle_timeout,
            timeout_graceful_shutdown=_LAST_WORDS,
            h11_max_incomplete_event_size=options.max_header_bytes,
            ssl_certfile=options.tls_cert,
            ssl_keyfile=options.tls_key,
        )
        logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # `log` says what there is to say
        self._load_tls()
        self._sockets = _listen(options)
        self.port: int = self._sockets[0].getsockname()[1]
        self.status = 0
        self._uvicorn = _Uvicorn(self._config, self._lifecycle)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="deepmnn-server", daemon=True)
        self._signalled = False
        self._handlers: dict[signal.Signals, Any] = {}

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._uvicorn.server_state.connections)

    @property
    def url(self) -> str:
        """What a client on this machine asks."""
        scheme = "https" if self.options.tls_cert else "http"
        host = self.options.host
        if host in ("0.0.0.0", "::", ""):
            host = "127.0.0.1"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        self._uvicorn.listening.wait()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()
        self.join()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        gc.unfreeze()  # what `_settle` froze: the interpreter's end looks through it, too

    def ready(self, model: LLM) -> None:
        """Answers with this model from now on."""
        stall = self.options.max_stall_ms
        service = Service(
            model,
            self.name,
            max_queue=self.options.max_queue,
            pace=Pace(None if stall is None else stall / 1000),
        )
        _settle(model)
        self._call(partial(self._lifecycle.ready, service))

    def drain(self) -> None:
        """Takes no more requests, and ends when those that run have ended, or time is up."""
        self.log.event("draining", seconds=self.options.drain_timeout)
        self._call(partial(self._lifecycle.drain, self.options.drain_timeout))

    def end(self) -> None:
        """Ends at once, whatever runs."""
        self._call(self._uvicorn.stop)

    def join(self) -> None:
        """Waits for the end."""
        self._thread.join()

    def handle_signals(self) -> None:
        """From now on SIGTERM and Ctrl-C drain; a second one ends at once. For the main thread."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._handlers[number] = signal.signal(number, self._signal)

    def _signal(self, number: int, frame: FrameType | None) -> None:
        if not self._signalled:
            self._signalled = True
            self.drain()
        else:
            self.status = 128 + number
            self.end()

    def _run(self) -> None:
        try:
            with asyncio.Runner() as runner:
                self._loop = runner.get_loop()
                runner.run(self._uvicorn.serve(self._sockets))
        finally:
            self._uvicorn.listening.set()
            if self._lifecycle.current is not None:
                self._lifecycle.current.close()

    def _call(self, work: Callable[[], None]) -> None:
        """Has the event loop do something; nothing happens when it has ended."""
        if self._loop is not None:
            with suppress(RuntimeError):  # closed
                self._loop.call_soon_threadsafe(work)

    def _load_tls(self) -> None:
        try:
            self._config.load()
        except OSError as error:  # ssl.SSLError is one
            raise RequestError(
                f"the TLS certificate or key cannot be used: {error}", "PEM files that fit"
            ) from None


class _Uvicorn(uvicorn.Server):
    """uvicorn's server, which ends when the lifecycle says so and handles no signals."""

    def __init__(self, config: uvicorn.Config, lifecycle: Lifecycle) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle
        self.listening = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens."""
        await super().startup(sockets)
        self.listening.set()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to end."""
        return await super().on_tick(counter) or self._lifecycle.drained()

    def stop(self) -> None:
        """Ends at once: connections are cut."""
        self.should_exit = self.force_exit = True
        if self._lifecycle.current is not None:
            self._lifecycle.current.cancel_all()
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def _settle(model: LLM) -> None:
    """Has the model read its files and weights, and lets go of what that took.

    The first answer also tells the engine's pace how long a step takes.
    What is there now stays: the garbage collector need not look through it again and again, for
    tenths of a second, while streams wait. And reading a large tokenizer takes 100 MB, which the C
    library would keep.
    """
    if model.has_tokenizer:
        model.end_ids  # noqa: B018
    model.generate([0], SamplingParams(max_tokens=_FIRST_TOKENS, ignore_eos=True))
    gc.collect()
    gc.freeze()
    with suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)


def _listen(options: ServeOptions) -> list[socket.socket]:
    """Sockets for every address that the host's name stands for. Raises as `Server` does."""
    host, port = options.host, options.port
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise RequestError(
            argument("host", f" is {host!r:.80}: {error}"), "an address of this machine"
        ) from None
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    for family, _, _, _, address in dict.fromkeys(found):
        chosen = port or (sockets[0].getsockname()[1] if sockets else 0)
        try:
            sockets.append(_bound(family, (address[0], chosen, *address[2:])))
        except OSError as error:
            missing = error
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                sockets = _closed(sockets)
                break
    if not sockets and missing is not None:
        raise _refused(missing, options) from None
    return sockets


def _bound(family: int, address: tuple[Any, ...]) -> socket.socket:
    """A socket that listens. Raises OSError."""
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)
        made.listen(1024)
    except OSError:
        made.close()
        raise
    return made


def _closed(sockets: list[socket.socket]) -> list[socket.socket]:
    for each in sockets:
        each.close()
    return []


def _refused(error: OSError, options: ServeOptions) -> RequestError | StorageError:
    """Why it cannot listen, and what to do."""
    where = f"{options.host} port {options.port}"
    if error.errno == errno.EADDRINUSE:
        return RequestError(
            f"{where} is in use: another program listens there",
            "a free port",
            argument("port", " takes another one; 0 finds a free one."),
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return StorageError(
            f"{where} may not be listened on: {error.strerror}",
            "a port that this user may use",
            argument("port", " takes another one, from 1024 on."),
        )
    return RequestError(
        f"{where} cannot be listened on: {error.strerror}", "an address of this machine"
    )
