"""A real model's answers to random schemas, judged by the jsonschema package."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

import deepmnn
from deepmnn import LLM, SamplingParams
from deepmnn.errors import RequestError
from json_schemas import random_schema

pytest.importorskip("llguidance")

FORMATS = jsonschema.FormatChecker(["uuid", "ipv4"])
TEXTS = ["What is 2 + 2?", "Hello", '{"a": 1}', "1, 2, 3,", "日本"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield deepmnn.load("tiny-r1")


def question(rng: random.Random) -> list[dict[str, str]]:
    """Whose answer begins with reasoning."""
    said = f"What is {rng.randrange(100)} {rng.choice('+-*')} {rng.randrange(100)}?"
    return [{"role": "user", "content": said}]


def failures(model: LLM, seed: int, count: int) -> tuple[list[str], Counter[str]]:
    """(what is wrong with answers that ended, how many ended how)."""
    rng = random.Random(seed)
    schemas = [random_schema(rng) for _ in range(count)]
    prompts: list[Any] = [
        question(rng) if rng.random() < 0.3 else rng.choice(TEXTS) for _ in schemas
    ]
    params = [
        SamplingParams(temperature=1.0, seed=seed + number, max_tokens=700, json_schema=schema)
        for number, schema in enumerate(schemas)
    ]
    wrong = []
    answers = model.generate(prompts, params)
    for answer, schema in zip(answers, schemas, strict=True):
        if answer.finish_reason == "stop":
            try:
                found = json.loads(answer.text)
                jsonschema.validate(
                    found, schema, jsonschema.Draft202012Validator, format_checker=FORMATS
                )
            except (ValueError, jsonschema.ValidationError) as error:
                wrong.append(f"{answer.text!r} of {json.dumps(schema)}: {error}")
    return wrong, Counter(answer.finish_reason for answer in answers)


def test_some_answers(model: LLM) -> None:
    wrong, ended = failures(model, 1, 25)
    assert not wrong
    assert ended["stop"] >= 22


@pytest.mark.slow
def test_a_thousand_answers(model: LLM) -> None:
    wrong, ended = failures(model, 2, 1000)
    print(ended)
    assert not wrong
    assert ended.keys() <= {"stop", "length"}
    assert ended["stop"] > 950


def test_the_reasoning_is_untouched(model: LLM) -> None:
    rng = random.Random(3)
    prompts = [question(rng) for _ in range(8)]
    free = model.generate(prompts, SamplingParams(max_tokens=400))
    kept = model.generate(prompts, SamplingParams(max_tokens=400, json_schema={"const": "held"}))
    close = model.tokenizer.token_id("</think>")
    for alone, held in zip(free, kept, strict=True):
        end = alone.ids.index(close)
        assert held.ids[: end + 1] == alone.ids[: end + 1]
        assert held.reasoning == alone.reasoning != ""
        assert json.loads(held.text) == "held"
        assert alone.text != held.text


def test_several_answers_to_a_prompt(model: LLM) -> None:
    params = SamplingParams(
        temperature=1.0, seed=5, n=4, max_tokens=60, json_schema={"enum": list(range(1000))}
    )
    answers: Any = model.generate("Say", params)
    assert len({json.loads(answer.text) for answer in answers}) > 1


def test_a_schema_is_refused_before_any_work(model: LLM) -> None:
    for schema in ({"type": "what"}, {"$ref": "https://example.com/schema"}):
        with pytest.raises(RequestError, match="no answer can be held"):
            model.stream("Say", SamplingParams(json_schema=schema))
    assert not model.engine.scheduler.busy
