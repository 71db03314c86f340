"""Several answers to one prompt, and a list of prompts with SamplingParams of their own."""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import deepmnn
from deepmnn import LLM, Completion, SamplingParams
from deepmnn.errors import RequestError
from tiny_llm import CHAT, IDS, load
from tiny_models import TinyModel, tiny_checkpoint

DRAWN = SamplingParams(temperature=1.2, seed=11, max_tokens=8, ignore_eos=True)
MIXED = [
    DRAWN,
    SamplingParams(max_tokens=5),
    SamplingParams(max_tokens=9, repetition_penalty=1.4, ignore_eos=True),
    SamplingParams(temperature=0.8, top_p=0.9, seed=3, max_tokens=3, presence_penalty=0.5),
    SamplingParams(temperature=1.0, top_k=5, seed=3, max_tokens=12, frequency_penalty=0.3),
]


def test_answer_i_is_drawn_with_seed_plus_i(model: LLM) -> None:
    several: Any = model.generate(IDS, replace(DRAWN, n=4))
    assert [type(each) for each in several] == [Completion] * 4
    alone = [model.generate(IDS, replace(DRAWN, seed=11 + i)) for i in range(4)]
    assert [each.ids for each in several] == [each.ids for each in alone]
    assert [each.text for each in several] == [each.text for each in alone]
    assert len({tuple(each.ids) for each in several}) == 4
    again: Any = model.generate(IDS, replace(DRAWN, n=4))
    assert [each.ids for each in again] == [each.ids for each in several]


def test_without_a_seed_answers_differ_and_greedy_ones_do_not(model: LLM) -> None:
    free: Any = model.generate(IDS, replace(DRAWN, n=3, seed=None))
    assert len({tuple(each.ids) for each in free}) == 3
    greedy: Any = model.generate(IDS, SamplingParams(max_tokens=6, n=3))
    assert [each.ids for each in greedy] == [greedy[0].ids] * 3


def test_the_prompt_is_cached_for_all_but_one(model: LLM) -> None:
    if model.backend.max_sequences == 1:
        pytest.skip("one at a time: nothing runs beside the first answer")
    prompt = [7, *IDS * 4]
    several: Any = model.generate(prompt, replace(DRAWN, n=3))
    assert [each.cached_tokens for each in several] == [0, len(prompt) - 1, len(prompt) - 1]


def test_lists_of_prompts_give_lists_of_lists(model: LLM) -> None:
    prompts: list[Any] = ["hello", CHAT, IDS]
    given: Any = model.generate(prompts, replace(DRAWN, n=2))
    for prompt, each in zip(prompts, given, strict=True):
        alone: Any = model.generate(prompt, replace(DRAWN, n=2))
        assert [a.ids for a in each] == [a.ids for a in alone]
    mixed: Any = model.generate(prompts, [replace(DRAWN, n=n) for n in (1, 3, 1)])
    assert isinstance(mixed[0], Completion)
    assert [a.ids for a in mixed[1]][:2] == [a.ids for a in given[1]]
    assert isinstance(mixed[2], Completion)


def test_chunks_say_which_answer_they_belong_to(model: LLM) -> None:
    params = replace(DRAWN, n=3, logprobs=1)
    whole: Any = model.generate(["a", "b"], params)
    for once in (False, True):
        added: dict[tuple[int, int], Completion] = defaultdict(Completion)
        for chunk in model.stream(["a", "b"], params, whole=once):
            added[chunk.index, chunk.choice].add(chunk)
        assert sorted(added) == [(i, c) for i in range(2) for c in range(3)]
        for (index, choice), answer in added.items():
            assert answer.ids == whole[index][choice].ids
            assert answer.text == whole[index][choice].text
            assert [p.id for p in answer.logprobs] == answer.ids


def test_a_closed_stream_frees_all_its_answers(model: LLM) -> None:
    free = model.engine.manager.free_blocks
    stream = model.stream([IDS, IDS * 3], SamplingParams(n=5, temperature=1.0))
    next(stream)
    stream.close()
    assert not model.engine.scheduler.busy
    assert model.engine.manager.free_blocks == free


