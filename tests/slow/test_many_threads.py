"""Eight threads and the bundled model for a while: every answer right, nothing lost, no growth."""

from __future__ import annotations

import gc
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import deepmnn
from deepmnn.conversion.bundled import bundled_checkpoint

CLIENTS, REQUESTS, STREAMS = 8, 200, 10_000


@pytest.fixture(scope="module")
def model() -> deepmnn.LLM:
    return deepmnn.load(bundled_checkpoint(), threads=2)


def random_request(rng: random.Random) -> tuple[list[dict[str, str]], deepmnn.SamplingParams]:
    question = f"What is {rng.randint(0, 999)} {rng.choice('+-')} {rng.randint(0, 999)}?"
    params = deepmnn.SamplingParams(
        max_tokens=rng.choice([1, 10, 60, 150]),
        temperature=rng.choice([0.0, 0.0, 0.8]),
        seed=rng.randrange(1000),
        stop=rng.choice([(), (), (), "**", "\n"]),
    )
    return [{"role": "user", "content": question}], params


def said(answer: deepmnn.Completion) -> tuple[Any, ...]:
    return answer.ids, answer.text, answer.reasoning, answer.finish_reason


def streamed(model: deepmnn.LLM, *request: Any) -> deepmnn.Completion:
    answer = deepmnn.Completion()
    for chunk in model.stream(*request):
        answer.add(chunk)
    return answer


def assert_nothing_is_left(model: deepmnn.LLM) -> None:
    engine = model.engine
    assert not engine.scheduler.busy
    assert engine.manager.free_blocks == engine.cache.blocks


def resident_nbytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_eight_threads_with_two_hundred_requests_each(model: deepmnn.LLM) -> None:
    rng = random.Random(5)
    asked = [[random_request(rng) for _ in range(REQUESTS)] for _ in range(CLIENTS)]

    def client(number: int) -> list[tuple[Any, ...]]:
        answers = []
        for count, request in enumerate(asked[number]):
            if count % 10 == number:
                ids = model.encode(request[0])
                with model.session(share_prefix=True) as session:
                    first = int(session.prefill(ids).argmax())
                    session.decode(first)
            ask = streamed if (count + number) % 2 else deepmnn.LLM.generate
            answers.append(said(ask(model, *request)))
        return answers

    with ThreadPoolExecutor(CLIENTS) as pool:
        got = list(pool.map(client, range(CLIENTS)))
    assert_nothing_is_left(model)
    wanted = [[said(model.generate(*request)) for request in requests] for requests in asked]
    differing = sum(
        a != b for g, w in zip(got, wanted, strict=True) for a, b in zip(g, w, strict=True)
    )
    print(f"{differing} of {CLIENTS * REQUESTS} answers differ")
    assert differing == 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_cancelled_streams(model: deepmnn.LLM) -> None:
    def cancel(number: int, count: int) -> None:
        rng = random.Random(number)
        for _ in range(count):
            stream = model.stream(*random_request(rng))
            for _ in range(rng.randrange(3)):
                next(stream, None)
            stream.close()

    def storm(count: int) -> tuple[int, int]:
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(cancel, range(CLIENTS), [count // CLIENTS] * CLIENTS))
        assert_nothing_is_left(model)
        gc.collect()
        return resident_nbytes(), len(gc.get_objects())

    storm(STREAMS // 5)  # every text of a token is known, every block has been used
    before, objects = storm(STREAMS // 5)
    after, objects_after = storm(STREAMS)
    print(f"{(after - before) / STREAMS:.0f} bytes, {(objects_after - objects)} objects more")
    assert after - before < 4 << 20
    assert objects_after - objects < 200
