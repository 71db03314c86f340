"""Answers: whole or streamed, alone or in a batch, from one thread or several."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import deepmnn
from deepmnn import LLM, Chunk, Completion, SamplingParams
from deepmnn.errors import (
    TokenizerError,
)
from tiny_artifact import tiny_artifact
from tiny_llm import CHAT, IDS, close


def test_a_batch_answers_as_each_prompt_alone(model: LLM) -> None:
    params = SamplingParams(max_tokens=12)
    prompts: list[list[int]] = [IDS[: 3 + i] for i in range(5)]
    together = model.generate(prompts, params)
    for prompt, answer in zip(prompts, together, strict=True):
        alone = model.generate(prompt, params)
        assert alone.ids == answer.ids
        assert alone.text == answer.text
        assert answer.prompt_tokens == len(prompt)
        assert answer.completion_tokens == len(answer.ids)


def test_greedy_generation_follows_the_logits(model: LLM) -> None:
    answer = model.generate(IDS, SamplingParams(max_tokens=9, ignore_eos=True))
    ids = IDS + answer.ids
    assert answer.ids == model.logits(ids)[len(IDS) - 1 : -1].argmax(-1).tolist()
    assert answer.finish_reason == "length"
    assert answer.text == model.tokenizer.decode(answer.ids)


def test_the_chat_template_opens_the_reasoning(model: LLM) -> None:
    params = SamplingParams(max_tokens=20, ignore_eos=True)
    ids = model.tokenizer.encode_chat(CHAT)
    assert model.tokenizer.decode(ids[-8:]).endswith("<think>\n")
    chat, plain = model.generate(CHAT, params), model.generate("What is 2 + 2?", params)
    assert chat.prompt_tokens == len(ids)
    assert chat.text == ""
    assert chat.reasoning.strip() == model.tokenizer.decode(chat.ids).strip()
    assert plain.reasoning == ""
    assert isinstance(model.generate([CHAT], params), list)


def test_stream_adds_up_to_generate(model: LLM) -> None:
    params = SamplingParams(max_tokens=15, temperature=1.0, seed=3)
    whole = model.generate("hello", params)
    chunks = list(model.stream("hello", params))
    added = Completion()
    for chunk in chunks:
        added.add(chunk)
    assert (added.ids, added.text, added.finish_reason) == (
        whole.ids,
        whole.text,
        whole.finish_reason,
    )
    assert [c.finish_reason is None for c in chunks] == [True] * (len(chunks) - 1) + [False]
    assert [c.completion_tokens for c in chunks] == list(range(1, len(chunks) + 1))
    assert chunks[-1].decode_seconds > 0 < chunks[-1].prefill_seconds
    assert added.tokens_per_second == pytest.approx((len(chunks) - 1) / chunks[-1].decode_seconds)


def test_two_streams_take_turns(model: LLM) -> None:
    params = SamplingParams(max_tokens=10, ignore_eos=True)
    wanted = [model.generate(prompt, params).ids for prompt in ([1, 2, 3], [4, 5])]
    streams = [model.stream(prompt, params) for prompt in ([1, 2, 3], [4, 5])]
    got: list[list[int]] = [[], []]
    for pair in zip(*streams, strict=False):
        for ids, chunk in zip(got, pair, strict=True):
            ids += chunk.ids
    for ids, stream in zip(got, streams, strict=True):
        ids += [token for chunk in stream for token in chunk.ids]
    assert got == wanted


def test_closing_a_stream_frees_its_blocks(model: LLM) -> None:
    free = model.engine.manager.free_blocks
    stream = model.stream(IDS, SamplingParams(max_tokens=50))
    next(stream)
    stream.close()
    model.stream(IDS)  # never started
    assert not model.engine.scheduler.busy
    assert model.engine.manager.free_blocks == free


def test_threads_get_what_each_would_alone(model: LLM) -> None:
    """Streams and whole answers, of one prompt or several, greedy or not, and sessions."""
    text = model.generate("go on", SamplingParams(max_tokens=40, ignore_eos=True)).text
    stop = next(c for c in text if c not in "\ufffd" and text.index(c) > 3)
    asked: list[tuple[Any, SamplingParams]] = [
        ("go on", SamplingParams(max_tokens=40, ignore_eos=True, stop=stop)),
        (IDS * 5, SamplingParams(max_tokens=8, temperature=1.0, seed=4)),
        ([IDS, IDS[:3], "hello"], SamplingParams(max_tokens=15)),
        (CHAT, SamplingParams(max_tokens=10, temperature=0.7, top_p=0.9, seed=1)),
    ]
    wanted = [added(model.stream(prompts, params)) for prompts, params in asked]
    logits = model.logits(IDS)

    def client(number: int) -> None:
        for turn in range(8):
            which = (number + turn) % 4
            prompts, params = asked[which]
            if turn % 4 == number % 4:
                with model.session() as session:
                    close(session.prefill(IDS), logits[-1])
                    session.rollback(6)
                    close(session.decode(IDS[6]), logits[6])
            if turn % 2:
                stream = model.stream(prompts, params)
                next(stream)
                stream.close()
            assert added(model.stream(prompts, params, whole=bool(turn % 3))) == wanted[which]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(client, range(8)))
    engine = model.engine
    assert not engine.scheduler.busy
    assert engine.manager.free_blocks == engine.cache.blocks


def added(chunks: Iterator[Chunk]) -> dict[int, tuple[list[int], str, str, str | None]]:
    """What each answer comes to."""
    answers: dict[int, Completion] = defaultdict(Completion)
    for chunk in chunks:
        answers[chunk.index].add(chunk)
    return {i: (a.ids, a.text, a.reasoning, a.finish_reason) for i, a in answers.items()}


def test_stop_strings_end_the_answer(model: LLM) -> None:
    params = SamplingParams(max_tokens=40, ignore_eos=True)
    full = model.generate("go on", params)
    stop = next(c for c in full.text if c not in "\ufffd" and full.text.index(c) > 3)
    cut = model.generate("go on", SamplingParams(max_tokens=40, ignore_eos=True, stop=stop))
    assert cut.finish_reason == "stop"
    assert cut.text == full.text[: full.text.index(stop)]
    assert cut.completion_tokens < full.completion_tokens


def test_an_answer_ends_where_the_context_does(model: LLM) -> None:
    answer = model.generate([1] * 180, SamplingParams(ignore_eos=True))
    assert (answer.completion_tokens, answer.finish_reason) == (12, "length")


def test_without_a_tokenizer_token_ids_still_work(tmp_path: Path) -> None:
    model = deepmnn.load(tiny_artifact(tmp_path, tokenizer=False), "reference")
    answer = model.generate(IDS, SamplingParams(max_tokens=3))
    assert len(answer.ids) == 3
    assert answer.text == ""
    for call in (lambda: model.generate("hi"), lambda: model.generate(CHAT)):
        with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
            call()
    with pytest.raises(TokenizerError):
        model.generate(IDS, SamplingParams(stop="x"))