def test_an_interrupt_frees_all_its_answers(model: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    free, seen = model.engine.manager.free_blocks, itertools.count()

    def interrupted(event: Any) -> Any:
        if next(seen) == 4:
            raise KeyboardInterrupt
        return event

    monkeypatch.setattr("deepmnn.api.llm.result_of", interrupted)
    params = [SamplingParams(n=3, temperature=1.0, max_tokens=1), SamplingParams(n=3)]
    with pytest.raises(KeyboardInterrupt):
        model.generate([IDS, IDS * 3], params)
    assert not model.engine.scheduler.busy
    assert model.engine.manager.free_blocks == free


def test_params_of_their_own_answer_as_alone(model: LLM) -> None:
    """Greedy and drawn, with and without penalties, in one batch."""
    prompts: list[Any] = [IDS, IDS[:2], "hello", CHAT, IDS * 3]
    together = model.generate(prompts, MIXED)
    for prompt, params, answer in zip(prompts, MIXED, together, strict=True):
        alone = model.generate(prompt, params)
        assert (answer.ids, answer.text) == (alone.ids, alone.text)
        assert answer.finish_reason == alone.finish_reason
    streamed: dict[int, list[int]] = defaultdict(list)
    for chunk in model.stream(prompts, tuple(MIXED)):
        streamed[chunk.index] += chunk.ids
    assert [streamed[i] for i in range(5)] == [answer.ids for answer in together]


@pytest.mark.parametrize(
    ("prompts", "params", "message"),
    [
        ([IDS, IDS], MIXED[:1], "1 SamplingParams for 2 prompts"),
        ([IDS, IDS], MIXED[:3], "3 SamplingParams for 2 prompts"),
        (IDS, MIXED[:2], "2 SamplingParams for 1 prompts"),
        ([IDS], [], "0 SamplingParams for 1 prompts"),
        ([IDS, IDS], [DRAWN, None], "a list of them"),
        ([IDS], [{"temperature": 1.0}], "a list of them"),
        ([IDS], "greedy", "a list of them"),
        ([IDS], {DRAWN}, "a list of them"),
    ],
    ids=range(8),
)
def test_params_that_do_not_fit_the_prompts(
    model: LLM, prompts: Any, params: Any, message: str
) -> None:
    for call in (model.generate, model.stream):
        with pytest.raises(RequestError, match=message):
            call(prompts, params)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return tiny_checkpoint("qwen2", 0, tmp_path_factory.mktemp("penalties") / "source")


@pytest.fixture(scope="module", params=["cpu", "reference"])
def penalized(tiny: TinyModel, request: pytest.FixtureRequest) -> LLM:
    out = tiny.path.parent / f"model-{request.param}"
    deepmnn.convert(tiny.path, out, "fp32")
    return load(out, request.param)


@pytest.mark.parametrize("penalty", [0.8, 1.3, 5.0])
def test_repetition_penalty_is_transformers(
    penalized: LLM, tiny: TinyModel, penalty: float
) -> None:
    prompt = [5, 17, 33, 33, 9]
    model: Any = tiny.model
    config = transformers.GenerationConfig(
        do_sample=False, max_new_tokens=14, repetition_penalty=penalty, pad_token_id=0
    )
    config.eos_token_id = None
    wanted = model.generate(torch.tensor([prompt]), generation_config=config)[0].tolist()
    params = SamplingParams(max_tokens=14, repetition_penalty=penalty, ignore_eos=True, n=2)
    given: Any = penalized.generate([prompt, [1, 2]], params)
    assert [each.ids for each in given[0]] == [wanted[len(prompt) :]] * 2


@pytest.mark.parametrize(("presence", "frequency"), [(1.5, 0.0), (0.0, 0.6), (-0.4, 0.9)])
def test_presence_and_frequency_are_as_openai_defines_them(
    penalized: LLM, tiny: TinyModel, presence: float, frequency: float
) -> None:
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence, c counting the tokens of the answer."""
    ids = [5, 17, 33, 33, 9]
    for _ in range(14):
        counts = np.bincount(ids[5:], minlength=97) if len(ids) > 5 else np.zeros(97)
        logits = tiny.logits(ids)[-1] - counts * frequency - (counts > 0) * presence
        ids.append(int(logits.argmax()))
    params = SamplingParams(
        max_tokens=14,
        presence_penalty=presence,
        frequency_penalty=frequency,
        ignore_eos=True,
    )
    given = penalized.generate([ids[:5], [1, 2]], params)
    assert given[0].ids == ids[5:]
