"""A client that disturbs the servers little: HTTP/1.1 by hand, bytes kept and read afterwards.

While a load runs, it stores what arrives with the time of arrival and nothing else. `Exchange.read`
takes it apart when the load is over.
"""

from __future__ import annotations

import asyncio
import json
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from time import perf_counter
from typing import Any

Json = dict[str, Any]
CHUNKED = b"transfer-encoding: chunked"
LAST = b"0\r\n\r\n"
"""The chunk that ends a body."""


@dataclass(frozen=True)
class Reply:
    """What a streamed answer was.

    Attributes:
        status: HTTP's.
        times: seconds (of perf_counter) at which an event with text arrived, in order.
        text: of all events.
        usage: what the server counted.
        error: why it is no whole answer; "" if it is.
    """

    status: int
    times: list[float] = field(default_factory=list)
    text: str = ""
    usage: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""

    @property
    def tokens(self) -> int:
        """Generated tokens."""
        return int(self.usage.get("completion_tokens", len(self.times)))


class Exchange(asyncio.Protocol):
    """One request on a connection of its own, and what comes back.

    Attributes:
        sent, closed: seconds (of perf_counter); 0 before that.
        first: when the first event arrived; 0 before that.
        began: done with the first event, or at the end.
        ended: done when the connection is closed.
    """

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._arrivals: list[tuple[float, bytes]] = []
        self._transport: asyncio.Transport | None = None
        loop = asyncio.get_running_loop()
        self.began: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()
        self.sent = self.first = self.closed = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport, self.sent = transport, perf_counter()
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = perf_counter()
        self._arrivals.append((now, data))
        if not self.first and b"data: " in data:
            self.first = now
            self._set(self.began)
        if data == LAST or data.endswith(b"\r\n" + LAST):
            self.abandon()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = self.closed or perf_counter()
        self._set(self.began)
        self._set(self.ended)

    def abandon(self) -> None:
        """Closes the connection, at any moment."""
        if self._transport is not None:
            self._transport.abort()

    @staticmethod
    def _set(future: asyncio.Future[None]) -> None:
        if not future.done():
            future.set_result(None)

    def read(self) -> Reply:
        """The reply, of what has arrived so far."""
        data = b"".join(piece for _, piece in self._arrivals)
        ends = list(accumulate(len(piece) for _, piece in self._arrivals))
        head, found, _ = data.partition(b"\r\n\r\n")
        if not found:
            return Reply(0, error="no answer")
        status, begin = int(head.split(b" ", 2)[1]), len(head) + 4
        chunked = CHUNKED in head.lower()
        pieces = _chunks(data, begin) if chunked else [(begin, data[begin:])]
        if status != 200:
            body = b"".join(piece for _, piece in pieces)
            return Reply(status, error=body.decode(errors="replace")[:300])
        return self._events(pieces, ends)

    def _events(self, pieces: list[tuple[int, bytes]], ends: list[int]) -> Reply:
        """The events: one is known when the last byte of its line has arrived."""
        times, texts, usage, done, rest = [], [], {}, False, b""
        for at, piece in pieces:
            *lines, rest = (rest + piece).split(b"\n")
            moment = self._arrivals[min(bisect_left(ends, at + 1), len(ends) - 1)][0]
            for line in lines:
                if not line.startswith(b"data: "):
                    continue
                if line[6:12] == b"[DONE]":
                    done = True
                    continue
                event = json.loads(line[6:])
                usage = event.get("usage") or usage
                if text := _text(event):
                    times.append(moment)
                    texts.append(text)
        return Reply(200, times, "".join(texts), usage, "" if done else "it ended early")


def _chunks(data: bytes, at: int) -> list[tuple[int, bytes]]:
    """(place of its last byte, chunk) of a body in chunked coding, as far as it has arrived."""
    found = []
    while (line := data.find(b"\r\n", at)) >= 0:
        size = int(data[at:line].split(b";")[0], 16)
        begin, end = line + 2, line + 2 + size
        if not size or end > len(data):
            break
        found.append((end - 1, data[begin:end]))
        at = end + 2
    return found


def _text(event: Json) -> str:
    """What an event of either completions endpoint adds, reasoning first."""
    if not event.get("choices"):
        return ""
    choice = event["choices"][0]
    delta = choice.get("delta") or {}
    parts = (choice.get("text"), delta.get("reasoning_content"), delta.get("content"))
    return "".join(part for part in parts if part)


async def post(port: int, path: str, body: Mapping[str, Any]) -> Exchange:
    """Sends a request to a server of this machine; the answer comes later."""
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    )
    loop = asyncio.get_running_loop()
    _, exchange = await loop.create_connection(
        lambda: Exchange(head.encode() + content), "127.0.0.1", port
    )
    return exchange
