"""Long answers of every API: silence, errors in the middle, clients that leave, a server's end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import anthropic
import httpx
import openai
import pytest

from deepmnn.serve.protocols import sse
from http_server import Served, serving
from scripted_model import ScriptedBackend, scripted_model

QUESTION = [{"role": "user", "content": "Why?"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": QUESTION, "n": 2},
    "/v1/completions": {
        "prompt": [f"{start}<｜Assistant｜><think>\n" for start in ("", "a")],
        "max_tokens": 3000,
    },
    "/v1/messages": {"messages": QUESTION, "max_tokens": 3000},
    "/v1/responses": {"input": "Why?"},
}
ANSWERS = {"/v1/chat/completions": 2, "/v1/completions": 2, "/v1/messages": 1, "/v1/responses": 1}
PINGS = {
    "/v1/messages": 'event: ping\ndata: {"type":"ping"}\n\n',
    "/v1/responses": "event: response.in_progress\n",
}

Scripted = tuple[Served, ScriptedBackend]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scripted]:
    model, backend = scripted_model(tmp_path_factory.mktemp("scripted"))
    with serving(model) as served:
        yield served, backend


@pytest.fixture
def scripted(server: Scripted) -> Iterator[Scripted]:
    """A model that says much, slowly."""
    served, backend = server
    backend.says("all work and no play " * 100)
    backend.pause = 0.01
    yield server
    served.until_idle()
    backend.pause, backend.raising = 0, set()


@pytest.fixture(params=BODIES)
def path(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def ended(served: Served, path: str) -> set[str | None]:
    """How the last request's answers ended."""
    served.until_idle()
    return {each.sequence.finish_reason for each in served.asked[-ANSWERS[path] :]}


def test_a_client_leaves_a_stream(scripted: Scripted, path: str) -> None:
    served, _ = scripted
    body = BODIES[path] | {"stream": True}
    with httpx.stream("POST", served.url + path, json=body) as answer:
        next(answer.iter_lines())
        assert served.service.active == ANSWERS[path]
    assert ended(served, path) == {"cancelled"}


def test_a_client_leaves_before_its_answer(scripted: Scripted, path: str) -> None:
    served, _ = scripted
    before = len(served.asked)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(served.url + path, json=BODIES[path], timeout=0.3)
    assert len(served.asked) == before + ANSWERS[path]
    assert ended(served, path) == {"cancelled"}


def test_the_server_ends(scripted: Scripted, path: str) -> None:
    served, _ = scripted
    with httpx.stream("POST", served.url + path, json=BODIES[path] | {"stream": True}) as answer:
        lines = answer.iter_lines()
        said = [next(lines) for _ in range(20)]
        served.service.cancel_all()
        said += lines
    assert any("the server is shutting down" in line for line in said[-4:])
    assert ended(served, path) == {"cancelled"}


def test_a_stream_is_never_silent(
    scripted: Scripted, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, backend = scripted
    backend.pause = 0.2
    monkeypatch.setattr(sse, "PING_SECONDS", 0.02)
    with httpx.stream("POST", served.url + path, json=BODIES[path] | {"stream": True}) as answer:
        parts = answer.iter_text()
        said = "".join(next(parts) for _ in range(4))
    assert said.count(PINGS.get(path, ": ping\n\n")) >= 3
    assert "all work" not in said


def test_the_model_fails_in_the_middle(scripted: Scripted, path: str) -> None:
    served, backend = scripted
    backend.pause = 0
    backend.says("fine until X and no further")
    backend.raising = set(served.model.encode("X")[1:])
    answer = httpx.post(served.url + path, json=BODIES[path])
    assert answer.status_code == 500
    assert "token " not in answer.text
    assert "its log says why" in answer.text
    lines = lines_until_cut(served.url + path, BODIES[path] | {"stream": True})
    data = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    last = data[-1].get("response", data[-1])
    assert "its log says why" in last["error"]["message"]
    assert "RuntimeError: token" in served.log.getvalue()


def lines_until_cut(url: str, body: dict[str, Any]) -> list[str]:
    """What a stream says before its connection ends without an end of the answer."""
    lines = []
    with httpx.stream("POST", url, json=body) as sent:
        try:
            for line in sent.iter_lines():
                lines.append(line)
        except httpx.RemoteProtocolError:
            return lines
    raise AssertionError("the answer has an end")


def test_clients_raise_the_errors_of_a_stream(scripted: Scripted) -> None:
    served, backend = scripted
    backend.pause = 0
    backend.says("fine until X and no further")
    backend.raising = set(served.model.encode("X")[1:])
    chat: Any = {"model": "x", "messages": QUESTION, "stream": True}
    with pytest.raises(openai.APIError, match="its log says why"):
        [*served.openai.chat.completions.create(**chat)]
    with pytest.raises(anthropic.APIStatusError, match="its log says why"):
        [*served.anthropic.messages.create(max_tokens=500, **chat)]


def test_too_many_ask(scripted: Scripted) -> None:
    served, _ = scripted
    url = f"{served.url}/v1/chat/completions"
    fields: Any = {"model": "x", "messages": QUESTION}
    with ExitStack() as stack:
        for n in (128, 128, 64):  # the queue, and what runs
            body = {"messages": QUESTION, "n": n, "stream": True}
            stack.enter_context(httpx.stream("POST", url, json=body))
        with pytest.raises(openai.RateLimitError, match="answers are under way"):
            served.openai.chat.completions.create(**fields)
        with pytest.raises(anthropic.RateLimitError, match="answers are under way"):
            served.anthropic.messages.create(max_tokens=2, **fields)
