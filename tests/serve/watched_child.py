"""Serves tiny-r1 and asks it, in a process that may connect to nothing but that server.

python watched_child.py serve
python watched_child.py connect | lookup | send     to try the watch
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

LOCAL = ("127.0.0.1", "localhost", "::1")
LOOKUPS = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")
allowed: list[int] = []
"""The server's port."""


def refuse(event: str, arguments: tuple[object, ...]) -> None:
    """An audit hook, which Python calls before it opens, names or uses a socket."""
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = arguments[1]
        if not isinstance(address, tuple) or address[0] not in LOCAL or address[1] not in allowed:
            raise RuntimeError(f"forbidden: {event} {address}")
    elif event in LOOKUPS and arguments[0] not in LOCAL:
        raise RuntimeError(f"forbidden: {event} {arguments[0]}")


def serve() -> None:
    from served import client, served, tiny_r1

    model = tiny_r1()
    with served(model) as server:
        allowed.append(server.port)
        with client(server) as http:
            for path in ("/", "/health", "/metrics", "/v1/models", "/openapi.json", "/nothing"):
                http.get(path)
            asked = {
                "messages": [{"role": "user", "content": "What is 2 + 2?"}],
                "max_tokens": 5,
            }
            for stream in (False, True):
                answer = http.post("/v1/chat/completions", json={**asked, "stream": stream})
                assert answer.status_code == 200, answer.text
            assert http.post("/tokenize", json={"prompt": "x"}).status_code == 200
            assert http.get("/test/bug").status_code == 500
        server.drain()
        server.join()


sys.addaudithook(refuse)
if sys.argv[1] == "connect":
    socket.create_connection(("127.0.0.1", 9))
elif sys.argv[1] == "lookup":
    socket.getaddrinfo("telemetry.example", 443)
elif sys.argv[1] == "send":
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 53))
else:
    serve()
    print("done")
