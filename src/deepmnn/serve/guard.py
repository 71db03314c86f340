"""What a request must be before anything reads it: from here, with the key, JSON, of bounded size.

A middleware of plain ASGI. The body is read here, within a time and a size, and checked to be JSON:
what stands behind it gets the whole of it at once.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Iterable

from pydantic_core import from_json
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deepmnn.serve.errors import RefusedError
from deepmnn.serve.log import current
from deepmnn.serve.options import ServeOptions

Headers = Iterable[tuple[bytes, bytes]]


class Guard:
    """Lets requests through to `app` that may be answered, and refuses the others.

    open_paths: what everybody may read without a key, because nothing there is secret.
    """

    def __init__(self, app: ASGIApp, options: ServeOptions, open_paths: Iterable[str]) -> None:
        self._app = app
        self._options = options
        self._key = None if options.api_key is None else options.api_key.encode()
        self._names = options.host_names
        self._open = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request of ASGI."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        try:
            self._check_size(scope)
            self._check_host(scope["headers"])
            if scope["path"] not in self._open:
                self._check_key(scope["headers"])
            if _has_body(scope["headers"]):
                _check_type(scope["headers"])
                body = await self._read(scope["headers"], receive)
                if body is None:
                    return None  # the client has gone
                asked = _read_json(body)
                record = current.get()
                if self._options.log_prompts and record is not None:
                    record.body = asked
                receive = _again(body, receive)
        except RefusedError as refusal:
            return await refusal.response(scope)(scope, receive, send)
        return await self._app(scope, receive, send)

    def _check_size(self, scope: Scope) -> None:
        """Raises RefusedError for headers that are too long; h11 counts unfinished ones only."""
        size = len(scope["raw_path"]) + len(scope["query_string"])
        size += sum(len(name) + len(value) for name, value in scope["headers"])
        if size > self._options.max_header_bytes:
            most = f"{self._options.max_header_bytes:,}"
            raise RefusedError(431, f"the headers have {size:,} bytes; expected at most {most}")

    def _check_host(self, headers: Headers) -> None:
        """Raises RefusedError for a name that only the page of a stranger would use."""
        if not self._names:
            return
        name = _host_name(_header(headers, b"host"))
        if name is not None and name not in self._names:
            raise RefusedError(
                403,
                f"the Host header says {name[:80]!r}; expected a name of this machine. "
                "The server's option allowed_hosts adds one.",
            )

    def _check_key(self, headers: Headers) -> None:
        """Raises RefusedError unless the request has the key, in one header or the other."""
        if self._key is None:
            return
        scheme, _, bearer = (_header(headers, b"authorization") or b"").partition(b" ")
        given = [bearer.strip() if scheme.lower() == b"bearer" else b""]
        given.append(_header(headers, b"x-api-key") or b"")
        if not any(hmac.compare_digest(each, self._key) for each in given):
            found = "a wrong API key" if any(given) else "no API key"
            raise RefusedError(
                401,
                f"the request has {found}; expected the server's, as Authorization: Bearer KEY "
                "or x-api-key: KEY",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def _read(self, headers: Headers, receive: Receive) -> bytes | None:
        """The body; None when the client has gone. Raises RefusedError."""
        limit, seconds = self._options.max_body_bytes, self._options.body_timeout
        too_long = RefusedError(413, f"the body is too long; expected at most {limit:,} bytes")
        if (said := _header(headers, b"content-length")) and int(said) > limit:
            raise too_long  # h11 has made sure that it is a number
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(seconds):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        return None
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > limit:
                        raise too_long
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise RefusedError(
                408,
                f"the body has not come within {seconds} s; expected all of it by then",
                headers={"Connection": "close"},
            ) from None


def _header(headers: Headers, wanted: bytes) -> bytes | None:
    """The first header of that name, in lower case."""
    return next((value for name, value in headers if name == wanted), None)


def _host_name(host: bytes | None) -> str | None:
    """The name in a Host header, in lower case and without its port and brackets."""
    if host is None:  # of HTTP/1.0, which no browser speaks
        return None
    text = host.decode("latin-1").strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0]


def _has_body(headers: Headers) -> bool:
    length = _header(headers, b"content-length")
    return length not in (None, b"0") or _header(headers, b"transfer-encoding") is not None


def _check_type(headers: Headers) -> None:
    """Raises RefusedError unless the body is said to be JSON, which no form can say."""
    given = (_header(headers, b"content-type") or b"").decode("latin-1")
    kind = given.partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RefusedError(
            415,
            f"the Content-Type is {given[:80]!r}; expected application/json",
            headers={"Accept": "application/json"},
        )


def _read_json(body: bytes) -> object:
    """What a body says. Raises RefusedError unless it is JSON in UTF-8, at most 200 levels deep.

    pydantic's parser also refuses what would fail later: halves of surrogate pairs, and numbers of
    thousands of digits.
    """
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise RefusedError(
            400, f"the body cannot be read: {error}; expected JSON in UTF-8"
        ) from None


def _again(body: bytes, receive: Receive) -> Receive:
    """Gives the body that was read; afterwards what comes next."""
    pending = [body]

    async def received() -> Message:
        if pending:
            return {"type": "http.request", "body": pending.pop(), "more_body": False}
        return await receive()

    return received
