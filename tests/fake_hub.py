"""A Hugging Face hub on loopback: one directory, served under every name of a set.

`python tests/fake_hub.py DIRECTORY OWNER/NAME` serves it and prints the address.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    import pytest


class FakeHub(ThreadingHTTPServer):
    """Answers what `huggingface_hub` asks to list and to download a model.

    Attributes:
        directory: the files; the commit changes with their names and sizes.
        repos: the names.
        asked: every request, "METHOD path".
        cut_after: bytes after which the next download breaks off; None for whole ones.
    """

    daemon_threads = True

    def __init__(self, directory: Path, *repos: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.directory, self.repos = directory, repos
        self.asked: list[str] = []
        self.cut_after: int | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def files(self) -> list[Path]:
        return sorted(path for path in self.directory.rglob("*") if path.is_file())

    @property
    def commit(self) -> str:
        listing = [(str(path), path.stat().st_size) for path in self.files]
        return hashlib.sha1(repr(listing).encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        for repo in self.server.repos:
            for start in (f"/api/models/{repo}", f"/{repo}/resolve/"):
                if not path.startswith(start):
                    continue
                if start.startswith("/api"):
                    self._list(path.removeprefix(start), repo, with_body)
                else:
                    revision, _, name = path.removeprefix(start).partition("/")
                    self._file(revision, name, with_body)
                return
        self._refuse("RepoNotFound")

    def _list(self, rest: str, repo: str, with_body: bool) -> None:
        directory, commit = self.server.directory, self.server.commit
        if rest not in ("", "/revision/main", f"/revision/{commit}", f"/tree/{commit}"):
            return self._refuse("RevisionNotFound")
        if rest.startswith("/tree"):
            tree = [
                {
                    "type": "file",
                    "path": str(path.relative_to(directory)),
                    "size": path.stat().st_size,
                    "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
                }
                for path in self.server.files
            ]
            return self._json(tree, with_body)
        siblings = [
            {"rfilename": str(path.relative_to(directory)), "size": path.stat().st_size}
            for path in self.server.files
        ]
        fields = {"id": repo, "modelId": repo, "sha": self.server.commit, "siblings": siblings}
        self._json({**fields, "private": False, "tags": [], "downloads": 0}, with_body)

    def _json(self, value: object, with_body: bool) -> None:
        body = json.dumps(value).encode()
        self._send(200, body if with_body else b"", {"Content-Type": "application/json"})

    def _file(self, revision: str, name: str, with_body: bool) -> None:
        path = self.server.directory / name
        if revision not in ("main", self.server.commit):
            return self._refuse("RevisionNotFound")
        if not path.is_file():
            return self._refuse("EntryNotFound")
        data = path.read_bytes()
        headers = {
            "X-Repo-Commit": self.server.commit,
            "ETag": f'"{hashlib.sha1(data).hexdigest()}"',
            "Accept-Ranges": "bytes",
        }
        first = 0
        if "Range" in self.headers:
            first = int(self.headers["Range"].removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        code = 206 if first else 200
        self._send(code, data[first:] if with_body else b"", headers, len(data) - first)

    def _refuse(self, code: str) -> None:
        self._send(404, b"", {"X-Error-Code": code})

    def _send(
        self, code: int, body: bytes, headers: dict[str, str], length: int | None = None
    ) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.send_header("Connection", "close")
        self.end_headers()
        cut, self.server.cut_after = self.server.cut_after, None
        if cut is not None and len(body) > cut:
            self.wfile.write(body[:cut])
            self.wfile.flush()
            self.connection.close()
            return
        self.server.cut_after = cut
        self.wfile.write(body)


@contextmanager
def fake_hub(directory: Path, *repos: str) -> Iterator[FakeHub]:
    """The hub, while the context lasts."""
    hub = FakeHub(directory, *repos)
    thread = threading.Thread(target=hub.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


def use_hub(hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets this process ask that hub; `huggingface_hub` reads its environment only once."""
    import huggingface_hub
    from huggingface_hub import constants

    plain = huggingface_hub.HfApi.__init__

    def made(self: object, endpoint: str | None = None, **options: object) -> None:
        plain(self, endpoint or hub.url, **options)

    monkeypatch.setattr(huggingface_hub.HfApi, "__init__", made)
    for name, value in {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_OFFLINE": False,
    }.items():
        monkeypatch.setattr(constants, name, value)


def hub_environment(url: str, home: Path) -> dict[str, str]:
    """What makes `huggingface_hub` ask this hub, and keep what it gets in `home`."""
    return {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "5",
        "HF_HUB_ETAG_TIMEOUT": "5",
        "NO_PROXY": "127.0.0.1",
    }


if __name__ == "__main__":
    server = FakeHub(Path(sys.argv[1]), *sys.argv[2:])
    print(server.url, flush=True)
    server.serve_forever()
