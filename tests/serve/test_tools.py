"""Calls of tools through each API, with the official clients: scripted, and constrained."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest

import deepmnn
from deepmnn.cli.options import bundled
from http_server import Served, serving
from scripted_model import ScriptedBackend, scripted_model

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}
CLOSED = {
    "type": "object",
    "properties": {"unit": {"enum": ["C", "F"]}, "fine": {"type": "boolean"}},
    "required": ["unit", "fine"],
    "additionalProperties": False,
}
FIRST, SECOND = {"city": "Zürich", "days": 3}, {"city": 'Bern "B"'}


def written(arguments: str) -> str:
    """As DeepSeek-R1 writes it."""
    head = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
    return f"{head}{arguments}\n```<｜tool▁call▁end｜>"


SAID = (
    "I look it up.</think>\n\nOne moment.\n<｜tool▁calls▁begin｜>"
    f"{written(json.dumps(FIRST, ensure_ascii=False))}\n{written(json.dumps(SECOND))}"
    "<｜tool▁calls▁end｜>"
)
RESULTS_END = "<｜tool▁outputs▁end｜>"
QUESTION: list[Any] = [{"role": "user", "content": "How is the weather?"}]


def function(name: str, schema: dict[str, Any]) -> Any:
    described = {"name": name, "description": "Tells the weather.", "parameters": schema}
    return {"type": "function", "function": described}


CHAT_TOOLS = [function("weather", SCHEMA), function("closed", CLOSED)]
RESPONSE_TOOLS: list[Any] = [{"type": "function", **tool["function"]} for tool in CHAT_TOOLS]
ANTHROPIC_TOOLS: list[Any] = [
    {"name": "weather", "description": "Tells the weather.", "input_schema": SCHEMA},
    {"name": "closed", "input_schema": CLOSED},
]


@pytest.fixture(scope="module")
def scripted(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Served, ScriptedBackend]]:
    model, backend = scripted_model(tmp_path_factory.mktemp("scripted"))
    with serving(model) as server:
        yield server, backend


@pytest.fixture(scope="module")
def tiny() -> Iterator[Served]:
    with serving(deepmnn.load(bundled(), threads=1)) as server:
        yield server


# ------------------------------------------------------------------------------ as the model likes


def test_chat(scripted: tuple[Served, ScriptedBackend]) -> None:
    served, backend = scripted
    client = served.openai
    backend.says(SAID)
    made = client.chat.completions.create(model="x", messages=QUESTION, tools=CHAT_TOOLS)
    (choice,) = made.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "One moment."
    assert choice.message.reasoning_content == "I look it up."  # type: ignore[attr-defined]
    calls = choice.message.tool_calls
    assert calls
    assert [call.function.name for call in calls] == ["weather", "weather"]  # type: ignore[union-attr]
    assert [json.loads(call.function.arguments) for call in calls] == [FIRST, SECOND]  # type: ignore[union-attr]
    assert len({call.id for call in calls}) == 2
    with client.chat.completions.stream(model="x", messages=QUESTION, tools=CHAT_TOOLS) as stream:
        events = [event.type for event in stream]
        whole = stream.get_final_completion().choices[0]
    assert events.count("tool_calls.function.arguments.done") == 2
    assert whole.finish_reason == "tool_calls"
    assert whole.message.content == choice.message.content
    found = [call.function.arguments for call in whole.message.tool_calls or ()]
    assert found == [call.function.arguments for call in calls]  # type: ignore[union-attr]
    # What is sent back reaches the model.
    backend.says("It rains.", RESULTS_END)
    history = [
        *QUESTION,
        choice.message.model_dump(exclude_none=True),
        *({"role": "tool", "tool_call_id": call.id, "content": "Rain."} for call in calls),
    ]
    answer = client.chat.completions.create(model="x", messages=history, tools=CHAT_TOOLS)
    assert answer.choices[0].message.content == "It rains."
    assert answer.choices[0].finish_reason == "stop"
    asked = served.model.tokenizer.decode(served.asked[-1].sequence.ids)
    assert asked.count("Rain.") == 2
    assert '"Zürich"' in asked


def test_no_tools(scripted: tuple[Served, ScriptedBackend]) -> None:
    served, backend = scripted
    backend.says(SAID)
    made = served.openai.chat.completions.create(
        model="x", messages=QUESTION, tools=CHAT_TOOLS, tool_choice="none"
    )
    assert made.choices[0].finish_reason == "stop"
    assert not made.choices[0].message.tool_calls
    assert "weather" not in served.model.tokenizer.decode(
        served.asked[-1].sequence.ids[: made.usage.prompt_tokens]  # type: ignore[union-attr]
    ).replace("the weather?", "")


def test_responses(scripted: tuple[Served, ScriptedBackend]) -> None:
    served, backend = scripted
    client = served.openai
    backend.says(SAID)
    tools = [*RESPONSE_TOOLS, {"type": "web_search"}, {"type": "no_such_kind"}]
    made = client.responses.create(model="x", input="Weather?", tools=tools)
    assert [item.type for item in made.output] == [
        *("reasoning", "message"),
        *("function_call", "function_call"),
    ]
    calls: list[Any] = [item for item in made.output if item.type == "function_call"]
    assert [json.loads(call.arguments) for call in calls] == [FIRST, SECOND]
    assert made.output_text == "One moment."
    with client.responses.stream(model="x", input="Weather?", tools=tools) as stream:
        events = [*stream]
        final = stream.get_final_response()
    assert [event.sequence_number for event in events] == [*range(len(events))]
    assert [item.type for item in final.output] == [item.type for item in made.output]
    done = [e for e in events if e.type == "response.function_call_arguments.done"]
    assert [json.loads(event.arguments) for event in done] == [FIRST, SECOND]
    kinds = [e.type.removeprefix("response.") for e in events if not e.type.endswith(".delta")]
    part = ["content_part.added", "{}.done", "content_part.done"]
    call = ["output_item.added", "function_call_arguments.done", "output_item.done"]
    assert kinds == [
        *("created", "in_progress"),
        *("output_item.added", *(p.format("reasoning_text") for p in part), "output_item.done"),
        *("output_item.added", *(p.format("output_text") for p in part), "output_item.done"),
        *call,
        *call,
        "completed",
    ]
    backend.says("It rains.", RESULTS_END)
    outputs = [
        {"type": "function_call_output", "call_id": call.call_id, "output": "Rain."}
        for call in calls
    ]
    items: Any = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        *(item.model_dump() for item in made.output),
        *outputs,
    ]
    again = client.responses.create(
        model="x", input=items, tools=tools, instructions="You are kind.", store=False
    )
    assert again.output_text == "It rains."
    asked = served.model.tokenizer.decode(served.asked[-1].sequence.ids)
    assert "You are kind.\n\nBe brief." in asked
    assert asked.count("Rain.") == 2


def test_messages(scripted: tuple[Served, ScriptedBackend]) -> None:
    served, backend = scripted
    client = served.anthropic
    backend.says(SAID)
    fields: Any = {"model": "claude-x", "max_tokens": 2000, "tools": ANTHROPIC_TOOLS}
    made = client.messages.create(messages=QUESTION, **fields)
    assert made.stop_reason == "tool_use"
    assert [block.type for block in made.content] == ["thinking", "text", "tool_use", "tool_use"]
    calls: list[Any] = [block for block in made.content if block.type == "tool_use"]
    assert [call.input for call in calls] == [FIRST, SECOND]
    with client.messages.stream(messages=QUESTION, **fields) as stream:
        final = stream.get_final_message()
    assert [block.model_dump(exclude={"id"}) for block in final.content] == [
        block.model_dump(exclude={"id"}) for block in made.content
    ]
    assert final.stop_reason == "tool_use"
    assert final.usage.output_tokens == made.usage.output_tokens
    backend.says("It rains.", RESULTS_END)
    results = [
        {
            "type": "tool_result",
            "tool_use_id": call.id,
            "content": [{"type": "text", "text": "Rain."}],
        }
        for call in calls
    ]
    history: list[Any] = [*QUESTION, made.to_param(), {"role": "user", "content": results}]
    again = client.messages.create(messages=history, **fields)
    assert [getattr(block, "text", None) for block in again.content] == ["It rains."]
    asked = served.model.tokenizer.decode(served.asked[-1].sequence.ids)
    assert asked.count("Rain.") == 2
    counted = client.messages.count_tokens(
        model="x", messages=history, tools=ANTHROPIC_TOOLS
    ).input_tokens
    assert counted == again.usage.input_tokens + (again.usage.cache_read_input_tokens or 0)


def test_arguments_that_are_no_json(scripted: tuple[Served, ScriptedBackend]) -> None:
    served, backend = scripted
    backend.says(
        f"Hm.</think>\n\n<｜tool▁calls▁begin｜>{written('{city: Bern}')}<｜tool▁calls▁end｜>"
    )
    made = served.openai.chat.completions.create(model="x", messages=QUESTION, tools=CHAT_TOOLS)
    (call,) = made.choices[0].message.tool_calls or ()
    assert "Bern" in call.function.arguments  # type: ignore[union-attr]
    answer = served.anthropic.messages.create(
        model="x", max_tokens=500, messages=QUESTION, tools=ANTHROPIC_TOOLS
    )
    assert answer.content[-1].type == "tool_use"
    assert "Bern" in str(answer.content[-1].input)


# ------------------------------------------------------------------------------ as the client wants


def test_a_call_is_required(tiny: Served) -> None:
    fields: Any = {"model": "x", "max_tokens": 400, "temperature": 0}
    fields |= {"reasoning_effort": "none", "parallel_tool_calls": False}
    named = {"type": "function", "function": {"name": "closed"}}
    for choice in (named, "required"):
        tools = CHAT_TOOLS if choice == named else CHAT_TOOLS[1:]
        made = tiny.openai.chat.completions.create(
            messages=QUESTION,
            tools=tools,
            tool_choice=choice,
            **fields,  # type: ignore[arg-type]
        )
        assert made.choices[0].finish_reason == "tool_calls"
        for call in made.choices[0].message.tool_calls or ():
            assert call.function.name == "closed"  # type: ignore[union-attr]
            jsonschema.validate(json.loads(call.function.arguments), CLOSED)  # type: ignore[union-attr]
    allowed: Any = {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "required", "tools": [named]},
    }
    made = tiny.openai.chat.completions.create(
        messages=QUESTION,
        tools=CHAT_TOOLS,
        tool_choice=allowed,
        **fields,
    )
    (call,) = made.choices[0].message.tool_calls or ()
    assert call.function.name == "closed"  # type: ignore[union-attr]
    response = tiny.openai.responses.create(
        model="x",
        input="Weather?",
        tools=RESPONSE_TOOLS,
        tool_choice={"type": "function", "name": "closed"},
        parallel_tool_calls=False,
        reasoning={"effort": "none"},
        max_output_tokens=400,
        temperature=0,
    )
    assert response.output[-1].type == "function_call"
    jsonschema.validate(json.loads(response.output[-1].arguments), CLOSED)
    message = tiny.anthropic.messages.create(
        model="x",
        max_tokens=400,
        messages=QUESTION,
        tools=ANTHROPIC_TOOLS,
        thinking={"type": "disabled"},
        tool_choice={"type": "tool", "name": "closed", "disable_parallel_tool_use": True},
    )
    assert message.stop_reason == "tool_use"
    assert message.content[-1].type == "tool_use"
    jsonschema.validate(message.content[-1].input, CLOSED)


def test_an_answer_of_a_schema(tiny: Served) -> None:
    fields: Any = {"model": "x", "temperature": 1, "seed": 5, "max_tokens": 400}
    format: Any = {"type": "json_schema", "json_schema": {"name": "closed", "schema": CLOSED}}
    made = tiny.openai.chat.completions.create(messages=QUESTION, response_format=format, **fields)
    jsonschema.validate(json.loads(made.choices[0].message.content or ""), CLOSED)
    assert made.choices[0].message.reasoning_content  # type: ignore[attr-defined]
    text: Any = {"format": {"type": "json_schema", "name": "closed", "schema": CLOSED}}
    response = tiny.openai.responses.create(model="x", input="Weather?", text=text)
    jsonschema.validate(json.loads(response.output_text), CLOSED)
    config: Any = {"format": {"type": "json_schema", "schema": CLOSED}}
    message = tiny.anthropic.messages.create(
        model="x", max_tokens=400, messages=QUESTION, output_config=config
    )
    assert message.content[-1].type == "text"
    jsonschema.validate(json.loads(message.content[-1].text), CLOSED)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "'other'"),
        ({"tool_choice": {"type": "robot"}}, "tool_choice is {'type': 'robot'}"),
        ({"tool_choice": "sometimes"}, "tool_choice is 'sometimes'"),
        ({"tools": [*CHAT_TOOLS, CHAT_TOOLS[0]]}, "two tools have the name 'weather'"),
        ({"tools": [function("f", {"type": "no_such_type"})], "tool_choice": "required"}, "type"),
    ],
)
def test_impossible_tools(tiny: Served, fields: dict[str, Any], said: str) -> None:
    given: Any = {"model": "x", "messages": QUESTION, "tools": CHAT_TOOLS, **fields}
    with pytest.raises(openai.BadRequestError) as raised:
        tiny.openai.chat.completions.create(**given)
    assert said in raised.value.message
