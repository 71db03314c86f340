"""Answers held to a grammar, among others in the engine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from byte_tokenizer import write_tokenizer
from deepmnn.backends.base import F32
from deepmnn.engine.engine import Engine
from deepmnn.engine.logprobs import token_logprobs
from deepmnn.engine.sequence import Sequence
from deepmnn.errors import RequestError
from deepmnn.text.constraint import Constraint, Grammars, json_answer
from deepmnn.text.sampling_params import SamplingParams
from deepmnn.text.stream import TextStream
from deepmnn.text.tokenizer import Tokenizer
from fake_backend import FakeBackend, expected_logits

pytest.importorskip("llguidance")

EOS = 1
WIDTH = 270
SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"type": "integer", "minimum": -99, "maximum": 99},
        "b": {"enum": [1, "x"]},
    },
    "required": ["a", "b"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory: Path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(directory)
    return Tokenizer(directory)


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return Grammars(tokenizer, WIDTH, [EOS])


def make_engine(blocks: int = 200, **limits: int) -> Engine:
    backend = FakeBackend(WIDTH)
    return Engine(backend, blocks * 4, 1000, block_size=4, eos_ids=[EOS], **limits)


def run(engine: Engine) -> None:
    while engine.scheduler.busy:
        engine.step()
    assert engine.manager.free_blocks == engine.cache.blocks


def ask(
    engine: Engine,
    tokenizer: Tokenizer,
    grammars: Grammars,
    prompt: int,
    schema: dict[str, Any] = SCHEMA,
    **params: Any,
) -> Sequence:
    wanted = SamplingParams(**{"temperature": 1.0, "seed": prompt, "max_tokens": 300} | params)
    constraint = grammars.constraint(json_answer(schema), None)
    output = TextStream(tokenizer, (), None)
    return engine.submit([5, 6, prompt], wanted, output, constraint)


def document(sequence: Sequence) -> Any:
    assert sequence.output is not None
    assert sequence.finish_reason == "stop"
    return json.loads(sequence.output.take().text)


def alone(tokenizer: Tokenizer, grammars: Grammars, prompt: int, **params: Any) -> list[int]:
    engine = make_engine()
    sequence = ask(engine, tokenizer, grammars, prompt, **params)
    run(engine)
    return sequence.answer


def test_each_answer_keeps_to_its_own_grammar(tokenizer: Tokenizer, grammars: Grammars) -> None:
    """In a cache so small that sequences give way to others and are run again."""
    engine = make_engine(blocks=24, max_sequences=6, max_batch_tokens=9)
    kept = [ask(engine, tokenizer, grammars, prompt) for prompt in range(8)]
    free = engine.submit([5, 6, 7], SamplingParams(max_tokens=30))
    run(engine)
    assert sum(sequence.preemptions for sequence in kept) > 0
    for prompt, sequence in enumerate(kept):
        assert sequence.answer == alone(tokenizer, grammars, prompt)
        found = document(sequence)
        assert set(found) == {"a", "b"}
        assert -99 <= found["a"] <= 99
        assert found["b"] in (1, "x")
    untouched = make_engine()
    same = untouched.submit([5, 6, 7], SamplingParams(max_tokens=30))
    run(untouched)
    assert free.answer == same.answer


def test_siblings_keep_to_it_each_for_itself(tokenizer: Tokenizer, grammars: Grammars) -> None:
    engine = make_engine()
    first = ask(engine, tokenizer, grammars, 3)
    engine.step()
    engine.step()
    others = [first.sibling(number, TextStream(tokenizer, (), None)) for number in (1, 2)]
    for sequence in others:
        engine.scheduler.add(sequence)
    run(engine)
    assert len({tuple(sequence.answer) for sequence in (first, *others)}) == 3
    for number, sequence in enumerate((first, *others)):
        assert sequence.answer == alone(tokenizer, grammars, 3, seed=3 + number)
        document(sequence)


def test_greedy_takes_the_most_likely_that_may_come(
    tokenizer: Tokenizer, grammars: Grammars
) -> None:
    engine = make_engine()
    constraint = grammars.constraint(json_answer({"type": "boolean"}), None)
    sequence = engine.submit([5, 6, 3], SamplingParams(), None, constraint)
    run(engine)
    may = re.compile("[ \n]{0,4}(t|tr|tru|true|f|fa|fal|fals|false)?")
    for count, token in enumerate(sequence.answer):
        logits = expected_logits(sequence.ids[: 3 + count], WIDTH)
        texts = [tokenizer.decode([*sequence.answer[:count], t]) for t in range(3, 259)]
        best = max(
            (t for t, text in enumerate(texts, 3) if may.fullmatch(text)), key=lambda t: logits[t]
        )
        assert token == best
    assert tokenizer.decode(sequence.answer).strip() in ("true", "false")


def test_an_answer_ends_without_an_end_token(tokenizer: Tokenizer, grammars: Grammars) -> None:
    """The last brace ends it, and ignore_eos does not lead beyond."""
    for ignore_eos in (False, True):
        engine = make_engine()
        sequence = ask(engine, tokenizer, grammars, 4, ignore_eos=ignore_eos)
        run(engine)
        document(sequence)
        assert sequence.answer[-1] == tokenizer.encode("}")[-1]


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_an_end_token_ends_what_could_go_on(
    tokenizer: Tokenizer, grammars: Grammars, ignore_eos: bool
) -> None:
    engine = make_engine()
    made = [
        ask(
            engine, tokenizer, grammars, p, {"type": "integer", "minimum": 1}, ignore_eos=ignore_eos
        )
        for p in range(6)
    ]
    run(engine)
    for sequence in made:
        assert isinstance(document(sequence), int)
        assert sequence.answer.index(EOS) == len(sequence.answer) - 1


def test_an_answer_that_is_cut(tokenizer: Tokenizer, grammars: Grammars) -> None:
    engine = make_engine()
    sequence = ask(engine, tokenizer, grammars, 4, max_tokens=3)
    run(engine)
    assert (sequence.finish_reason, len(sequence.answer)) == ("length", 3)


def test_log_probabilities_are_the_models_own(tokenizer: Tokenizer, grammars: Grammars) -> None:
    engine = make_engine()
    params = {"logprobs": 3, "presence_penalty": 1.5}
    sequence = ask(engine, tokenizer, grammars, 5, **params)
    run(engine)
    ids = sequence.ids[:3]
    for token, told in zip(sequence.answer, sequence.logprobs, strict=True):
        assert told == token_logprobs(expected_logits(ids, WIDTH), token, 3)
        ids.append(token)
    document(sequence)


class Broken(Constraint):
    """Fails when its third token is drawn, or taken."""

    def __init__(self, where: str, sound: Constraint) -> None:
        self.__dict__.update(vars(sound))
        self.where, self.taken = where, 0

    def mask(self, logits: F32) -> F32:
        self._fail("mask")
        return super().mask(logits)

    def accept(self, token: int) -> None:
        self._fail("accept")
        self.taken += 1
        super().accept(token)

    def _fail(self, where: str) -> None:
        if (self.where, self.taken) == (where, 2):
            raise RequestError("too complex", "less of it")


@pytest.mark.parametrize("where", ["mask", "accept"])
def test_an_error_ends_its_own_answer_alone(
    tokenizer: Tokenizer, grammars: Grammars, where: str
) -> None:
    engine = make_engine()
    sound = [ask(engine, tokenizer, grammars, prompt) for prompt in (1, 2)]
    constraint = grammars.constraint(json_answer(SCHEMA), None)
    broken = engine.submit([5, 6, 9], SamplingParams(), None, Broken(where, constraint))
    run(engine)
    assert broken.finish_reason == "error"
    assert "too complex" in str(broken.error)
    for prompt, sequence in zip((1, 2), sound, strict=True):
        assert sequence.answer == alone(tokenizer, grammars, prompt)


def test_where_nothing_may_come(tokenizer: Tokenizer, grammars: Grammars) -> None:
    """A grammar whose tokens the model gives no probability."""
    constraint = grammars.constraint(json_answer({"type": "boolean"}), None)
    engine = make_engine()
    sequence = engine.submit([5], SamplingParams(), None, constraint)
    constraint.mask = lambda logits: np.full_like(logits, -np.inf)  # type: ignore[method-assign]
    run(engine)
    assert sequence.finish_reason == "error"
    assert isinstance(sequence.error, RequestError)
