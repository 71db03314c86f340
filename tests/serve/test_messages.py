"""/v1/messages, asked by Anthropic's own client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest

import deepmnn
from deepmnn.cli.options import bundled
from deepmnn.serve.protocols.messages import CountRequest
from http_server import Served, serving

QUESTION: list[Any] = [{"role": "user", "content": "What is 12 + 30?"}]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(deepmnn.load(bundled(), threads=1)) as server:
        yield server


def create(served: Served, **fields: Any) -> Any:
    given = {"model": "claude-any", "max_tokens": 300, "messages": QUESTION, **fields}
    return served.anthropic.messages.create(**given)


def events(served: Served, **fields: Any) -> list[Any]:
    return [*create(served, stream=True, **fields)]


def test_a_message_is_the_engines_answer(served: Served) -> None:
    expected = served.model.generate(QUESTION)
    made = create(served)
    thinking, text = made.content
    assert (thinking.type, thinking.thinking) == ("thinking", expected.reasoning)
    assert thinking.signature
    assert (text.type, text.text) == ("text", expected.text)
    assert (made.stop_reason, made.stop_sequence) == ("end_turn", None)
    assert made.model == "tiny-r1"
    cached = made.usage.cache_read_input_tokens
    assert made.usage.input_tokens + cached == expected.prompt_tokens
    assert made.usage.output_tokens == expected.completion_tokens
    assert made.usage.output_tokens_details.thinking_tokens == expected.reasoning_tokens


def test_a_stream_adds_up_to_the_message(served: Served) -> None:
    whole = create(served)
    fields: Any = {"model": "claude-any", "max_tokens": 300, "messages": QUESTION}
    with served.anthropic.messages.stream(**fields) as stream:
        final = stream.get_final_message()
    assert final.to_param() == whole.to_param() | {"content": final.content}
    for made, block in zip(final.content, whole.content, strict=True):
        assert block.model_dump().items() <= made.model_dump().items()
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_events_in_order(served: Served) -> None:
    body = {"max_tokens": 300, "messages": QUESTION, "stream": True}
    answer = httpx.post(f"{served.url}/v1/messages", json=body)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    blocks = [block.split("\n") for block in answer.text.strip().split("\n\n")]
    names = [lines[0].removeprefix("event: ") for lines in blocks]
    assert all(f'{{"type":"{name}"' in lines[1] for name, lines in zip(names, blocks, strict=True))
    order = [name for i, name in enumerate(names) if i == 0 or name != names[i - 1]]
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert order == ["message_start", "ping", *block, *block, "message_delta", "message_stop"]


def test_why_it_ended(served: Served) -> None:
    cut = create(served, max_tokens=5)
    assert (cut.stop_reason, cut.usage.output_tokens) == ("max_tokens", 5)
    stopped = create(served, stop_sequences=["nowhere", "Tens"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "Tens")
    (delta,) = [e for e in events(served, stop_sequences=["Tens"]) if e.type == "message_delta"]
    assert (delta.delta.stop_reason, delta.delta.stop_sequence) == ("stop_sequence", "Tens")
    assert delta.usage.output_tokens == stopped.usage.output_tokens
    full = create(served, max_tokens=9000, extra_body={"top_k": 1}, messages=full_context(served))
    assert full.stop_reason == "model_context_window_exceeded"


def full_context(served: Served) -> Any:
    """A question that leaves no room for its answer."""
    limit = served.model.context_length - 4
    low, high = 1, 4000
    while high - low > 1:
        middle = (low + high) // 2
        asked = CountRequest.read({"messages": question(middle)}).prompt()
        fits = len(served.model.encode(asked)) <= limit
        low, high = (middle, high) if fits else (low, middle)
    return question(low)


def question(size: int) -> list[dict[str, Any]]:
    return [{"role": "user", "content": "1 " * size}]


def test_thinking_is_switched(served: Served) -> None:
    off = create(served, thinking={"type": "disabled"}, max_tokens=20)
    assert [block.type for block in off.content] == ["text"]
    for thinking in ({"type": "enabled", "budget_tokens": 1024}, {"type": "adaptive"}):
        made = create(served, thinking=thinking, output_config={"effort": "low"})
        assert [block.type for block in made.content] == ["thinking", "text"]
    omitted = {"type": "adaptive", "display": "omitted"}
    hidden = create(served, thinking=omitted).content[0]
    assert (hidden.thinking, hidden.signature) == ("", "deepmnn")
    deltas = [e for e in events(served, thinking=omitted) if e.type == "content_block_delta"]
    assert "thinking_delta" not in {event.delta.type for event in deltas}


def test_history(served: Served) -> None:
    first = create(served)
    system = [{"type": "text", "text": "One.", "cache_control": {"type": "ephemeral"}}]
    system.append({"type": "text", "text": "Two."})
    parts = [{"type": "text", "text": "What is"}, {"type": "text", "text": "2 + 2?"}]
    messages = [*QUESTION, first.to_param(), {"role": "user", "content": parts}]
    second = create(served, system=system, messages=messages)
    asked = served.model.tokenizer.decode(served.asked[-1].sequence.ids)
    assert "One.\n\nTwo." in asked
    assert "What is\n2 + 2?" in asked
    counted = served.anthropic.messages.count_tokens(
        model="x",
        system=system,  # type: ignore[arg-type]
        messages=messages,
    )
    usage = second.usage
    assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens
    again = create(served, system=system, messages=messages)
    assert again.content == second.content
    assert again.usage.cache_read_input_tokens >= usage.cache_read_input_tokens


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"messages": []}, "messages is []"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"extra_body": {"temperature": 1.5}}, "temperature is 1.5"),
        ({"messages": [*QUESTION, {"role": "assistant", "content": "4"}]}, "ends with"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role is 'robot'"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "image"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "tool_result"),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "x"}]}, *QUESTION]},
            "a block of content is {'type': 'x'}",
        ),
        ({"tools": [{"input_schema": {}}]}, "tool 0"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name is missing"),
        ({"thinking": {"type": "maybe"}}, "thinking.type is 'maybe'"),
        ({"stop_sequences": [""]}, "stop_sequences[0] is ''"),
        ({"messages": [{"role": "user", "content": "x " * 9000}]}, "tokens"),
    ],
)
def test_impossible_values(served: Served, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(anthropic.BadRequestError) as raised:
        create(served, **fields)
    assert said in raised.value.message
    assert "expected" in raised.value.message
    body: Any = raised.value.body
    assert body["type"] == "error"
    assert body["error"]["type"] == "invalid_request_error"
    assert body["request_id"] == raised.value.request_id
