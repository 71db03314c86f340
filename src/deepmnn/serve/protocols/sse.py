"""Answers over HTTP: as server-sent events while they grow, or whole as JSON.

Either way a client that leaves ends its answer before the engine's next step.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from secrets import token_hex
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from deepmnn.engine.completion import Chunk
from deepmnn.errors import DeepmnnError
from deepmnn.serve.errors import RefusedError
from deepmnn.serve.service import Answer

PING_SECONDS = 15.0
"""So long a stream is silent at most: a prefill may take minutes, and proxies give up before."""

_ENDING = "the server is shutting down; this answer was cut. Ask again later."
_FAILED = "the server failed; its log says why"

STREAMED: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/json": {}, "text/event-stream": {}}}
}
"""An answer of either kind, as FastAPI documents it."""

encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
"""JSON text of a value; of a string, quickly."""


def new_id(prefix: str) -> str:
    """A name that no other answer, item or call has."""
    return prefix + token_hex(12)


class Whole(Protocol):
    """Collects an answer that is sent as one JSON object."""

    def add(self, chunk: Chunk) -> None:
        """Takes the next chunk."""

    def body(self) -> dict[str, Any]:
        """The object, when the last chunk has come."""


class Events(Protocol):
    """Writes an answer as events while it grows; all that it returns is text to send."""

    def begin(self) -> str:
        """The events before the first chunk."""

    def ping(self) -> str:
        """What is sent while there is nothing to say."""

    def chunk(self, chunk: Chunk) -> str:
        """The events of the next chunk."""

    def end(self) -> str:
        """Those after the last chunk."""

    def error(self, body: dict[str, Any]) -> str:
        """Those that end the stream instead; body: of an answer that tells of the error."""


async def respond(request: Request, answer: Answer, collected: Whole) -> Response:
    """The response to a request that does not stream. Raises what ended the answer."""
    async with _watched(request.receive, answer) as client:
        while not client.gone and (chunks := await answer.some()):
            for chunk in chunks:
                client.check(chunk)
                collected.add(chunk)
    if client.gone:
        return Response(status_code=499)  # nobody reads it
    # On another thread: with log probabilities it may take seconds.
    text = await asyncio.to_thread(lambda: encode(collected.body()))
    return Response(text, media_type="application/json")


class EventStream(Response):
    """The response to a request that streams."""

    media_type = "text/event-stream"

    def __init__(self, answer: Answer, events: Events) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._answer, self._events = answer, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events as they come; chunks that wait already go out together."""
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        async with _watched(receive, self._answer) as client:
            await send(start)
            async for text in self._texts(scope, client):
                body = text.encode()
                await send({"type": "http.response.body", "body": body, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

    async def _texts(self, scope: Scope, client: _Client) -> AsyncIterator[str]:
        """What is to be sent, to the end or to an error."""
        try:
            if text := self._events.begin():
                yield text
            while True:
                try:
                    async with asyncio.timeout(PING_SECONDS):
                        chunks = await self._answer.some()
                except TimeoutError:
                    yield self._events.ping()
                    continue
                if client.gone:
                    return
                if not chunks:
                    break
                if text := "".join([self._text(client, chunk) for chunk in chunks]):
                    yield text
            yield self._events.end()
        except RefusedError as refusal:
            yield self._events.error(refusal.body(scope))
        except DeepmnnError as error:
            yield self._events.error(RefusedError.of(error).body(scope))
        except Exception:
            yield self._events.error(RefusedError(500, _FAILED).body(scope))
            raise  # for the log

    def _text(self, client: _Client, chunk: Chunk) -> str:
        client.check(chunk)
        return self._events.chunk(chunk)


@dataclass
class _Client:
    """gone: whether it has left."""

    gone: bool = False

    def check(self, chunk: Chunk) -> None:
        """Raises RefusedError when the server has ended the answer."""
        if chunk.finish_reason == "cancelled" and not self.gone:
            raise RefusedError(503, _ENDING)


@asynccontextmanager
async def _watched(receive: Receive, answer: Answer) -> AsyncIterator[_Client]:
    """Ends the answer when the client leaves, and in any case at the end."""
    client = _Client()

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        client.gone = True
        answer.cancel()

    watching = asyncio.create_task(watch())
    try:
        yield client
    finally:
        watching.cancel()
        answer.cancel()
