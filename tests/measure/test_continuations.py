"""Batched log-likelihoods against those of each request by itself, by PyTorch's log_softmax."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from deepmnn import LLM
from deepmnn.engine.engine import Engine
from deepmnn.errors import ContextLengthError, RequestError
from deepmnn.measure import continuations
from deepmnn.measure.continuations import Continuation, likelihoods
from tiny_llm import load


def wanted(model: LLM, asked: Continuation) -> tuple[float, bool]:
    ids, count = [*asked.context, *asked.tokens], len(asked.tokens)
    rows = torch.tensor(model.logits(ids[:-1])[-count:]).double().log_softmax(-1)
    tokens = torch.tensor(asked.tokens)
    greedy = bool((rows.argmax(-1) == tokens).all())
    return rows[torch.arange(count), tokens].sum().item(), greedy


def check(model: LLM, asked: list[Continuation]) -> None:
    found = likelihoods(model, asked)
    for each, continuation in zip(found, asked, strict=True):
        logprob, greedy = wanted(model, continuation)
        assert each.logprob == pytest.approx(logprob, abs=2e-3), continuation
        assert each.is_greedy is greedy
    free = model.driver.run(lambda engine: (engine.manager.free_blocks, engine.cache.blocks))
    assert free[0] == free[1], "everything was given back"


def mixed() -> list[Continuation]:
    """Contexts with a common beginning, with one token, and with several continuations each."""
    draw = np.random.default_rng(4)
    shared = tuple(draw.integers(0, 271, 70).tolist())
    asked = []
    for own in (0, 1, 5, 33, 60):
        context = shared + tuple(draw.integers(0, 271, own).tolist())
        for length in (1, 1, 3, 20):
            asked.append(Continuation(context, tuple(draw.integers(0, 271, length).tolist())))
    asked += [Continuation((7,), (8,)), Continuation((7,), (8, 9)), Continuation((8,), (7,) * 60)]
    asked += [asked[3], asked[0]]
    order = draw.permutation(len(asked))
    return [asked[index] for index in order]


@pytest.mark.parametrize("backend", ["cpu", "reference", "mnn"])
def test_many_at_a_time_are_each_by_itself(artifact: Path, backend: str) -> None:
    check(load(artifact, backend, threads=1), mixed())


@pytest.mark.parametrize("options", [{"max_batch_tokens": 16}, {"cache_tokens": 224}])
def test_small_steps_and_a_small_cache(artifact: Path, options: dict[str, int]) -> None:
    check(load(artifact, "cpu", threads=1, **options), mixed())


def test_what_greedy_decoding_gives_is_greedy(model: LLM) -> None:
    context, tokens = (5, 17, 200), []
    for _ in range(4):
        tokens.append(int(model.logits([*context, *tokens])[-1].argmax()))
    found = likelihoods(model, [Continuation(context, tuple(tokens))])
    assert found[0].is_greedy
    other = (*tokens[:-1], (tokens[-1] + 1) % 271)
    assert not likelihoods(model, [Continuation(context, other)])[0].is_greedy


def test_what_is_shared_is_run_once(model: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens: list[int] = []
    inner = Engine.forward

    def counted(self: Engine, spans: list) -> np.ndarray:
        tokens.append(sum(span.count for span in spans))
        return inner(self, spans)

    shared = tuple(range(100, 196))
    asked = [
        Continuation((*shared, question), (letter, 3))
        for question in range(10)
        for letter in range(4)
    ]
    monkeypatch.setattr(Engine, "forward", counted)
    seen: list[tuple[int, int]] = []
    likelihoods(model, asked, lambda *progress: seen.append(progress))
    assert sum(tokens) == 96 + 40 * 2
    assert tokens[:2] == [96, 8]
    assert len(tokens) <= 4, "as many as the cache has blocks for, in one step"
    assert seen[-1] == (40, 40)


def test_the_longest_that_fits(artifact: Path) -> None:
    model = load(artifact, "cpu", threads=1)
    whole = tuple(np.random.default_rng(1).integers(0, 271, 193).tolist())
    check(model, [Continuation(whole[:1], whole[1:]), Continuation(whole[:192], whole[192:])])
    tight = load(artifact, "cpu", threads=1, cache_tokens=192)
    check(tight, [Continuation(whole[:2], whole[2:])])
    with pytest.raises(ContextLengthError, match="194 tokens"):
        likelihoods(model, [Continuation(whole, (1,))])


def test_requests_that_are_none(model: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    assert likelihoods(model, []) == []
    for context, tokens in (((), (1,)), ((1,), ()), ((1, 271), (1,)), ((1,), (-1,))):
        with pytest.raises(RequestError):
            likelihoods(model, [Continuation(context, tokens)])
    monkeypatch.setattr(Engine, "forward", lambda *_: np.full((1, 271), np.nan, np.float32))
    with pytest.raises(RequestError, match="NaN"):
        likelihoods(model, [Continuation((1,), (2,))])
    monkeypatch.undo()
    check(model, [Continuation((1,), (2,))])
    assert continuations.ROWS <= 512
