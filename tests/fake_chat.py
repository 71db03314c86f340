"""The chat page with a server behind it that answers from a script."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from deepmnn.serve.page import page_routes

Step = tuple[str, Any]
"""("reasoning" | "text", words), ("call", {index, name, arguments}), ("pause", seconds),
("break", None): the connection ends, ("fail", message): an error inside the stream,
("refuse", (status, message, headers)): instead of a stream, ("finish", reason)."""


class FakeChat:
    """Answers `/v1/models` and `/v1/chat/completions`.

    Attributes:
        answers: question → steps of its answers, one list after the other; the last repeats.
        key: what clients must send; None for nothing.
        asked: the bodies of all requests for answers.
        left: questions whose client went before the answer was whole.
    """

    def __init__(self) -> None:
        self.answers: dict[str, list[Sequence[Step]]] = {}
        self.key: str | None = None
        self.asked: list[dict[str, Any]] = []
        self.left: list[str] = []
        self.url = ""
        self.app = Starlette(
            routes=[
                *page_routes(),
                Route("/v1/models", self._models),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
            ]
        )

    def _refused(self, request: Request) -> Response | None:
        if self.key is None or request.headers.get("authorization") == f"Bearer {self.key}":
            return None
        return _error(401, "found no API key that is known")

    async def _models(self, request: Request) -> Response:
        models = [{"id": "tiny-r1", "object": "model"}]
        return self._refused(request) or JSONResponse({"object": "list", "data": models})

    async def _chat(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        body = json.loads(await request.body())
        self.asked.append(body)
        question = body["messages"][-1]["content"]
        scripts = self.answers[question]
        steps = scripts.pop(0) if len(scripts) > 1 else scripts[0]
        if steps[0][0] == "refuse":
            return _error(*steps[0][1])
        return StreamingResponse(self._stream(question, steps), media_type="text/event-stream")

    async def _stream(self, question: str, steps: Sequence[Step]) -> AsyncIterator[str]:
        whole, count, thought, finish = False, 0, 0, "stop"
        try:
            yield ": ping\n\n" + _event({"role": "assistant", "content": ""})
            for kind, value in steps:
                if kind == "pause":
                    await asyncio.sleep(value)
                elif kind == "break":
                    raise ConnectionError
                elif kind == "fail":
                    yield f"data: {json.dumps({'error': {'message': value}})}\n\n"
                    return
                elif kind == "finish":
                    finish = value
                elif kind == "call":
                    function = {"name": value["name"], "arguments": value["arguments"]}
                    call = {"index": value["index"], "function": function}
                    yield _event({"tool_calls": [call]})
                else:
                    pieces = [value[at : at + 4] for at in range(0, len(value), 4)]
                    count += len(pieces)
                    thought += len(pieces) * (kind == "reasoning")
                    name = "reasoning_content" if kind == "reasoning" else "content"
                    for piece in pieces:
                        yield _event({name: piece})
                        await asyncio.sleep(0)
            yield _event({}, finish)
            yield _usage(count, thought) + "data: [DONE]\n\n"
            whole = True
        finally:
            if not whole:
                self.left.append(question)


def _event(delta: dict[str, Any], finish: str | None = None) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return f"data: {json.dumps({'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n"


def _usage(count: int, thought: int) -> str:
    usage = {
        "prompt_tokens": 1234,
        "completion_tokens": count,
        "prompt_tokens_details": {"cached_tokens": 1024},
        "completion_tokens_details": {"reasoning_tokens": thought},
    }
    return f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n"


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": {"message": message}}, status, headers)


@contextmanager
def running(app: Any) -> Iterator[str]:
    """Runs an ASGI app on a free port of loopback; gives its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
