"""Bytes of every kind on a socket: no crash, no status 500, and the server answers afterwards."""

from __future__ import annotations

import random
import re
import socket
import time
from collections.abc import Iterator

import pytest

from deepmnn.serve.run import Server
from served import client, connect, request, served, tiny_r1

JSON = "Content-Type: application/json"
CHAT = (
    b'{"model": "x", "messages": [{"role": "user", "content": "2+2"}], "max_tokens": 3,'
    b' "stream": true}'
)
TEXT = b'{"prompt": "2+2", "max_tokens": 3, "n": 2}'
PARTS = (
    *(b"\x00", b"\xff\xfe", b"\r", b"\n", b"\r\n", b"\r\n\r\n", b" ", b":", b"%00", b"%ff", b"\t"),
    *(b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n"),
    *(b"Connection: keep-alive\r\n", b"Upgrade: websocket\r\n", b"Host: x\r\n", b"5\r\n", b"0\r\n"),
    *(b"[" * 500, b"{" * 500, b'"\\ud800"', b"1e999", b"9" * 5000, b"NaN", b"null", b"a" * 70_000),
    *(b"GET ", b"POST ", b"CONNECT ", b"HTTP/1.0", b"HTTP/0.9", b"HTTP/2.0", b"*", b"//", b"/../"),
)


def chunked(body: bytes, size: int) -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in [*pieces, b""])


def seeds() -> list[bytes]:
    """Sound requests."""
    made = [request(f"GET {path}") for path in ("/", "/health", "/metrics", "/v1/models")]
    for path, body in (
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", TEXT),
        ("/tokenize", b'{"prompt": "a b c"}'),
        ("/detokenize", b'{"tokens": [5, 6]}'),
    ):
        made.append(request(f"POST {path}", JSON, f"Content-Length: {len(body)}", body=body))
        made.append(
            request(f"POST {path}", JSON, "Transfer-Encoding: chunked", body=chunked(body, 7))
        )
    return made


def mutated(source: random.Random, seed: bytes) -> bytes:
    """A request that is a little, or very, wrong."""
    data = bytearray(seed)
    for _ in range(source.randint(0, 4)):
        at = source.randrange(len(data) + 1)
        match source.randrange(6):
            case 0:
                data[at:at] = source.choice(PARTS)
            case 1:
                del data[at : at + source.randint(1, 20)]
            case 2:
                data[at : at + 1] = bytes([source.randrange(256)])
            case 3:
                data[at:at] = source.randbytes(source.randint(1, 40))
            case 4:
                del data[at:]
            case 5:  # another one behind it
                data += source.choice(seeds())
    return bytes(data)


def tell(server: Server, source: random.Random, sent: bytes) -> bytes:
    """What is answered to bytes that come in pieces, before the client leaves at some moment."""
    answer = b""
    with connect(server) as connection:
        connection.settimeout(0.5 if source.random() < 0.1 else 0.02)
        try:
            while sent:
                size = source.choice((7, 100, 1000, 1 << 20))
                connection.sendall(sent[:size])
                sent = sent[size:]
            if source.random() < 0.5:
                connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(1 << 16):
                answer += part
        except OSError:  # reset, closed, or nothing more within the time
            pass
    return answer


def fuzz(server: Server, source: random.Random, count: int) -> int:
    """How many of so many requests were answered."""
    sound, answered = seeds(), 0
    for number in range(count):
        sent = mutated(source, source.choice(sound))
        statuses = re.findall(rb"HTTP/1\.1 (\d{3})", tell(server, source, sent))
        wrong = [status for status in statuses if status[:1] == b"5" and status not in (b"501",)]
        assert not wrong, (wrong, sent[:2000])
        answered += bool(statuses)
        if number % 100 == 0:
            with client(server) as http:
                assert http.get("/version").status_code == 200
    return answered


def settled(server: Server) -> None:
    """All clients are gone, nothing runs, no bug has shown."""
    end = time.monotonic() + 30
    while server.connections or tiny_r1().engine.scheduler.busy:
        assert time.monotonic() < end
        time.sleep(0.01)
    told = server.log.stream.getvalue().splitlines()
    assert not [line for line in told if '"event": "error"' in line]
    with client(server) as http:
        asked = {"messages": [{"role": "user", "content": "What is 2 + 2?"}], "max_tokens": 2}
        assert http.post("/v1/chat/completions", json=asked).status_code == 200


@pytest.fixture
def server() -> Iterator[Server]:
    limits = {"max_body_bytes": 100_000, "header_timeout": 1, "body_timeout": 1, "idle_timeout": 1}
    with served(tiny_r1(), **limits) as running:
        yield running


def test_seeds_are_sound(server: Server) -> None:
    for seed in seeds():
        with connect(server, seed) as connection:
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200"), seed


def test_a_sample(server: Server) -> None:
    assert fuzz(server, random.Random(0), 60) > 20
    settled(server)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_many(server: Server, seed: int) -> None:
    assert fuzz(server, random.Random(seed + 1), 2000) > 500
    settled(server)
