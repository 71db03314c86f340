"""Answers of a loaded model are the same whoever guesses: text, grammar, stop strings, several."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import deepmnn
from byte_tokenizer import write_tokenizer
from deepmnn import LLM, LoadOptions, SamplingParams
from deepmnn.conversion.convert import convert
from deepmnn.engine.completion import Completion
from deepmnn.engine.engine import Engine
from deepmnn.engine.speculation.depth import Fixed
from deepmnn.errors import DeepmnnError, RequestError
from tiny_artifact import write_config
from tiny_llm import IDS, load

PROMPTS: list[Any] = [
    IDS,
    [7, 8, 9] * 8,
    "ab ab ab ab ab",
    [{"role": "user", "content": "What is 2 + 2?"}],
]
SCHEMA = {
    "type": "object",
    "properties": {"names": {"type": "array", "items": {"enum": ["anna", "anne"]}, "minItems": 3}},
    "required": ["names"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("speculation")
    write_config(directory / "source")
    convert(directory / "source", directory / "model", quant="fp32", random_weights=True, seed=3)
    return directory / "model"


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of another seed: the same vocabulary, and it says something else."""
    directory = tmp_path_factory.mktemp("other")
    write_config(directory / "source", hidden_size=32)
    convert(directory / "source", directory / "model", quant="fp32", random_weights=True, seed=4)
    return directory / "model"


def always(model: LLM) -> LLM:
    """Guesses whether it pays or not."""

    def change(engine: Engine) -> None:
        assert engine.speculation is not None
        engine.speculation.depth = Fixed(8)

    model.driver.run(change)
    return model


def said(made: list[Completion]) -> list[dict[str, Any]]:
    """What an answer is, without how it came."""
    how = ("prefill_seconds", "decode_seconds", "queue_seconds", "tokens_per_second")
    how += ("drafted_tokens", "accepted_tokens", "cached_tokens")
    found = [{k: v for k, v in asdict(each).items() if k not in how} for each in made]
    for each in found:
        each["logprobs"] = [logprob["id"] for logprob in each["logprobs"]]
    return found


def all_answers(model: LLM, params: SamplingParams) -> list[Completion]:
    made = model.generate(PROMPTS, params)
    return [each for one in made for each in (one if isinstance(one, list) else [one])]


@pytest.mark.parametrize("who", ["ngram", "a model", "itself"])
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(max_tokens=60),
        SamplingParams(max_tokens=40, temperature=1.0, seed=5, n=3, top_p=0.9, logprobs=1),
        SamplingParams(max_tokens=40, frequency_penalty=0.4, repetition_penalty=1.1),
        SamplingParams(max_tokens=60, stop=("a", "zz")),
        SamplingParams(max_tokens=80, json_schema=SCHEMA, temperature=0.7, seed=1),
    ],
    ids=["greedy", "sampled", "penalties", "stop", "grammar"],
)
def test_answers_do_not_depend_on_who_guesses(
    artifact: Path, other: Path, who: str, params: SamplingParams
) -> None:
    plain = load(artifact, "reference", speculate="off")
    name = {"ngram": "ngram", "a model": str(other), "itself": str(artifact)}[who]
    model = always(load(artifact, "reference", speculate=name))
    if who != "ngram":
        model.driver.run(lambda engine: setattr(engine.speculation, "lookup", None))
    expected, made = all_answers(plain, params), all_answers(model, params)
    assert said(made) == said(expected)
    assert all(each.drafted_tokens == 0 for each in expected)
    drafted = sum(each.drafted_tokens for each in made)
    accepted = sum(each.accepted_tokens for each in made)
    assert drafted > 0
    if who == "itself" and params.temperature == 0.0 and not params.has_penalty:
        assert accepted > 0.9 * drafted - 8 * len(made), "but for what the end cuts off"


def test_streams_have_several_tokens_in_a_chunk(artifact: Path) -> None:
    model = always(load(artifact, "cpu", speculate=str(artifact), threads=1))
    params = SamplingParams(max_tokens=40, ignore_eos=True, logprobs=0)
    chunks = list(model.stream(IDS, params))
    assert max(len(chunk.ids) for chunk in chunks) > 1
    assert all(len(chunk.logprobs) == len(chunk.ids) for chunk in chunks)
    assert sum(len(chunk.ids) for chunk in chunks) == 40
    drafted = [chunk.drafted_tokens for chunk in chunks]
    assert drafted == sorted(drafted)
    assert 0 < chunks[-1].accepted_tokens <= drafted[-1]


def test_off_is_off_and_auto_looks_up(artifact: Path) -> None:
    engine = load(artifact, "cpu", speculate="off").engine
    assert engine.speculation is None
    for wanted in (None, "auto"):
        speculation = load(artifact, "cpu", speculate=wanted).engine.speculation
        assert speculation is not None
        assert speculation.lookup is not None
        assert speculation.model is None
        assert speculation.lookup.most == 8
    speculation = load(artifact, "cpu", speculate="ngram", speculate_tokens=3).engine.speculation
    assert speculation is not None
    assert speculation.lookup is not None
    assert speculation.lookup.most == 3


def test_a_model_without_a_draft_part(artifact: Path) -> None:
    with pytest.raises(
        RequestError, match="no draft part that is loaded; expected speculate 'auto'"
    ):
        deepmnn.load(artifact, speculate="mtp")


def test_a_word_that_is_mistyped(artifact: Path) -> None:
    with pytest.raises(DeepmnnError) as told:
        deepmnn.load(artifact, speculate="ngrams")
    assert str(told.value).startswith("speculate: ngrams is missing")
    assert "expected 'auto', 'mtp', 'ngram', 'off' or a model: " in str(told.value)
    assert told.value.shell.startswith("--speculate: ngrams is missing")
    assert "expected auto, mtp, ngram, off or a model: " in told.value.shell


def test_a_model_of_another_vocabulary(artifact: Path, tmp_path: Path) -> None:
    write_config(tmp_path / "source", tokenizer=False, vocab_size=280)
    write_tokenizer(tmp_path / "source")
    tokenizer = tmp_path / "source" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace("<think>", "<thunk>"))
    convert(tmp_path / "source", tmp_path / "model", quant="fp32", random_weights=True)
    with pytest.raises(RequestError, match="the vocabulary of model is another: 2 tokens differ"):
        deepmnn.load(artifact, speculate=tmp_path / "model")
    (tmp_path / "bare").mkdir()
    write_config(tmp_path / "bare" / "source", tokenizer=False, vocab_size=280)
    convert(tmp_path / "bare" / "source", tmp_path / "bare" / "model", random_weights=True)
    with pytest.raises(RequestError, match=r"is another: 280 tokens; expected .* 271 tokens"):
        deepmnn.load(artifact, speculate=tmp_path / "bare" / "model")


def test_a_second_model_beside_a_budget(artifact: Path) -> None:
    with pytest.raises(RequestError, match="a second model beside a budget of memory"):
        LoadOptions(speculate=artifact, memory="1GiB")
    LoadOptions(speculate="ngram", memory="1GiB")
