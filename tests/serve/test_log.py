"""The log: a line for each request, and none of its text."""

from __future__ import annotations

import json
import time
from io import StringIO
from typing import Any

from deepmnn.serve.log import Log, Record
from deepmnn.serve.run import Server
from served import client, served, tiny_r1


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def lines(server: Server) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.log.stream.getvalue().splitlines()]


def test_a_line_says_how_a_request_went_and_not_what_it_said() -> None:
    with served(tiny_r1()) as server, client(server) as http:
        http.get("/health")
        http.get("/metrics")
        asked = http.post("/test/stream", json={"max_tokens": 5, "said": "my secret"})
        http.get("/no%1B[2J/where?token=hidden")
    request, missing = lines(server)
    assert request.pop("time").endswith("Z")
    assert request["id"] == asked.headers["x-request-id"]
    assert 0 < request["first_seconds"] <= request["seconds"] < 30
    expected = {
        "method": "POST",
        "path": "/test/stream",
        "client": "127.0.0.1",
        "status": 200,
        "completion_tokens": 5,
        "finish_reasons": ["length"],
    }
    assert {key: request[key] for key in expected} == expected
    assert request["prompt_tokens"] > 5
    assert (missing["status"], missing["path"]) == (404, "/no%1B[2J/where")
    assert "secret" not in server.log.stream.getvalue()
    assert "hidden" not in server.log.stream.getvalue()


def test_prompts_only_when_asked_for() -> None:
    with served(tiny_r1(), log_prompts=True) as server, client(server) as http:
        http.post("/tokenize", json={"prompt": "a\x1b[2J\nsecret"})
    (line,) = lines(server)
    assert line["body"] == {"prompt": "a\x1b[2J\nsecret"}
    assert server.log.stream.getvalue().isprintable() is False  # its line end alone
    assert "\x1b" not in server.log.stream.getvalue()


def test_a_client_that_left_is_told_apart() -> None:
    with served(tiny_r1()) as server:
        asked = {"max_tokens": 3000}
        with client(server) as http, http.stream("POST", "/test/stream", json=asked) as answer:
            next(answer.iter_lines())
        while not server.log.stream.getvalue():
            time.sleep(0.01)
    (line,) = lines(server)
    assert line["left"] is True
    assert line["completion_tokens"] < 3000


def test_people_get_lines_they_can_read() -> None:
    stream = Terminal()
    log = Log(stream)
    record = Record("GET", "/x", "127.0.0.1", "req_1")
    record.status, record.seconds, record.body = 200, 1.234, {"prompt": "a\x1b[2J\u202e"}
    record.prompt_tokens, record.completion_tokens = 3, 5
    record.finish_reasons += ["stop"]
    log.request(record)
    log.event("draining\x9b", seconds=30)
    log.error(record, ValueError("a\x1b\nb"))
    shown = stream.getvalue()
    assert "GET  /x  200  1.23 s  3 + 5 tokens  stop  req_1" in shown
    assert all(line.isprintable() for line in shown.splitlines())
    assert len(shown.splitlines()) >= 4


def test_a_log_that_cannot_be_written_stops_nobody() -> None:
    class Full(StringIO):
        def write(self, _: str) -> int:
            raise OSError(28, "No space left on device")

    Log(Full()).request(Record("GET", "/"))
