"""What a client is told when its request cannot be answered, in the shape of the API it speaks.

    OpenAI's, everywhere but under /v1/messages:
        {"error": {"message": ..., "type": ..., "param": ..., "code": ...}}
    Anthropic's, there:
        {"type": "error", "error": {"type": ..., "message": ...}, "request_id": ...}

The message is that of deepmnn's errors: what was found, what was expected, what to do next.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import Scope

from deepmnn.errors import (
    ContextLengthError,
    DeepmnnError,
    MissingDependencyError,
    OverloadedError,
    RequestError,
    TokenizerError,
    shown,
)
from deepmnn.serve.body import wrong_field

RETRY_AFTER = {"Retry-After": "2"}
"""Seconds; clients wait longer with each attempt."""


class ErrorFacts(BaseModel):
    """OpenAI's error: what is wrong, its kind, the field that is meant, a word for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(BaseModel):
    """The body of an answer that tells of an error, as OpenAI's API gives it."""

    error: ErrorFacts


class AnthropicErrorFacts(BaseModel):
    """Anthropic's error: its kind, and what is wrong."""

    type: str
    message: str


class AnthropicError(BaseModel):
    """The body of an answer that tells of an error, as Anthropic's API gives it."""

    type: Literal["error"]
    error: AnthropicErrorFacts
    request_id: str | None


def documented(body: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The errors of an endpoint as FastAPI documents them."""
    return {"4XX": {"model": body}, "5XX": {"model": body}}


OPENAI_ERRORS = documented(OpenAIError)
ANTHROPIC_ERRORS = documented(AnthropicError)

_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_OPENAI_TYPES = {429: "rate_limit_error"}
_OPENAI_CODES = {401: "invalid_api_key", 429: "rate_limit_exceeded", 503: "unavailable"}


class RefusedError(Exception):
    """A request that is answered with an error, whatever it asks.

    Args:
        status: of HTTP.
        message: what was found, expected, and what to do next.
        code, param: as `ErrorFacts` has them; code None is that of the status.
        headers: more of them.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})
        if status in (429, 503):
            self.headers = RETRY_AFTER | self.headers

    @classmethod
    def of(cls, error: DeepmnnError) -> RefusedError:
        """What a client is told of one of deepmnn's errors."""
        message = str(error)
        if isinstance(error, OverloadedError):
            return cls(429, message)
        if isinstance(error, ContextLengthError):
            return cls(400, message, code="context_length_exceeded")
        if isinstance(error, RequestError | TokenizerError):
            return cls(400, message)
        if isinstance(error, MissingDependencyError):
            return cls(501, message, headers={"x-should-retry": "false"})
        return cls(500, "the server could not answer; its log says why")

    def body(self, scope: Scope) -> dict[str, Any]:
        """The JSON of the answer to a request, which is also the data of an error's event."""
        if speaks_anthropic(scope):
            usual = "invalid_request_error" if self.status < 500 else "api_error"
            kind = _ANTHROPIC_TYPES.get(self.status, usual)
            told = {"type": kind, "message": self.message}
            return {"type": "error", "error": told, "request_id": request_id(scope)}
        usual = "invalid_request_error" if self.status < 500 else "server_error"
        return {
            "error": {
                "message": self.message,
                "type": _OPENAI_TYPES.get(self.status, usual),
                "param": self.param,
                "code": self.code or _OPENAI_CODES.get(self.status),
            }
        }

    def response(self, scope: Scope) -> JSONResponse:
        """The answer to a request; the log gets its code and the field that is meant."""
        record = scope.get("state", {}).get("record")
        if record is not None:
            code = self.code or _OPENAI_CODES.get(self.status)
            record.error = " ".join(filter(None, (code, self.param))) or None
        return JSONResponse(self.body(scope), self.status, self.headers)


def speaks_anthropic(scope: Scope) -> bool:
    """Whether a request is for Anthropic's API."""
    path: str = scope["path"]
    return path == "/v1/messages" or path.startswith("/v1/messages/")


def request_id(scope: Scope) -> str | None:
    """What the request is called in the log."""
    record = scope.get("state", {}).get("record")
    return None if record is None else str(record.id)


def add_handlers(app: FastAPI) -> None:
    """Has every error of a handler answered in the API's shape."""

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> JSONResponse:
        return error.response(request.scope)

    @app.exception_handler(DeepmnnError)
    async def failed(request: Request, error: DeepmnnError) -> JSONResponse:
        refusal = RefusedError.of(error)
        if refusal.status == 500:
            raise error  # told to the log
        return refusal.response(request.scope)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        field, found = wrong_field(error.errors())
        return RefusedError(400, str(found), param=field or None).response(request.scope)

    @app.exception_handler(HTTPException)
    async def refused_by_http(request: Request, error: HTTPException) -> JSONResponse:
        path = request.url.path
        message = _ROUTING.get(error.status_code, "{detail}").format(
            method=request.method, path=shown(path), detail=error.detail
        )
        if error.status_code == 404 and path.startswith(_WITHOUT_BASE):
            message += ". A client of OpenAI's API needs the base URL with /v1 at its end"
        elif error.status_code == 404 and path.startswith("/v1/v1/"):
            message += ". A client of Anthropic's API needs the base URL without /v1"
        refusal = RefusedError(error.status_code, message, headers=error.headers)
        return refusal.response(request.scope)


_WITHOUT_BASE = ("/chat/completions", "/completions", "/responses", "/models")

_ROUTING = {
    404: "there is nothing at {path}; expected a path that GET /openapi.json lists",
    405: "{path} does not take {method}; expected one of the methods in the header Allow",
}
