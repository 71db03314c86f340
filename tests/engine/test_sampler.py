from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from deepmnn.backends.base import F32, sample_in_turn
from deepmnn.engine.sampler import Sampler, penalize
from deepmnn.errors import RequestError
from deepmnn.text.sampling_params import SamplingParams

DRAWS = 4000


def take(sampler: Sampler, logits: F32, ids: Sequence[int] = (), prompt_tokens: int = 0) -> int:
    return sample_in_turn([sampler.draw(logits, list(ids), prompt_tokens)])[0]


def oracle(logits: F32, params: SamplingParams) -> F32:
    """Probabilities by transformers' logits processors."""
    scores = torch.tensor(logits)[None]
    chain: list[Any] = [transformers.TemperatureLogitsWarper(params.temperature)]
    if params.top_k:
        chain.append(transformers.TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        chain.append(transformers.TopPLogitsWarper(params.top_p))
    if params.min_p:
        chain.append(transformers.MinPLogitsWarper(params.min_p))
    for warper in chain:
        scores = warper(None, scores)
    return np.asarray(scores.softmax(-1)[0])


@pytest.mark.parametrize("size", [1, 2, 7, 33, 131])
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1.0, seed=1),
        SamplingParams(temperature=0.6, top_p=0.95, seed=2),
        SamplingParams(temperature=1.3, top_k=5, seed=3),
        SamplingParams(temperature=1.0, min_p=0.1, seed=4),
        SamplingParams(temperature=2.0, top_k=20, top_p=0.7, min_p=0.05, seed=5),
        SamplingParams(temperature=0.9, top_p=0.01, seed=6),
    ],
    ids=range(6),
)
def test_tokens_are_drawn_with_the_right_probabilities(size: int, params: SamplingParams) -> None:
    logits = np.random.default_rng(size).normal(0, 2, size).astype(np.float32)
    wanted = oracle(logits, params)
    sampler = Sampler(params)
    counts = np.bincount([take(sampler, logits) for _ in range(DRAWS)], minlength=size)
    assert not counts[wanted == 0].any(), "a filtered token was drawn"
    # Six standard deviations of each count: the seeds are fixed, so this never flickers.
    bound = 6 * np.sqrt(DRAWS * wanted * (1 - wanted)) + 1e-6
    assert (np.abs(counts - DRAWS * wanted) <= bound).all()


def test_greedy_takes_the_first_of_the_best() -> None:
    logits = np.array([1.0, 3.0, 3.0, -2.0], np.float32)
    assert take(Sampler(SamplingParams()), logits) == 1


def test_top_k_beyond_the_vocabulary_keeps_all() -> None:
    logits = np.arange(5, dtype=np.float32)
    for top_k in (5, 2**31, 2**80):
        draws = [take(Sampler(SamplingParams(9.0, top_k, seed=s)), logits) for s in range(20)]
        assert draws == [take(Sampler(SamplingParams(9.0, seed=s)), logits) for s in range(20)]


def test_a_seed_makes_draws_reproducible() -> None:
    logits = np.zeros(50, np.float32)
    first, second = (Sampler(SamplingParams(temperature=1.0, seed=7)) for _ in range(2))
    draws = [take(first, logits) for _ in range(20)]
    assert [take(second, logits) for _ in range(20)] == draws
    free = Sampler(SamplingParams(temperature=1.0))
    assert [take(free, logits) for _ in range(20)] != draws


def test_penalties() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, 40).astype(np.float32)
    ids = rng.integers(0, 40, 30).tolist()
    got = penalize(logits, ids, 12, SamplingParams(repetition_penalty=1.7))
    processor = transformers.RepetitionPenaltyLogitsProcessor(1.7)
    wanted = processor(torch.tensor([ids]), torch.tensor(logits)[None])[0]
    np.testing.assert_allclose(got, np.asarray(wanted), rtol=1e-6)
    got = penalize(logits, ids, 12, SamplingParams(presence_penalty=0.5, frequency_penalty=0.25))
    for token in range(40):
        seen = ids[12:].count(token)
        assert got[token] == pytest.approx(logits[token] - 0.5 * (seen > 0) - 0.25 * seen)
    assert penalize(logits, ids, 30, SamplingParams(presence_penalty=0.5)) == pytest.approx(logits)


