"""What a request must be: from here, with the key, JSON, of bounded size and in time."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest

from deepmnn.serve.run import Server
from served import KEY, client, connect, exchange, received, request, served, tiny_r1

JSON = "Content-Type: application/json"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    limits = {"max_body_bytes": 2048, "body_timeout": 1}
    with served(tiny_r1(), api_key=KEY, cors=("https://chat.example",), **limits) as running:
        yield running


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with client(server, KEY) as made:
        yield made


def status(answer: bytes) -> int:
    return int(answer.split()[1])


# ------------------------------------------------------------------------------ the key


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {KEY}"},
        {"authorization": f"bearer  {KEY}"},
        {"x-api-key": KEY},
        {"Authorization": "Basic eA==", "X-Api-Key": KEY},
    ],
)
def test_the_key_opens(server: Server, headers: dict[str, str]) -> None:
    with client(server) as http:
        assert http.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": KEY},
        {"Authorization": f"Bearer {KEY[:-1]}"},
        {"Authorization": f"Bearer {KEY}x"},
        {"x-api-key": KEY.upper()},
        {"x-api-key": ""},
    ],
)
@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/openapi.json", "/nothing"])
def test_nothing_else_does(server: Server, headers: dict[str, str], path: str) -> None:
    with client(server) as http:
        refused = http.get(path, headers=headers)
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    assert refused.json()["error"]["code"] == "invalid_api_key"


def test_a_key_of_any_bytes_is_compared(server: Server) -> None:
    for key in (b"\xff\xfe", "ключ".encode(), b"a" * 20_000):
        sent = request("GET /v1/models", "x-api-key: @").replace(b"@", key)
        assert status(exchange(server, sent)) == 401


def test_health_and_the_page_are_open(server: Server) -> None:
    with client(server) as http:
        for path in ("/health", "/", "/page/page.js"):
            assert http.get(path).status_code == 200


def test_anthropics_clients_get_their_error(server: Server) -> None:
    with client(server) as http:
        refused = http.post("/v1/messages", json={})
    assert refused.status_code == 401
    assert refused.json()["error"]["type"] == "authentication_error"
    assert refused.json()["request_id"] == refused.headers["request-id"]


# ------------------------------------------------------------------------------ where from


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:80", "[::1]:8000", "LOCALHOST:1"])
def test_names_of_this_machine(server: Server, host: str) -> None:
    with client(server) as http:
        assert http.get("/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.", "[", ""])
def test_a_name_of_a_stranger_is_refused(server: Server, host: str) -> None:
    with client(server) as http:
        assert http.get("/health", headers={"Host": host}).status_code == 403


def test_a_name_may_be_added() -> None:
    with served(allowed_hosts="box.example") as server, client(server) as http:
        assert http.get("/health", headers={"Host": "box.example:80"}).status_code == 503
        assert http.get("/health", headers={"Host": "evil.example"}).status_code == 403


def test_cors_only_for_origins_that_are_named(server: Server) -> None:
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
    with client(server) as http:
        friend = http.options("/tokenize", headers={"Origin": "https://chat.example", **asks})
        stranger = http.options("/tokenize", headers={"Origin": "https://evil.example", **asks})
        refused = http.get("/v1/models", headers={"Origin": "https://chat.example"})
    assert friend.headers["access-control-allow-origin"] == "https://chat.example"
    assert "x-api-key" in friend.headers["access-control-allow-headers"]
    assert stranger.status_code == 400
    assert "access-control-allow-origin" not in stranger.headers
    assert refused.status_code == 401  # and the page may read why
    assert refused.headers["access-control-allow-origin"] == "https://chat.example"


def test_without_origins_no_cors() -> None:
    with served() as server, client(server) as http:
        answer = http.get("/health", headers={"Origin": "https://chat.example"})
        assert not [name for name in answer.headers if name.startswith("access-control")]


# ------------------------------------------------------------------------------ the body


@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
def test_a_form_cannot_ask(http: httpx.Client, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    refused = http.post("/tokenize", content=b'{"prompt": "x"}', headers=headers)
    assert refused.status_code == 415
    assert "application/json" in refused.json()["error"]["message"]


def test_json_may_name_its_charset(http: httpx.Client) -> None:
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert http.post("/tokenize", content=b'{"prompt":"x"}', headers=headers).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"\xff",
        b'{"prompt": "\xff"}',
        b'{"prompt": "\xed\xa0\x80"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "a\x00"}',
        b'{"prompt": NaN}',
        b"[" * 300 + b"]" * 300,
        b'{"a":' * 300 + b"1" + b"}" * 300,
        b"9" * 2000 + b"e",
        b"\xef\xbb\xbf{}",
        b"null x",
        b" ",
    ],
)
def test_what_is_no_json_is_refused(http: httpx.Client, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    refused = http.post("/tokenize", content=body, headers=headers)
    assert refused.status_code == 400
    assert "body" in refused.json()["error"]["message"]


@pytest.mark.parametrize("body", [b"1", b"null", b"[]", b'"x"', b"[[[[]]]]", b'{"prompt":1e999}'])
def test_json_that_is_no_request_is_refused(http: httpx.Client, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    assert http.post("/tokenize", content=body, headers=headers).status_code == 400


def test_a_body_may_be_empty_where_none_is_read(http: httpx.Client) -> None:
    assert http.post("/tokenize").status_code == 400
    assert http.post("/health").status_code == 405


def test_long_bodies_are_refused_however_they_come(server: Server, http: httpx.Client) -> None:
    fits = json.dumps({"prompt": "x" * 2000}).encode()
    headers = {"Content-Type": "application/json"}
    assert http.post("/tokenize", content=fits, headers=headers).status_code == 200
    assert http.post("/tokenize", json={"prompt": "x" * 2048}).status_code == 413

    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 100

    assert http.post("/tokenize", content=chunks(), headers=headers).status_code == 413
    assert http.get("/health").status_code == 200  # on the same connection
    announced = request("POST /tokenize", JSON, f"x-api-key: {KEY}", "Content-Length: 99999999")
    with connect(server, announced + b" ") as connection:  # the rest need not come
        assert status(connection.recv(4096)) == 413


def test_a_body_must_come_in_time(server: Server) -> None:
    started = request("POST /tokenize", JSON, f"x-api-key: {KEY}", "Content-Length: 9", body=b"{")
    with connect(server, started) as connection:
        answer = received(connection)
    assert status(answer) == 408
    assert b"has not come within 1 s" in answer
