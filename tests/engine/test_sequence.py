"""Several tokens at once, as guessing ahead gives them, end an answer where one by one would."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from byte_tokenizer import write_tokenizer
from deepmnn.engine.sequence import Sequence
from deepmnn.text.sampling_params import SamplingParams
from deepmnn.text.stream import TextStream
from deepmnn.text.tokenizer import Tokenizer

EOS = 1


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory: Path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(directory)
    return Tokenizer(directory)


def sequence(
    tokenizer: Tokenizer | None,
    room: int = 100,
    stop: tuple[str, ...] = (),
    ignore_eos: bool = False,
) -> Sequence:
    return Sequence(
        [7, 8],
        params=SamplingParams(ignore_eos=ignore_eos),
        limit=2 + room,
        eos_ids=frozenset({EOS}),
        output=TextStream(tokenizer, stop, False) if tokenizer else None,
    )


def text_of(made: Sequence) -> str:
    assert made.output
    return "".join(made.output.take()[:2])


def test_a_stop_string_inside_the_list(tokenizer: Tokenizer) -> None:
    made = sequence(tokenizer, stop=("cd",))
    ids = tokenizer.encode("abcdefg", add_special_tokens=False)
    made.accept(ids[:3])
    assert made.finish_reason is None
    made.accept(ids[3:])
    assert (made.finish_reason, made.answer, text_of(made)) == ("stop", ids[:4], "ab")


@pytest.mark.parametrize("with_text", [True, False])
def test_an_end_of_sequence_token_inside_the_list(tokenizer: Tokenizer, with_text: bool) -> None:
    made = sequence(tokenizer if with_text else None)
    made.accept([100, 101, EOS, 102, EOS])
    assert (made.finish_reason, made.answer) == ("stop", [100, 101, EOS])
    ignoring = sequence(tokenizer if with_text else None, ignore_eos=True)
    ignoring.accept([100, 101, EOS, 102])
    assert (ignoring.finish_reason, ignoring.answer) == (None, [100, 101, EOS, 102])


def test_the_limit_inside_the_list(tokenizer: Tokenizer) -> None:
    made = sequence(tokenizer, room=3)
    ids = tokenizer.encode("abcdefg", add_special_tokens=False)
    made.accept(ids)
    assert (made.finish_reason, made.answer, text_of(made)) == ("length", ids[:3], "abc")
    assert made.first_token == made.last_token


@pytest.mark.parametrize("seed", range(30))
def test_the_same_answer_however_it_is_cut(tokenizer: Tokenizer, seed: int) -> None:
    rng = random.Random(seed)
    ids = [
        rng.choice([EOS, *tokenizer.encode("aabé", add_special_tokens=False)]) for _ in range(30)
    ]
    settings = {
        "stop": rng.choice([("ab",), ("ba", "éa"), ("zz",)]),
        "room": rng.choice([3, 10, 100]),
        "ignore_eos": rng.random() < 0.7,
    }
    one_by_one, pieces = sequence(tokenizer, **settings), sequence(tokenizer, **settings)
    for token in ids:
        if one_by_one.finish_reason is None:
            one_by_one.accept([token])
    while ids and pieces.finish_reason is None:
        count = rng.randint(1, 6)
        pieces.accept(ids[:count])
        del ids[:count]
    assert pieces.ids == one_by_one.ids
    assert pieces.finish_reason == one_by_one.finish_reason
    assert text_of(pieces) == text_of(one_by_one)
