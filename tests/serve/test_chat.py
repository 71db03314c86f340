"""/v1/chat/completions, asked by OpenAI's own client, against what the engine says by itself."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import openai
import pytest

import deepmnn
from deepmnn import SamplingParams
from deepmnn.cli.options import bundled
from deepmnn.serve.protocols.chat import ChatBody, ChatRequest
from http_server import Served, serving

QUESTION: list[Any] = [{"role": "user", "content": "What is 12 + 30?"}]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(deepmnn.load(bundled(), threads=1, max_sequences=16)) as server:
        yield server


@pytest.fixture(scope="module")
def client(served: Served) -> openai.OpenAI:
    return served.openai


def create(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(**{"model": "any", "messages": QUESTION, **fields})


def collected(stream: Any) -> list[dict[str, Any]]:
    """What the answers of a stream add up to."""
    answers: dict[int, dict[str, Any]] = {}
    for chunk in stream:
        for choice in chunk.choices:
            found = answers.setdefault(choice.index, {"text": "", "reasoning": "", "calls": []})
            delta = choice.delta
            found["text"] += delta.content or ""
            found["reasoning"] += getattr(delta, "reasoning_content", None) or ""
            for call in delta.tool_calls or ():
                if call.index == len(found["calls"]):
                    found["calls"].append({"id": call.id, "name": call.function.name, "json": ""})
                found["calls"][call.index]["json"] += call.function.arguments
            found["finish"] = choice.finish_reason
    return [answers[index] for index in sorted(answers)]


# ------------------------------------------------------------------------------ answers


def test_an_answer_is_that_of_the_engine(served: Served, client: openai.OpenAI) -> None:
    expected = served.model.generate(QUESTION)
    answer = create(client, temperature=0)
    (choice,) = answer.choices
    assert choice.message.content == expected.text
    assert choice.message.reasoning_content == expected.reasoning
    assert choice.message.reasoning == expected.reasoning
    assert choice.finish_reason == "stop"
    assert answer.model == "tiny-r1"
    usage = answer.usage
    assert usage.prompt_tokens == expected.prompt_tokens
    assert usage.completion_tokens == expected.completion_tokens
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 0 < usage.completion_tokens_details.reasoning_tokens < usage.completion_tokens
    cached = usage.prompt_tokens_details.cached_tokens
    assert usage.prompt_cache_hit_tokens == cached
    assert usage.prompt_cache_hit_tokens + usage.prompt_cache_miss_tokens == usage.prompt_tokens
    assert answer.timings["predicted_n"] == usage.completion_tokens
    assert answer.timings["predicted_ms"] > 0


def test_a_stream_adds_up_to_the_answer(client: openai.OpenAI) -> None:
    whole = create(client, temperature=0, n=2, max_tokens=30)
    options = {"include_usage": True}
    chunks = [
        *create(client, temperature=0, n=2, max_tokens=30, stream=True, stream_options=options)
    ]
    for choice, made in zip(whole.choices, collected(chunks), strict=True):
        assert made["text"] == choice.message.content
        assert made["reasoning"] == choice.message.reasoning_content
        assert made["finish"] == choice.finish_reason == "length"
    first, last = chunks[0], chunks[-1]
    assert first.choices[0].delta.role == "assistant"
    assert {chunk.id for chunk in chunks} == {first.id}
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert not last.choices
    assert last.usage.completion_tokens == whole.usage.completion_tokens == 60


def test_usage_in_every_event(client: openai.OpenAI) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = [*create(client, temperature=0, max_tokens=5, stream=True, stream_options=options)]
    assert [chunk.usage.completion_tokens for chunk in chunks] == [1, 1, 2, 3, 4, 5, 5, 5]
    assert all(chunk.usage is None for chunk in create(client, max_tokens=2, stream=True))


def test_sampling_is_that_of_the_engine(served: Served, client: openai.OpenAI) -> None:
    wanted = {"temperature": 2, "top_p": 0.999, "seed": 7, "frequency_penalty": 2}
    extra = {"top_k": 50, "min_p": 1e-9, "repetition_penalty": 2}
    params = SamplingParams(**wanted, **extra, n=3, max_tokens=20)
    expected = served.model.generate(QUESTION, params)
    answer = create(client, **wanted, extra_body=extra, n=3, max_completion_tokens=20)
    assert [c.message.reasoning_content for c in answer.choices] == [e.reasoning for e in expected]
    assert len({c.message.reasoning_content for c in answer.choices}) > 1


def test_what_was_cached_is_counted(served: Served, client: openai.OpenAI) -> None:
    system = {"role": "system", "content": "Add the numbers, one place after the other. " * 9}
    for _ in range(2):
        usage = create(client, messages=[system, *QUESTION], max_tokens=2).usage
    cached = usage.prompt_tokens_details.cached_tokens
    assert 0 < cached == served.asked[-1].sequence.cached_tokens < usage.prompt_tokens
    assert usage.prompt_cache_miss_tokens == usage.prompt_tokens - cached


def test_what_others_write_for_off(client: openai.OpenAI) -> None:
    greedy = create(client, temperature=0, max_tokens=20).choices[0].message
    off = {"top_k": -1, "seed": -1}
    assert create(client, top_p=0, max_tokens=20, extra_body=off).choices[0].message == greedy
    nulls = dict.fromkeys(("stop", "n", "seed", "top_p", "tools", "logprobs", "max_tokens"))
    ignored = {"user": "me", "metadata": {"a": "b"}, "store": True, "no_such_field": [1]}
    answer = create(client, temperature=0, max_completion_tokens=20, extra_body=nulls | ignored)
    assert answer.choices[0].message == greedy


def test_stop(client: openai.OpenAI) -> None:
    whole = create(client, temperature=0).choices[0].message
    for stop in ("Tens", ["nowhere", "Tens"]):
        answer = create(client, temperature=0, stop=stop).choices[0]
        assert answer.message.reasoning_content == whole.reasoning_content.split("Tens")[0].rstrip()
        assert answer.finish_reason == "stop"


def test_logprobs(served: Served, client: openai.OpenAI) -> None:
    expected = served.model.generate(QUESTION, SamplingParams(max_tokens=8, logprobs=3))
    fields = {"temperature": 0, "max_tokens": 8, "logprobs": True, "top_logprobs": 3}
    whole = create(client, **fields).choices[0].logprobs.content
    parts = [
        token
        for chunk in create(client, **fields, stream=True)
        if chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content
    ]
    assert parts == whole
    tokenizer = served.model.tokenizer
    for made, each in zip(whole, expected.logprobs, strict=True):
        assert made.token == tokenizer.decode([each.id])
        assert bytes(made.bytes).decode() == made.token
        assert math.isclose(made.logprob, each.logprob)
        assert [top.logprob for top in made.top_logprobs] == [*each.top.values()]
    bare = create(client, max_tokens=2, logprobs=True).choices[0].logprobs.content
    assert [token.top_logprobs for token in bare] == [[], []]


# ------------------------------------------------------------------------------ what is asked


def test_history_and_roles(served: Served) -> None:
    def text(*messages: dict[str, Any], **fields: Any) -> str:
        chat = ChatRequest.read({"messages": [*messages], **fields}).prompt()
        ids = served.model.encode(chat)
        return served.model.tokenizer.decode(ids, skip_special_tokens=False)

    user = {"role": "user", "content": "2 + 2?"}
    parts = {"role": "user", "content": [{"type": "text", "text": "2 + 2?"}]}
    said = {"role": "assistant", "content": "4", "reasoning_content": "Hm."}
    assert text(user) == text(parts)
    assert text(user, said, user) == text(user, {**said, "reasoning": "Hm."}, user)
    assert text({"role": "developer", "content": "Be brief."}, user) == text(
        {"role": "system", "content": "Be brief."}, user
    )
    two = [{"role": "system", "content": word} for word in ("One.", "Two.")]
    assert "One.\n\nTwo." in text(*two, user)


@pytest.mark.parametrize(
    "switch",
    [
        {"thinking": {"type": "disabled"}},
        {"reasoning_effort": "none"},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"chat_template_kwargs": {"thinking": False}, "reasoning_effort": "high"},
    ],
)
def test_thinking_is_switched_off(client: openai.OpenAI, switch: dict[str, Any]) -> None:
    message = create(client, temperature=0, max_tokens=10, extra_body=switch).choices[0].message
    assert message.content
    assert not hasattr(message, "reasoning_content")


def test_reasoning_is_left_out(client: openai.OpenAI) -> None:
    extra = {"include_reasoning": False}
    message = create(client, temperature=0, extra_body=extra).choices[0].message
    assert not hasattr(message, "reasoning_content")
    (made,) = collected(create(client, temperature=0, extra_body=extra, stream=True))
    assert made["reasoning"] == ""
    assert made["text"] == message.content


def test_without_http(served: Served) -> None:
    """As a batch of requests from a file is answered."""
    model = served.model
    asked = ChatRequest.read({"messages": QUESTION, "temperature": 0, "n": 2})
    body = ChatBody(asked, "tiny-r1", model.tokenizer)
    for chunk in model.stream(asked.prompt(), asked.params(model.generation_config.params)):
        body.add(chunk)
    made = body.body()
    expected = model.generate(QUESTION)
    assert [choice["message"]["content"] for choice in made["choices"]] == [expected.text] * 2
    assert openai.types.chat.ChatCompletion.model_validate(made, strict=True)
    assert json.dumps(made)


# ------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"messages": []}, "messages is []"),
        ({"messages": [{"role": "robot"}]}, "messages[0].role is 'robot'"),
        ({"temperature": 3}, "temperature is 3"),
        ({"temperature": "warm"}, "temperature is 'warm'"),
        ({"n": 129}, "n is 129"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs is 21"),
        ({"top_logprobs": 2}, "top_logprobs is 2 without logprobs"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"stop": ["x"] * 17}, "stop is ["),
        ({"stop": 5}, "stop is 5; expected text or a list"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"tools": [{"type": "web_search"}]}, "tool 0 is"),
        ({"tool_choice": "required"}, "there are no tools"),
        ({"extra_body": {"chat_template_kwargs": {"messages": []}}}, "'messages'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "message 0"),
        ({"messages": [{"role": "user", "content": "x " * 9000}]}, "tokens"),
        ({"response_format": {"type": "xml"}}, "response_format"),
    ],
)
def test_impossible_values(client: openai.OpenAI, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        create(client, **fields)
    assert said in raised.value.message
    assert "expected" in raised.value.message
