"""The application: every endpoint, and what each request goes through on its way there.

    request ─► Logged (a name, a line in the log) ─► CORS ─► Guard (key, size, JSON) ─► endpoint

Endpoints of a protocol are a router in `protocols/`; they get the model by the parameter `Ready`.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response

from deepmnn import __version__
from deepmnn.serve import models, protocols, tokens
from deepmnn.serve.errors import OPENAI_ERRORS, OpenAIError, RefusedError, add_handlers
from deepmnn.serve.guard import Guard
from deepmnn.serve.lifecycle import Lifecycle
from deepmnn.serve.log import Log, Logged
from deepmnn.serve.metrics import CONTENT_TYPE
from deepmnn.serve.options import ServeOptions
from deepmnn.serve.page import page_routes

PAGE = page_routes()
OPEN_PATHS = ("/health", *(route.path for route in PAGE))
"""What everybody may read: whether the server is well, and a page without secrets."""


def create_app(lifecycle: Lifecycle, options: ServeOptions, log: Log | None = None) -> FastAPI:
    """The server's application.

    Args:
        lifecycle: has the service once the model is loaded.
        options: of the server.
        log: where requests are written; None is standard error.
    """
    app = FastAPI(
        title="deepmnn",
        version=__version__,
        docs_url=None,  # their pages load scripts from other servers
        redoc_url=None,
        separate_input_output_schemas=False,
        responses=OPENAI_ERRORS,  # of a router: what its API answers instead
    )
    app.state.lifecycle = lifecycle
    add_handlers(app)
    for router in (models.router, tokens.router, *protocols.ROUTERS):
        app.include_router(router)
    _add_facts(app, lifecycle)
    app.router.routes.extend(PAGE)
    app.add_middleware(Guard, options=options, open_paths=OPEN_PATHS)
    if options.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=options.cors,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "request-id", "retry-after"],
        )
    app.add_middleware(Logged, log=log or Log(), responded=lifecycle.metrics.responded)
    return app


def _add_facts(app: FastAPI, lifecycle: Lifecycle) -> None:
    """What the server says of itself."""

    @app.head("/health", include_in_schema=False)
    @app.get("/health", tags=["server"], responses=_HEALTH)
    async def health() -> JSONResponse:
        """Whether requests are answered: status 200 when they are."""
        status = lifecycle.status
        headers = {} if status == "ready" else {"Retry-After": "2"}
        return JSONResponse({"status": status}, 200 if status == "ready" else 503, headers)

    @app.get("/version", tags=["server"])
    async def version() -> dict[str, str]:
        """The version of deepmnn."""
        return {"version": __version__}

    @app.get("/metrics", tags=["server"], response_class=Response, responses=_METRICS)
    async def read_metrics() -> Response:
        """Counts and times, for Prometheus."""
        return Response(lifecycle.metrics.text(), media_type=CONTENT_TYPE)

    @app.post("/v1/embeddings", tags=["server"], status_code=404, responses=_NO_EMBEDDINGS)
    async def embeddings(request: Request) -> None:
        """Refused: the models that deepmnn runs write text.

        With status 404, for clients ask again and again where the status is 501.
        """
        raise RefusedError(
            404,
            "this server makes no embeddings; expected a request for text, as at "
            "/v1/chat/completions. Ask a server with an embedding model.",
            code="not_supported",
        )


_Documented = dict[int | str, dict[str, Any]]

_HEALTH: _Documented = {
    code: {"content": {"application/json": {"schema": {"type": "object"}}}} for code in (200, 503)
}
_METRICS: _Documented = {200: {"content": {"text/plain": {}}}}
_NO_EMBEDDINGS: _Documented = {404: {"model": OpenAIError}}
