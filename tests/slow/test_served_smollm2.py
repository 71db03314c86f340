"""A published model behind the server, asked by the official clients through every API.

SmolLM2-135M-Instruct, as in test_published_gguf.py: its chat template knows no tools.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import deepmnn
from deepmnn import SamplingParams
from http_server import Served, serving

pytestmark = pytest.mark.slow

FILE = (
    Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    / "deepmnn-tests"
    / "SmolLM2-135M-Instruct.Q4_1.gguf"
)
QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "large": {"type": "boolean"}},
    "required": ["city", "large"],
    "additionalProperties": False,
}
LIMIT = 120


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    if not FILE.exists():
        pytest.skip(f"no {FILE}: test_published_gguf.py fetches it")
    with serving(deepmnn.load(FILE), "smollm2") as server:
        yield server


def test_chat(served: Served) -> None:
    fields: Any = {"model": "smollm2", "messages": QUESTION, "temperature": 0, "max_tokens": 40}
    made = served.openai.chat.completions.create(**fields)
    expected = served.model.generate(QUESTION, SamplingParams(max_tokens=40))
    assert made.choices[0].message.content == expected.text
    parts = served.openai.chat.completions.create(**fields, stream=True)
    said = "".join(part.choices[0].delta.content or "" for part in parts)
    assert said == made.choices[0].message.content


def test_a_required_call(served: Served) -> None:
    function: Any = {"name": "look_up", "description": "Looks up a city.", "parameters": SCHEMA}
    made = served.openai.chat.completions.create(
        model="smollm2",
        messages=QUESTION,
        tools=[{"type": "function", "function": function}],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=LIMIT,
        temperature=0,
    )
    (call,) = made.choices[0].message.tool_calls or ()
    jsonschema.validate(json.loads(call.function.arguments), SCHEMA)  # type: ignore[union-attr]
    history: list[Any] = [
        *QUESTION,
        made.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "Paris has 2 million people."},
    ]
    answer = served.openai.chat.completions.create(
        model="smollm2", messages=history, tools=[{"type": "function", "function": function}]
    )
    assert answer.choices[0].message.content or answer.choices[0].message.tool_calls


def test_a_schema(served: Served) -> None:
    text: Any = {"format": {"type": "json_schema", "name": "city", "schema": SCHEMA}}
    made = served.openai.responses.create(
        model="smollm2", input="Where is the Louvre?", text=text, max_output_tokens=LIMIT
    )
    jsonschema.validate(json.loads(made.output_text), SCHEMA)


def test_messages(served: Served) -> None:
    tools: Any = [{"name": "look_up", "input_schema": SCHEMA}]
    made = served.anthropic.messages.create(
        model="smollm2",
        messages=QUESTION,
        max_tokens=LIMIT,
        tools=tools,
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
    )
    assert made.stop_reason == "tool_use"
    block = made.content[-1]
    assert block.type == "tool_use"
    jsonschema.validate(block.input, SCHEMA)
    with served.anthropic.messages.stream(
        model="smollm2", messages=QUESTION, max_tokens=30
    ) as stream:
        assert "".join(stream.text_stream)
