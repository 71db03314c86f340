"""Several answers to one prompt: prefilled once, each as if it were alone."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from dataclasses import replace
from functools import partial

import pytest

from deepmnn.engine.completion import Chunk
from deepmnn.engine.driver import Driver
from deepmnn.engine.engine import Engine
from deepmnn.engine.request import Event, Request
from deepmnn.engine.sequence import Sequence
from deepmnn.text.sampling_params import SamplingParams
from fake_backend import FakeBackend, expected_answer


def make_engine(blocks: int = 64, block_size: int = 4, **limits: int) -> Engine:
    return Engine(FakeBackend(), blocks * block_size, 1000, block_size=block_size, **limits)


def submit(engine: Engine, ids: list[int], count: int, params: SamplingParams) -> list[Sequence]:
    first = engine.submit(ids, params)
    siblings = [first.sibling(number, None) for number in range(1, count)]
    for sequence in siblings:
        engine.scheduler.add(sequence)
    return [first, *siblings]


def run(engine: Engine) -> list[int]:
    """Until all is done; how many tokens each step ran."""
    backend = engine.backend
    assert isinstance(backend, FakeBackend)
    begin = len(backend.steps)
    while engine.scheduler.busy:
        engine.step()
    assert engine.manager.free_blocks == engine.cache.blocks
    return [len(batch.ids) for batch in backend.steps[begin:]]


def alone(ids: list[int], number: int, params: SamplingParams) -> list[int]:
    engine = make_engine(blocks=250)
    seed = None if params.seed is None else params.seed + number
    made = engine.submit(ids, replace(params, seed=seed))
    run(engine)
    return made.answer


@pytest.mark.parametrize("length", [1, 2, 4, 5, 8, 23, 40])
@pytest.mark.parametrize("budget", [7, 512])
def test_the_prompt_is_run_once(length: int, budget: int) -> None:
    """All rows but the last are shared, those of a block that is not full, too."""
    engine, ids = make_engine(max_batch_tokens=budget), list(range(length))
    params = SamplingParams(temperature=1.0, seed=9, max_tokens=6)
    made = submit(engine, ids, 4, params)
    assert sum(run(engine)) == length + 3 * 1 + 4 * 5
    assert [sequence.cached_tokens for sequence in made] == [0, *[length - 1] * 3]
    for number, sequence in enumerate(made):
        assert sequence.answer == alone(ids, number, params)
    assert len({tuple(sequence.answer) for sequence in made}) == 4


def test_others_do_not_wait_with_them() -> None:
    """While a long prompt is prefilled, prompts behind its siblings are."""
    engine = make_engine(max_batch_tokens=8)
    long = submit(engine, list(range(20)), 3, SamplingParams(max_tokens=3))
    short = submit(engine, [7, 8], 2, SamplingParams(max_tokens=9))
    engine.step()
    engine.step()
    engine.step()
    assert short[0].length == 2, "there was room for it in the step that ended the long prompt"
    assert not any(sequence.length for sequence in long[1:])
    run(engine)
    assert all(s.answer == expected_answer(s.ids[:20], 3, 97) for s in long)
    assert all(s.answer == expected_answer([7, 8], 9, 97) for s in short)


@pytest.mark.parametrize("ending", ["finished", "cancelled", "failed"])
def test_a_first_that_is_gone_leaves_its_blocks(ending: str) -> None:
    engine, ids = make_engine(max_batch_tokens=8), list(range(22))
    made = submit(engine, ids, 3, SamplingParams(max_tokens=1 if ending == "finished" else 4))
    engine.step()
    engine.step()
    if ending == "cancelled":
        engine.cancel(made[0])
    if ending == "failed":
        engine.fail(made[0], RuntimeError("of its own"))
    run(engine)
    wanted = expected_answer(ids, 4, 97)
    assert [s.answer for s in made[1:]] == [wanted[: made[1].params.max_tokens]] * 2
    assert [s.cached_tokens for s in made[1:]] == [20 if ending == "finished" else 16] * 2


@pytest.mark.parametrize("seed", range(15))
def test_answers_do_not_depend_on_their_company(seed: int) -> None:
    """Random groups and arrivals, in caches that are too small for all of them."""
    rng = random.Random(seed)
    engine = make_engine(
        blocks=rng.randint(14, 40),
        block_size=rng.choice([1, 2, 4, 7]),
        max_batch_tokens=rng.choice([1, 3, 8, 64]),
        max_sequences=rng.randint(1, 9),
    )
    groups: list[tuple[list[int], SamplingParams, list[Sequence]]] = []
    for _ in range(60):
        if rng.random() < 0.2:
            room = engine.context_length - 1
            ids = [rng.randrange(3) for _ in range(rng.randint(1, room))]
            params = SamplingParams(
                temperature=rng.choice([0.0, 1.0]),
                seed=rng.randrange(100),
                max_tokens=rng.randint(1, 15),
                presence_penalty=rng.choice([0.0, 0.5]),
                logprobs=rng.choice([None, 1]),
            )
            if len(ids) + (params.max_tokens or 0) <= engine.context_length:
                made = submit(engine, ids, rng.randint(1, 5), params)
                groups.append((ids, params, made))
        if rng.random() < 0.05 and groups:
            engine.cancel(rng.choice(rng.choice(groups)[2]))
        engine.step()
    run(engine)
    assert groups
    for ids, params, made in groups:
        for number, sequence in enumerate(made):
            wanted = alone(ids, number, params)
            if sequence.finish_reason == "cancelled":
                wanted = wanted[: len(sequence.answer)]
            assert sequence.answer == wanted
            told = [] if params.logprobs is None else sequence.answer
            assert [each.id for each in sequence.logprobs] == told


def test_an_event_loop_asks_for_several() -> None:
    """As a server does: requests of its own, with what the answers are made of."""
    driver, params = (
        Driver(make_engine()),
        SamplingParams(temperature=1.0, seed=3, max_tokens=7, logprobs=2),
    )

    async def ask() -> dict[int, list[Chunk]]:
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()
        first = driver.engine.sequence([5, 6, 7], params)
        sequences = [first, *(first.sibling(number, None) for number in (1, 2))]
        deliver = partial(loop.call_soon_threadsafe, events.put_nowait)
        driver.submit(Request(each, deliver, 0, choice) for choice, each in enumerate(sequences))
        chunks: dict[int, list[Chunk]] = defaultdict(list)
        while sum(bool(got and got[-1].finish_reason) for got in chunks.values()) < 3:
            event = await asyncio.wait_for(events.get(), 60)
            assert isinstance(event, Chunk)
            chunks[event.choice].append(event)
        return chunks

    chunks = asyncio.run(ask())
    assert sorted(chunks) == [0, 1, 2]
    for choice, got in chunks.items():
        assert [token for chunk in got for token in chunk.ids] == alone([5, 6, 7], choice, params)
        for chunk in got:
            assert [each.id for each in chunk.logprobs] == chunk.ids
            assert all(len(each.top) == 2 for each in chunk.logprobs)
