"""The chat page that the server gives at `/`: HTML, CSS and ES modules as they lie in this folder.

The page talks to the server it came from (`/v1/models`, `/v1/chat/completions`) and to nothing
else. Its policy says so to the browser.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_FOLDER = Path(__file__).parent
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}

_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # The browser refuses every way from text to HTML: what a model writes stays text.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)


def page_routes() -> list[Route]:
    """Routes of the page: `/` and `/page/<file>`. They need no API key: the page asks for it.

    The files are read once, here.
    """
    files = sorted(path for path in _FOLDER.iterdir() if path.suffix in _TYPES)
    return [
        _route("/" if path.name == "index.html" else f"/page/{path.name}", path) for path in files
    ]


def _route(address: str, path: Path) -> Route:
    body = path.read_bytes()
    headers = {
        "Content-Security-Policy": _POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        # Browsers ask each time, and get 304 until the file changes with a new version.
        "Cache-Control": "no-cache",
        "ETag": f'"{hashlib.sha256(body).hexdigest()[:32]}"',
    }
    media_type = _TYPES[path.suffix]

    async def answer(request: Request) -> Response:
        known = {tag.strip() for tag in request.headers.get("if-none-match", "").split(",")}
        if headers["ETag"] in {tag.removeprefix("W/") for tag in known}:
            return Response(status_code=304, headers=headers)
        return Response(body, headers=headers, media_type=media_type)

    return Route(address, answer, name=path.name, include_in_schema=False)
