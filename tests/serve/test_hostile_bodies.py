"""Bodies with anything anywhere: each is read, or refused with a RequestError."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from byte_tokenizer import write_tokenizer
from deepmnn import SamplingParams
from deepmnn.api.prompts import read_prompts
from deepmnn.engine.completion import Chunk
from deepmnn.errors import RequestError
from deepmnn.serve.protocols.chat import ChatBody, ChatEvents, ChatRequest
from deepmnn.serve.protocols.completions import (
    CompletionBody,
    CompletionEvents,
    CompletionRequest,
)
from deepmnn.serve.protocols.messages import MessageBody, MessageEvents, MessagesRequest
from deepmnn.serve.protocols.responses import ResponseBody, ResponseEvents, ResponsesRequest
from deepmnn.text.tokenizer import Tokenizer
from deepmnn.text.tool_calls import ToolCallDelta

SCHEMA: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}}
TOOL: dict[str, Any] = {"name": "f", "description": "d", "parameters": SCHEMA}
NAMED = {"type": "function", "function": {"name": "f"}}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
SAMPLING: dict[str, Any] = {"temperature": 1, "top_p": 0.5, "seed": 3, "stop": ["x"], "n": 2}

BODIES: dict[str, dict[str, Any]] = {
    "chat": {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "u"}]},
            {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning": "r"},
            {"role": "tool", "tool_call_id": "1", "content": "t"},
        ],
        "tools": [{"type": "function", "function": TOOL}],
        "tool_choice": {
            "type": "allowed_tools",
            "allowed_tools": {"mode": "auto", "tools": [NAMED]},
        },
        "response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}},
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "chat_template_kwargs": {"thinking": True, "x": 1},
        "thinking": {"type": "enabled"},
        "reasoning_effort": "high",
        "logit_bias": {},
        "max_tokens": 5,
        **SAMPLING,
    },
    "completions": {
        "prompt": ["a", "b"],
        "suffix": "",
        "echo": True,
        "max_tokens": 5,
        "best_of": 2,
        **SAMPLING,
    },
    "messages": {
        "max_tokens": 9,
        "system": [{"type": "text", "text": "s"}],
        "messages": [
            {"role": "user", "content": "u"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "t", "signature": ""},
                    {"type": "text", "text": "t"},
                    {"type": "tool_use", "id": "1", "name": "f", "input": {"a": 1}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "1", "content": "r"},
                    {"type": "text", "text": "u"},
                ],
            },
        ],
        "tools": [{"name": "f", "input_schema": SCHEMA}],
        "tool_choice": {"type": "tool", "name": "f"},
        "thinking": {"type": "enabled", "budget_tokens": 5},
        "output_config": {"effort": "high", "format": {"type": "json_schema", "schema": SCHEMA}},
        "stop_sequences": ["x"],
    },
    "responses": {
        "instructions": "i",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "u"}]},
            {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "r"}]},
            {"type": "message", "role": "assistant", "content": "a"},
            {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "1", "output": "o"},
            {"type": "custom_tool_call", "call_id": "2", "name": "f", "input": "x"},
        ],
        "tools": [{"type": "function", **TOOL}, {"type": "web_search"}],
        "tool_choice": {
            "type": "allowed_tools",
            "mode": "auto",
            "tools": [{"type": "function", "name": "f"}],
        },
        "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}},
        "reasoning": {"effort": "high"},
        "include": ["message.output_text.logprobs"],
        "metadata": {"a": "b"},
    },
}
KINDS: dict[str, tuple[Any, Any, Any]] = {
    "chat": (ChatRequest, ChatBody, ChatEvents),
    "completions": (CompletionRequest, CompletionBody, CompletionEvents),
    "messages": (MessagesRequest, MessageBody, MessageEvents),
    "responses": (ResponsesRequest, ResponseBody, ResponseEvents),
}
ANYTHING: list[Any] = [
    *(None, True, False, 0, -1, 1, 5, 1 << 70, -(1 << 70), 0.5, 1e300, "", "x", "\u0000", "ﷺ" * 50),
    *([], [[]], [None], ["x"], [1], {}, {"x": 1}, {"type": "text"}, {"type": "function"}),
    *("none", "auto", "required", "function", "json_object", "disabled", "user", "tool"),
    *([{"type": "text", "text": "x"}], {"": None}, {"name": []}, {"type": []}, {"role": {}}),
]
PIECES = [
    Chunk(0, "", "", [1], None, 3, 0, 1, 0.1, 0.0),
    Chunk(0, "", "why", [2], None, 3, 0, 2, 0.1, 0.1, reasoning_tokens=2),
    Chunk(0, "say", "", [3], None, 3, 0, 3, 0.1, 0.2, reasoning_tokens=2),
    Chunk(
        *(0, "", "", [4], "stop", 3, 0, 4, 0.1, 0.3),
        tool_calls=[ToolCallDelta(0, "f", "{"), ToolCallDelta(0, "", "}")],
    ),
]


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in list(items):
        yield value, key
        if isinstance(item, dict | list):
            yield from places(item)


def spoilt(body: dict[str, Any], random_: random.Random) -> dict[str, Any]:
    made = copy.deepcopy(body)
    for _ in range(random_.randint(1, 3)):
        container, key = random_.choice([*places(made)] or [(made, "x")])
        if random_.random() < 0.2:
            del container[key]
        else:
            container[key] = copy.deepcopy(random_.choice(ANYTHING))
    return made


@pytest.mark.parametrize("kind", BODIES)
def test_anything_anywhere(kind: str, tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    tokenizer = Tokenizer(tmp_path)
    request, body, events = KINDS[kind]
    random_ = random.Random(kind)
    names = ("m",) if kind == "messages" else ("m", tokenizer)
    counts = {True: 0, False: 0}
    for given in [BODIES[kind], *(spoilt(BODIES[kind], random_) for _ in range(1500))]:
        try:
            asked = request.read(given)
            params = asked.params(SamplingParams())
            prompts = asked.prompts(tokenizer) if kind == "completions" else asked.prompt()
            read_prompts(prompts)
        except RequestError:
            counts[False] += 1
            continue
        assert isinstance(params, SamplingParams)
        counts[True] += 1
        whole, stream = body(asked, *names), events(asked, *names)
        said = stream.begin()
        for piece in PIECES:
            whole.add(piece)
            said += stream.chunk(piece)
        said += stream.end()
        json.dumps(whole.body())
        for line in said.split("\n"):
            if line.startswith("data: {"):
                json.loads(line[6:])
    assert min(counts.values()) > 200, counts