@pytest.mark.parametrize(
    ("params", "token"),
    [
        (SamplingParams(), 2),
        (SamplingParams(repetition_penalty=2.0), 3),
        (SamplingParams(presence_penalty=0.5), 1),
        (SamplingParams(frequency_penalty=0.5), 1),
    ],
)
def test_penalties_change_the_choice(params: SamplingParams, token: int) -> None:
    logits = np.array([0.0, 2.9, 3.0, 2.8], np.float32)
    assert take(Sampler(params), logits, [1, 2], prompt_tokens=1) == token


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": "hot"},
        {"temperature": 10**400},
        {"temperature": 1e300},
        {"top_p": 1e-300},
        {"repetition_penalty": 1e-300},
        {"presence_penalty": -1e300},
        {"temperature": True},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_k": -1},
        {"top_k": 2.5},
        {"min_p": -0.5},
        {"seed": -1},
        {"max_tokens": 0},
        {"stop": ""},
        {"stop": ("a", "")},
        {"stop": 5},
        {"repetition_penalty": 0.0},
        {"presence_penalty": float("nan")},
        {"frequency_penalty": None},
        {"temperature": np.bool_(True)},
        {"temperature": np.float32("nan")},
        {"temperature": np.ones(2)},
        {"temperature": torch.tensor(1.0)},
        {"temperature": 1j},
        {"top_k": True},
        {"top_k": np.bool_(True)},
        {"top_k": np.float64(5)},
        {"seed": "1"},
        {"seed": 1.0},
        {"max_tokens": -1},
        {"max_tokens": 1.5},
        {"stop": {"a"}},
        {"stop": [b"a"]},
        {"stop": None},
        {"ignore_eos": "no"},
        {"ignore_eos": 1},
        {"ignore_eos": None},
        {"n": 0},
        {"n": 129},
        {"n": None},
        {"n": 2.0},
        {"logprobs": -1},
        {"logprobs": 21},
        {"logprobs": True},
    ],
    ids=str,
)
def test_impossible_parameters_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=next(iter(fields))):
        SamplingParams(**fields)


def test_numbers_too_long_to_print_are_refused_in_words() -> None:
    for fields in ({"temperature": 10**5000}, {"n": 10**5000}, {"top_k": -(10**5000)}):
        with pytest.raises(RequestError, match="is of type int; expected"):
            SamplingParams(**fields)


def test_one_stop_string_is_a_list_of_one() -> None:
    assert SamplingParams(stop="x").stop == ("x",)
    assert SamplingParams(stop=["x", "y"]).stop == ("x", "y")


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, Fraction])
def test_numbers_of_other_libraries_become_pythons(kind: Any) -> None:
    made = SamplingParams(kind(0.5), 5, kind(0.25), kind(0.125), repetition_penalty=kind(2))
    assert made == SamplingParams(0.5, 5, 0.25, 0.125, repetition_penalty=2.0)
    assert {type(made.temperature), type(made.top_p), type(made.min_p)} == {float}
    assert type(SamplingParams(temperature=1).temperature) is float


@pytest.mark.parametrize("kind", [int, np.int8, np.uint16, np.int64])
def test_integers_of_other_libraries_become_pythons(kind: Any) -> None:
    fields = ("top_k", "seed", "max_tokens", "n", "logprobs")
    made = SamplingParams(**{name: kind(5) for name in fields})
    assert made == SamplingParams(top_k=5, seed=5, max_tokens=5, n=5, logprobs=5)
    assert {type(getattr(made, name)) for name in fields} == {int}
    assert hash(made) == hash(SamplingParams(top_k=5, seed=5, max_tokens=5, n=5, logprobs=5))


def test_a_seed_may_be_as_large_as_it_likes() -> None:
    logits = np.zeros(50, np.float32)
    for seed in (0, 2**32, 2**80):
        params = SamplingParams(temperature=1.0, seed=seed)
        draws = [
            [take(sampler, logits) for _ in range(9)] for sampler in map(Sampler, [params] * 2)
        ]
        assert draws[0] == draws[1]


def test_penalties_work_together() -> None:
    """The repetition penalty first, as vLLM has it."""
    logits = np.array([2.0, -1.0, 3.0, 0.5], np.float32)
    params = SamplingParams(repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25)
    got = penalize(logits, [1, 2, 0, 0], 2, params)
    assert got.tolist() == [2.0 / 2 - 0.5 - 2 * 0.25, -1.0 * 2, 3.0 / 2, 0.5]
    assert logits.tolist() == [2.0, -1.0, 3.0, 0.5], "a copy"
