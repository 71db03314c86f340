"""One connection: HTTP/1.1 by h11, with limits on how long a client may take for anything.

uvicorn bounds the size of headers and the rest between two requests. What is added: a time for the
headers, a time for a client to read on, a limit on connections, and errors in the API's shape.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any, cast

import h11
from starlette.types import Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol
from uvicorn.server import ServerState

from deepmnn.serve.errors import RefusedError
from deepmnn.serve.options import ServeOptions

_MORE = 64
"""So many connections beyond the limit are told so; any others are closed."""


async def _busy(scope: Scope, receive: Receive, send: Send) -> None:
    refusal = RefusedError(
        503,
        "the server has as many connections as it takes; expected fewer. Try again.",
        headers={"Connection": "close"},
    )
    await refusal.response(scope)(scope, receive, send)


class Connection(H11Protocol):
    """A client's connection. options: of the server."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        options: ServeOptions,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._options = options
        self._headers_due: asyncio.TimerHandle | None = None
        self._reading_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has come."""
        super().connection_made(cast(asyncio.Transport, transport))
        excess = len(self.connections) - self._options.max_connections
        if excess > _MORE:
            return self.transport.abort()
        if excess > 0:
            self.app = _busy
        self._expect_headers()

    def data_received(self, data: bytes) -> None:
        """Bytes have come: of the next request's headers, of a body, or of one nobody reads."""
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._expect_headers()
        else:
            _cancel(self._headers_due)
            self._headers_due = None

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        _cancel(self._headers_due)
        _cancel(self._reading_due)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client reads more slowly than the model writes."""
        super().pause_writing()
        seconds = self._options.write_timeout
        self._reading_due = self.loop.call_later(seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """It has caught up."""
        _cancel(self._reading_due)
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP: says so where that is still possible, and ends the connection."""
        error = sys.exception()
        status: int = getattr(error, "error_status_hint", 400)  # 431: too long, 501: a coding
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            expected = f"headers of at most {self._options.max_header_bytes:,} bytes"
            refusal = RefusedError(
                status,
                f"the request cannot be read: {error}; expected "
                f"{expected if status == 431 else 'HTTP/1.1'}",
            )
            body = json.dumps(refusal.body({"type": "http", "path": ""})).encode()
            headers = [
                *self.server_state.default_headers,
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(body)),
                (b"connection", b"close"),
            ]
            reason = STATUS_PHRASES[status]
            response = h11.Response(status_code=status, headers=headers, reason=reason)
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        if self.cycle is not None:  # whoever answers a request whose body is broken
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()

    def _expect_headers(self) -> None:
        """From now on the client has a time to send a request's headers."""
        if self._headers_due is None:
            seconds = self._options.header_timeout
            self._headers_due = self.loop.call_later(seconds, self.transport.abort)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
