"""How likely the model found what it said, against log-softmax of its logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import deepmnn
from deepmnn import LLM, Completion, SamplingParams
from deepmnn.backends.base import F32
from tiny_llm import IDS, load
from tiny_models import tiny_checkpoint

WAYS = [
    SamplingParams(max_tokens=7, ignore_eos=True, logprobs=20),
    SamplingParams(max_tokens=7, ignore_eos=True, logprobs=3, temperature=1.4, seed=2),
    SamplingParams(max_tokens=9, ignore_eos=True, logprobs=1, temperature=0.7, top_k=3, seed=5),
    SamplingParams(max_tokens=9, logprobs=0, repetition_penalty=1.5, frequency_penalty=0.7),
    SamplingParams(max_tokens=7, ignore_eos=True, logprobs=4, temperature=1.0, min_p=0.2, n=3),
]


def check(answer: Completion, prompt: list[int], logits: F32, count: int) -> None:
    """logits: after each token of prompt and answer."""
    assert len(answer.logprobs) == len(answer.ids)
    rows = torch.tensor(logits[len(prompt) - 1 : -1], dtype=torch.float64)
    for token, found, row in zip(answer.ids, answer.logprobs, rows, strict=True):
        wanted = torch.log_softmax(row, -1)
        assert found.id == token
        assert found.logprob == pytest.approx(float(wanted[token]), abs=2e-3)
        best = wanted.topk(count)
        assert list(found.top.values()) == pytest.approx(best.values.tolist(), abs=2e-3)
        own = [float(wanted[token]) for token in found.top]
        assert own == pytest.approx(list(found.top.values()), abs=2e-3)


@pytest.mark.parametrize("params", WAYS, ids=range(len(WAYS)))
def test_they_are_those_of_the_models_own_logits(model: LLM, params: SamplingParams) -> None:
    """Before temperature, filters and penalties: whatever draws the token changes none of them."""
    given = model.generate([IDS, IDS[:3]], params)
    for prompt, each in zip([IDS, IDS[:3]], given, strict=True):
        for answer in each if isinstance(each, list) else [each]:
            check(answer, prompt, model.logits(prompt + answer.ids), params.logprobs or 0)


@pytest.mark.parametrize("model_type", ["deepseek_v3", "qwen2"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_transformers_finds_the_same_probabilities(
    model_type: str, backend: str, tmp_path: Path
) -> None:
    tiny = tiny_checkpoint(model_type, 0, tmp_path / "source")
    deepmnn.convert(tmp_path / "source", tmp_path / "model", "fp32")
    model, prompt = load(tmp_path / "model", backend), [5, 17, 33, 9]
    for params in WAYS[:4]:
        answer = model.generate(prompt, params)
        check(answer, prompt, tiny.logits(prompt + answer.ids), params.logprobs or 0)


def test_the_greedy_token_is_the_most_likely(model: LLM) -> None:
    answer = model.generate(IDS, SamplingParams(max_tokens=5, ignore_eos=True, logprobs=2))
    for found in answer.logprobs:
        assert next(iter(found.top)) == found.id
        assert found.top[found.id] == found.logprob
        assert list(found.top.values()) == sorted(found.top.values(), reverse=True)


def test_chunks_carry_those_of_their_tokens(model: LLM) -> None:
    params = SamplingParams(max_tokens=12, temperature=1.0, seed=4, logprobs=2, ignore_eos=True)
    chunks = list(model.stream("hello", params))
    assert all([each.id for each in c.logprobs] == c.ids for c in chunks)
    whole = model.generate("hello", params)
    found = [each for c in chunks for each in c.logprobs]
    assert [each.id for each in found] == whole.ids
    np.testing.assert_allclose(
        [each.logprob for each in found], [each.logprob for each in whole.logprobs], atol=1e-4
    )


def test_who_asks_for_none_pays_for_none(model: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The vocabulary is not gone through once more."""

    def unwanted(*_: object) -> None:
        raise AssertionError("nobody has asked")

    monkeypatch.setattr("deepmnn.engine.sequence.token_logprobs", unwanted)
    assert model.generate(IDS, SamplingParams(max_tokens=3)).logprobs == []
    with pytest.raises(AssertionError):
        model.generate(IDS, SamplingParams(max_tokens=3, logprobs=0))
