"""/v1/completions, asked by OpenAI's own client, against what the engine says by itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from tokenizers import AddedToken

import deepmnn
from deepmnn import SamplingParams
from deepmnn.cli.options import bundled
from deepmnn.errors import RequestError
from deepmnn.text.fim import fim_prompt
from deepmnn.text.tokenizer import Tokenizer
from http_server import Served, serving

TEXTS = ["The answer is", "Once upon a time"]
GREEDY: dict[str, Any] = {"model": "any", "temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(deepmnn.load(bundled(), threads=1)) as server:
        yield server


@pytest.fixture(scope="module")
def client(served: Served) -> openai.OpenAI:
    return served.openai


def collected(stream: Any) -> list[str]:
    texts: dict[int, str] = {}
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
    return [texts[index] for index in sorted(texts)]


def test_prompts_of_every_kind(served: Served, client: openai.OpenAI) -> None:
    expected = served.model.generate(TEXTS, SamplingParams(max_tokens=12, split_reasoning=False))
    ids = [served.model.encode(text) for text in TEXTS]
    for prompt in (TEXTS, ids):
        made = client.completions.create(prompt=prompt, **GREEDY)
        assert [choice.text for choice in made.choices] == [each.text for each in expected]
        assert made.usage
        assert made.usage.prompt_tokens == sum(each.prompt_tokens for each in expected)
        assert made.usage.completion_tokens == 24
    for one in (TEXTS[0], ids[0]):
        made = client.completions.create(prompt=one, **GREEDY)
        assert [choice.text for choice in made.choices] == [expected[0].text]
    assert client.completions.create(model="any", prompt="Hi").usage.completion_tokens <= 16  # type: ignore[union-attr]


def test_streams_of_several_answers(client: openai.OpenAI) -> None:
    fields = {**GREEDY, "n": 2, "echo": True}
    whole = client.completions.create(prompt=TEXTS, **fields)
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    assert [choice.text.startswith(TEXTS[0]) for choice in whole.choices] == [
        True,
        True,
        False,
        False,
    ]
    options = {"include_usage": True}
    chunks = [
        *client.completions.create(prompt=TEXTS, stream=True, stream_options=options, **fields)
    ]
    assert collected(chunks) == [choice.text for choice in whole.choices]
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens  # type: ignore[union-attr]


def test_reasoning_stays_in_the_text(served: Served, client: openai.OpenAI) -> None:
    chat = served.model.tokenizer.apply_chat_template([{"role": "user", "content": "1 + 1?"}])
    made = client.completions.create(prompt=chat, **{**GREEDY, "max_tokens": 400})
    expected = served.model.generate([{"role": "user", "content": "1 + 1?"}])
    assert made.choices[0].text.endswith(f"</think>\n\n{expected.text}")
    assert expected.reasoning in made.choices[0].text


def test_logprobs(served: Served, client: openai.OpenAI) -> None:
    expected = served.model.generate(
        TEXTS[0], SamplingParams(max_tokens=12, logprobs=2, split_reasoning=False)
    )
    made = client.completions.create(prompt=TEXTS[0], logprobs=2, **GREEDY).choices[0]
    found = made.logprobs
    assert found
    assert found.tokens
    assert "".join(found.tokens) == made.text
    assert found.token_logprobs == [each.logprob for each in expected.logprobs]
    assert found.text_offset == [len("".join(found.tokens[:i])) for i in range(len(found.tokens))]
    streamed = [
        token
        for chunk in client.completions.create(prompt=TEXTS[0], logprobs=2, stream=True, **GREEDY)
        if chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.tokens or ()
    ]
    assert streamed == found.tokens


def test_filling_in_the_middle(served: Served, client: openai.OpenAI) -> None:
    tokenizer = Tokenizer(served.model.text_files)
    marks = ["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"]
    with pytest.raises(RequestError, match="no tokens for filling in the middle"):
        fim_prompt(tokenizer, "a", "b")
    tokenizer.library.add_tokens([AddedToken(mark) for mark in marks])
    assert fim_prompt(tokenizer, "a", "b") == "<｜fim▁begin｜>a<｜fim▁hole｜>b<｜fim▁end｜>"
    with pytest.raises(openai.BadRequestError, match="there is a suffix"):
        client.completions.create(prompt="a", suffix="b", **GREEDY)
    assert client.completions.create(prompt="a", suffix="", **GREEDY)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"prompt": []}, "prompt is []"),
        ({"prompt": 5}, "prompt is 5"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [99999]}, "99999"),
        ({"prompt": ["a", 5]}, "prompt"),
        ({"prompt": ["a", "b"], "n": 65}, "at most 128 answers"),
        ({"best_of": 3}, "best_of is 3"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"logprobs": 21}, "logprobs is 21"),
    ],
)
def test_impossible_values(client: openai.OpenAI, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.completions.create(**{**GREEDY, "prompt": "a", **fields})
    assert said in raised.value.message
    assert "expected" in raised.value.message


def test_who_leaves_ends_all_answers(served: Served, client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"max_tokens": 4000, "extra_body": {"ignore_eos": True}}
    stream = client.completions.create(model="any", prompt=TEXTS, n=8, stream=True, **fields)
    next(iter(stream))
    stream.close()
    served.until_idle()
    assert {each.sequence.finish_reason for each in served.asked[-16:]} == {"cancelled"}
