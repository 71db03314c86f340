"""Clients that are slow, many, or speak no HTTP: each is told so, and the server goes on."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from deepmnn.serve.run import Server
from served import client, connect, exchange, received, request, served, tiny_r1

GET = b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with served(tiny_r1()) as running:
        yield running


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),  # TLS
        (b"GET /\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET /\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nA: \x00\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nA : b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1, 2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nA: " + b"a" * 40_000, 431),
        (request("GET /" + "a" * 40_000), 431),
    ],
)
def test_what_is_no_http_is_told_so(server: Server, sent: bytes, status: int) -> None:
    head, _, body = exchange(server, sent).partition(b"\r\n\r\n")
    assert int(head.split()[1]) == status, head
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
    with client(server) as http:
        assert http.get("/version").status_code == 200


def test_a_broken_chunk_ends_the_connection(server: Server) -> None:
    start = request(
        "POST /tokenize", "Content-Type: application/json", "Transfer-Encoding: chunked"
    )
    for body in (b"zz\r\n", b"-1\r\n", b"5\r\n{}\r\n0\r\n\r\nx", b"\r\n", b"f" * 30 + b"\r\n"):
        answer = exchange(server, start + body)
        assert answer.startswith(b"HTTP/1.1 400")
        assert answer.count(b"HTTP/1.1 4") == 1
    unwanted = start.replace(b"application/json", b"text/plain")  # refused while it breaks
    assert exchange(server, unwanted + b"zz\r\n").count(b"HTTP/1.1 4") == 1
    assert '"event": "error"' not in server.log.stream.getvalue()
    with client(server) as http:
        assert http.get("/version").status_code == 200


def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    answer = exchange(server, GET * 3 + request("GET /health"))
    assert answer.count(b"HTTP/1.1 200") == 4
    assert answer.endswith(b'{"status":"ready"}')
    broken = exchange(server, GET + b"\x00\r\n\r\n")
    assert broken.startswith(b"HTTP/1.1 200")
    assert b"HTTP/1.1 400" in broken


def test_slow_clients_lose_their_connection() -> None:
    """One that says nothing, one that never ends its headers, one that only sends a body's bytes
    which nobody wants, and one between two requests: all at once, for each takes a second.
    """
    unread = b"POST /version HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
    with served(header_timeout=1, idle_timeout=1) as server:
        begun = time.monotonic()
        clients = [connect(server, sent) for sent in (b"", b"GET / HT", unread, GET)]
        dripped = 0
        for _ in range(100):
            try:
                clients[1].sendall(b"x")
                clients[2].sendall(b" ")
            except OSError:
                break
            dripped += 1
            time.sleep(0.05)
        assert dripped < 100
        answers = [received(each) for each in clients]
        assert time.monotonic() - begun < 20
        for each in clients:
            each.close()
        assert answers[0] == answers[1] == b""
        assert answers[2].startswith(b"HTTP/1.1 415")
        assert answers[3].startswith(b"HTTP/1.1 200")
        with client(server) as http:
            assert http.get("/version").status_code == 200


def test_more_connections_than_allowed_are_told_to_wait() -> None:
    with served(max_connections=2) as server:
        kept = [connect(server, GET) for _ in range(2)]
        for each in kept:
            assert each.recv(4096).startswith(b"HTTP/1.1 200")
        refused = exchange(server, GET)
        assert refused.startswith(b"HTTP/1.1 503")
        assert b"retry-after" in refused.lower()
        kept.pop().close()
        answer = b""
        for _ in range(100):  # the server hears of the end of a connection a moment later
            answer = exchange(server, request("GET /version"))
            if answer.startswith(b"HTTP/1.1 200"):
                break
        assert answer.startswith(b"HTTP/1.1 200")
        kept.pop().close()


def test_a_client_that_stops_reading_is_dropped() -> None:
    with served(write_timeout=1) as server:
        with socket.socket() as made:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            made.connect(("127.0.0.1", server.port))
            made.sendall(GET.replace(b"version", b"openapi.json") * 1000)  # fills every buffer
            made.settimeout(30)
            assert made.recv(1) == b"H"
            deadline = time.monotonic() + 30
            while server.connections and time.monotonic() < deadline:
                time.sleep(0.02)
            assert not server.connections
            assert len(received(made)) < 5_000_000
        with client(server) as http:
            assert http.get("/version").status_code == 200


def test_a_bug_in_the_middle_of_a_stream_ends_it(server: Server) -> None:
    with client(server) as http, pytest.raises(httpx.RemoteProtocolError):
        http.post("/test/stream", json={"max_tokens": 50, "fails": True})
    assert "a bug" in server.log.stream.getvalue()
