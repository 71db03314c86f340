"""/v1/responses, asked by OpenAI's own client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

import deepmnn
from deepmnn import SamplingParams
from deepmnn.cli.options import bundled
from http_server import Served, serving

QUESTION = "What is 12 + 30?"
MESSAGES = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(deepmnn.load(bundled(), threads=1)) as server:
        yield server


def create(served: Served, **fields: Any) -> Any:
    return served.openai.responses.create(**{"model": "any", "input": QUESTION, **fields})


def test_a_response_is_the_engines_answer(served: Served) -> None:
    expected = served.model.generate(MESSAGES)
    made = create(served, temperature=0, instructions=None, metadata={"a": "b"})
    reasoning, message = made.output
    assert reasoning.content[0].text == expected.reasoning
    assert made.output_text == message.content[0].text == expected.text
    assert (made.status, made.model, made.store) == ("completed", "tiny-r1", False)
    assert made.metadata == {"a": "b"}
    assert made.usage.input_tokens == expected.prompt_tokens
    assert made.usage.output_tokens == expected.completion_tokens
    assert made.usage.output_tokens_details.reasoning_tokens == expected.reasoning_tokens
    assert made.usage.total_tokens == made.usage.input_tokens + made.usage.output_tokens


def test_a_stream_adds_up_to_the_response(served: Served) -> None:
    whole = create(served, temperature=0)
    events = [*create(served, temperature=0, stream=True)]
    assert [event.sequence_number for event in events] == [*range(len(events))]
    assert [event.type for event in events[:4]] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert events[-1].type == "response.completed"
    final = events[-1].response
    assert final.id == events[0].response.id
    assert final.usage == whole.usage.model_copy(
        update={"input_tokens_details": final.usage.input_tokens_details}
    )
    for kind, item in zip(("reasoning_text", "output_text"), final.output, strict=True):
        deltas = [e for e in events if e.type == f"response.{kind}.delta"]
        (done,) = [e for e in events if e.type == f"response.{kind}.done"]
        assert "".join(event.delta for event in deltas) == done.text == item.content[0].text
        assert {event.item_id for event in deltas} == {item.id}
    assert final.output_text == whole.output_text


def test_a_response_that_is_cut(served: Served) -> None:
    made = create(served, max_output_tokens=5)
    assert (made.status, made.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert made.output[-1].status == "incomplete"
    last = [*create(served, max_output_tokens=5, stream=True)][-1]
    assert last.type == "response.incomplete"
    assert last.response.usage.output_tokens == 5


def test_what_a_client_sends_back(served: Served) -> None:
    first = create(served, temperature=0)
    history = [*MESSAGES, *first.output, {"role": "user", "content": "What is 2 + 2?"}]
    chat = [
        *MESSAGES,
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "What is 2 + 2?"},
    ]
    made = create(served, input=history, temperature=0)
    assert made.output_text == served.model.generate(chat).text


def test_what_codex_sends(served: Served) -> None:
    """Its twelve fields, and items and tools that this server does not know."""
    made = create(
        served,
        instructions="Be brief.",
        input=[
            {"type": "message", "role": "developer", "content": [text("Sandbox.")]},
            {"type": "message", "role": "user", "content": [text(QUESTION)]},
            {"type": "no_such_item", "x": 1},
        ],
        tools=[
            {"type": "function", "name": "shell", "strict": False, "parameters": {}},
            {"type": "web_search", "external_web_access": True},
            {"type": "custom", "name": "apply_patch", "format": {"type": "grammar"}},
        ],
        tool_choice="auto",
        parallel_tool_calls=False,
        reasoning={"effort": "medium", "summary": "auto"},
        store=False,
        stream=True,
        include=["reasoning.encrypted_content"],
        prompt_cache_key="0",
        max_output_tokens=10,
        extra_body={"client_metadata": {"a": "b"}},
    )
    assert [*made][-1].response.reasoning.effort == "medium"
    asked = served.model.tokenizer.decode(served.asked[-1].sequence.ids)
    assert "Be brief.\n\nSandbox." in asked
    assert "shell" in asked
    assert "web_search" not in asked


def text(words: str) -> dict[str, str]:
    return {"type": "input_text", "text": words}


def test_log_probabilities(served: Served) -> None:
    include = ["message.output_text.logprobs"]
    fields = {"temperature": 0, "include": include, "top_logprobs": 2}
    made = create(served, **fields).output[-1].content[0]
    params = SamplingParams(logprobs=2)
    expected = served.model.generate(MESSAGES, params)
    text_tokens = expected.logprobs[expected.reasoning_tokens :]
    assert [each.logprob for each in made.logprobs] == [each.logprob for each in text_tokens]
    assert made.text in "".join(each.token for each in made.logprobs)
    streamed = [
        token
        for event in create(served, **fields, stream=True)
        if event.type == "response.output_text.delta"
        for token in event.logprobs
    ]
    assert [each.token for each in streamed] == [each.token for each in made.logprobs[:-1]]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"input": []}, "the conversation is []"),
        ({"input": 5}, "input is 5"),
        ({"input": [{"role": "robot", "content": "x"}]}, "'robot'"),
        ({"input": [{"role": "user"}]}, "item 0 of input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input_image"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "call_id"),
        ({"input": [{"type": "item_reference", "id": "rs_1"}]}, "keeps nothing"),
        ({"previous_response_id": "resp_1"}, "keeps nothing"),
        ({"conversation": "conv_1"}, "keeps nothing"),
        ({"background": True}, "background is true"),
        ({"max_output_tokens": 0}, "max_output_tokens is 0"),
        ({"text": {"format": {"type": "xml"}}}, "text.format"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort is 'huge'"),
    ],
)
def test_impossible_values(served: Served, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        create(served, **fields)
    assert said in raised.value.message
    assert "expected" in raised.value.message


def test_nothing_is_kept(served: Served) -> None:
    made = create(served, max_output_tokens=2, store=True)
    for call in (served.openai.responses.retrieve, served.openai.responses.delete):
        with pytest.raises(openai.NotFoundError, match="keeps none"):
            call(made.id)
