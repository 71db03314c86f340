"""The log: a line for each request on standard error, JSON or, on a terminal, for people.

It says who asked for what and how it ended. What was asked and answered is in it only where
`log_prompts` is set.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Any, TextIO

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deepmnn.serve.errors import RefusedError

_ID_HEADERS = (b"x-request-id", b"request-id")
"""Where OpenAI's and Anthropic's clients look for a request's name."""

_ASKED_OFTEN = ("/health", "/metrics")
"""What programs look at every few seconds: no lines for that."""


@dataclass(slots=True)
class Record:
    """What the log says of one request: the guard and the metrics fill in what they see.

    Attributes:
        id: what the client is told that the request is called.
        method, path: of HTTP; the path as it was sent, percent-encoded.
        client: its address.
        status: of the answer.
        error: why it is an error: a word for programs, and the field of the request.
        left: whether the client left before the end of the answer.
        seconds: until the answer was complete.
        first_seconds: until the first token, from when the prompt was tokenised.
        prompt_tokens, cached_tokens, completion_tokens, drafted_tokens, accepted_tokens: as `Chunk`
            has them, of all answers.
        finish_reasons: of each answer that has ended.
        body: what was asked, when the server logs that.
    """

    method: str
    path: str
    client: str = ""
    id: str = field(default_factory=lambda: f"req_{token_hex(12)}")
    status: int | None = None
    error: str | None = None
    left: bool = False
    seconds: float = 0.0
    first_seconds: float | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    finish_reasons: list[str] = field(default_factory=list)
    body: Any = None

    def facts(self) -> dict[str, Any]:
        """What is known, by name."""
        known = {name: getattr(self, name) for name in self.__slots__}
        return {name: value for name, value in known.items() if value not in (None, [], "", 0)}


current: ContextVar[Record | None] = ContextVar("record", default=None)
"""Of the request that is being answered."""


class Log:
    """Writes lines.

    Args:
        stream: where; None is standard error.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = sys.stderr if stream is None else stream
        self._people = self.stream.isatty()

    def request(self, record: Record) -> None:
        """How a request ended."""
        facts = record.facts()
        if not self._people:
            return self._write(facts)
        tokens = ""
        if record.prompt_tokens:
            tokens = f"{record.prompt_tokens} + {record.completion_tokens} tokens"
        said = [
            record.method,
            record.path,
            str(record.status or ""),
            record.error or "",
            "left" if record.left else "",
            f"{record.seconds:.2f} s",
            tokens,
            " ".join(record.finish_reasons),
            record.id,
        ]
        if record.body is not None:
            said.append(json.dumps(record.body))
        self._print("  ".join(part for part in said if part))

    def event(self, text: str, **facts: Any) -> None:
        """Something about the server itself."""
        if self._people:
            self._print("  ".join([text, *map(str, facts.values())]))
        else:
            self._write({"event": text, **facts})

    def error(self, record: Record, error: BaseException) -> None:
        """A bug of ours, or a disk that failed: with where it happened."""
        trace = "".join(traceback.format_exception(error))
        if self._people:
            self._print(f"error in {record.id}")
            for line in trace.splitlines():
                self._print(line)
        else:
            self._write({"event": "error", "id": record.id, "trace": trace})

    def _write(self, facts: dict[str, Any]) -> None:
        rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in facts.items()}
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._out(json.dumps({"time": now, **rounded}, default=str))

    def _print(self, text: str) -> None:
        shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
        self._out(f"{time.strftime('%H:%M:%S')}  {shown}")

    def _out(self, line: str) -> None:
        with suppress(OSError):  # a full disk, or nobody reads the pipe: answers matter more
            print(line.replace("\x7f", "\\u007f"), file=self.stream, flush=True)


class Logged:
    """Gives each request a `Record` (in `scope["state"]`) and a line in the log.

    responded: called with the status of each response.

    An exception that nobody expected becomes status 500; only the log says what it was.
    """

    def __init__(self, app: ASGIApp, log: Log, responded: Callable[[int], object]) -> None:
        self._app, self._log, self._responded = app, log, responded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request of ASGI."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        path = scope.get("raw_path", b"").decode("ascii", "backslashreplace")
        client = scope.get("client") or ("",)
        record = Record(scope["method"], path[:200], client[0])
        current.set(record)
        scope.setdefault("state", {})["record"] = record
        names = [(name, record.id.encode()) for name in _ID_HEADERS]
        begun = time.perf_counter()
        complete = False

        async def got() -> Message:
            message = await receive()
            record.left |= message["type"] == "http.disconnect" and not complete
            return message

        async def sent(message: Message) -> None:
            nonlocal complete
            if message["type"] == "http.response.body":
                complete = not message.get("more_body")
            elif message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message.get("headers", ()), *names]
            await send(message)

        try:
            await self._app(scope, got, sent)
        except Exception as error:
            self._log.error(record, error)
            if record.status is not None:
                raise  # in the middle of an answer: the connection ends
            refusal = RefusedError(500, "the server failed; its log says why")
            await refusal.response(scope)(scope, receive, sent)
        finally:
            record.seconds = time.perf_counter() - begun
            if record.status is not None:
                self._responded(record.status)
            if scope["path"] not in _ASKED_OFTEN:
                self._log.request(record)
