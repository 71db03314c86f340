"""A real server on loopback, in a thread of its own, and ways to talk to it."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import cache
from io import StringIO
from typing import Any

import httpx
from fastapi import APIRouter
from starlette.responses import StreamingResponse

import deepmnn
from deepmnn import LLM, SamplingParams
from deepmnn.cli.options import bundled
from deepmnn.serve.lifecycle import Ready
from deepmnn.serve.log import Log
from deepmnn.serve.options import ServeOptions
from deepmnn.serve.run import Server

KEY = "sk-test-0123456789"

router = APIRouter(include_in_schema=False)


@router.post("/test/stream")
async def stream(asked: dict[str, Any], service: Ready) -> StreamingResponse:
    """The least that a streaming endpoint is: a line of text for each chunk."""
    params = SamplingParams(max_tokens=asked["max_tokens"], n=asked.get("n", 1), ignore_eos=True)
    answer = await service.ask([{"role": "user", "content": "What is 2 + 2?"}], params)

    async def lines() -> AsyncIterator[bytes]:
        try:
            async for chunk in answer:
                yield json.dumps([len(chunk.ids), chunk.finish_reason]).encode() + b"\n"
                if asked.get("fails"):
                    raise ValueError("a bug")
        finally:
            answer.cancel()

    return StreamingResponse(lines())


@router.get("/test/bug")
async def bug() -> None:
    raise ValueError("the secret")


@cache
def tiny_r1() -> LLM:
    """The bundled model, loaded once; a token a step, so that tests can count them."""
    return deepmnn.load(bundled(), threads=1, max_sequences=4, speculate="off")


@contextmanager
def served(model: LLM | None = None, **options: Any) -> Iterator[Server]:
    """A server with this model; None leaves it loading. `server.log` has a `stream` to look at."""
    log = Log(StringIO())
    given = ServeOptions(**{"port": 0, **options})
    server = Server(given, "tiny-r1", log)
    server.app.include_router(router)
    with server:
        if model is not None:
            server.ready(model)
        yield server


def client(server: Server, key: str | None = None, **options: Any) -> httpx.Client:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return httpx.Client(
        base_url=server.url, headers=headers, timeout=30, trust_env=False, **options
    )


def connect(server: Server, sent: bytes = b"") -> socket.socket:
    """A connection, with bytes sent on it."""
    made = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    made.sendall(sent)
    return made


def received(connection: socket.socket) -> bytes:
    """Everything until the server closes, or resets, the connection."""
    parts = []
    try:
        while part := connection.recv(1 << 16):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def exchange(server: Server, sent: bytes) -> bytes:
    """What the server says to bytes before it closes the connection."""
    with connect(server, sent) as connection:
        return received(connection)


def request(line: str, *headers: str, body: bytes = b"") -> bytes:
    """A request of HTTP/1.1 after which the server closes."""
    head = [f"{line} HTTP/1.1", "Host: localhost", "Connection: close", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body
