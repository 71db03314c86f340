"""Many clients, one engine: right answers, errors for who caused them, nothing lost, an end."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pytest

from byte_tokenizer import write_tokenizer
from deepmnn.engine.completion import Chunk
from deepmnn.engine.driver import Driver
from deepmnn.engine.engine import Engine
from deepmnn.engine.request import Event, Failure, Request, result_of
from deepmnn.engine.session import Session
from deepmnn.errors import ContextLengthError, RequestError
from deepmnn.text.sampling_params import SamplingParams
from deepmnn.text.stream import TextStream
from deepmnn.text.tokenizer import Tokenizer
from fake_backend import FakeBackend, expected_answer, expected_logits
from tiny_artifact import tiny_artifact

VOCAB = 271
TWELVE = SamplingParams(max_tokens=12)
ENDLESS = SamplingParams()


def make_driver(blocks: int = 256, block_size: int = 4, **limits: int) -> Driver:
    engine = Engine(
        FakeBackend(VOCAB), blocks * block_size, 10_000, block_size=block_size, **limits
    )
    return Driver(engine)


def backend_of(driver: Driver) -> FakeBackend:
    backend = driver.engine.backend
    assert isinstance(backend, FakeBackend)
    return backend


def ask(
    driver: Driver,
    ids: list[int],
    params: SamplingParams = TWELVE,
    output: TextStream | None = None,
    whole: bool = False,
) -> Iterator[Chunk]:
    """The chunks of one answer; closing cancels."""
    events: SimpleQueue[Event] = SimpleQueue()
    request = Request(driver.engine.sequence(ids, params, output), events.put, whole=whole)
    driver.submit([request])
    try:
        while True:
            chunk = result_of(events.get(timeout=60))
            yield chunk
            if chunk.finish_reason:
                return
    finally:
        driver.cancel(request)


def answer(driver: Driver, *asked: object, whole: bool = False) -> list[int]:
    return [token for chunk in ask(driver, *asked, whole=whole) for token in chunk.ids]  # type: ignore[arg-type]


def assert_nothing_is_left(driver: Driver) -> None:
    def look(engine: Engine) -> tuple[bool, int]:
        return engine.scheduler.busy, engine.manager.free_blocks

    assert driver.run(look) == (False, driver.engine.cache.blocks)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


# ---------------------------------------------------------------------------- answers


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(directory)
    return Tokenizer(directory)


def random_request(rng: random.Random) -> tuple[list[int], SamplingParams]:
    """Few different tokens, so that prefixes meet."""
    ids = [rng.randrange(3) for _ in range(rng.choice([1, 3, 9, 40]))]
    stop = rng.choice([(), (), ("e",), ("\x11", "zz")])
    temperature = rng.choice([0.0, 0.9])
    params = SamplingParams(
        max_tokens=rng.randint(1, 25),
        temperature=temperature,
        seed=rng.randrange(1000),
        stop=stop,
        repetition_penalty=rng.choice([1.0, 1.2]),
    )
    return ids, params


@pytest.mark.parametrize("limits", [{}, {"blocks": 40, "max_batch_tokens": 7, "max_sequences": 5}])
def test_eight_threads_get_what_each_would_alone(
    tokenizer: Tokenizer, limits: dict[str, int]
) -> None:
    """Streams, whole answers and sessions mixed; a cache with room, and one too small for all."""
    rng = random.Random(1)
    asked = [[random_request(rng) for _ in range(25)] for _ in range(8)]
    driver = make_driver(**limits)

    def said(driver: Driver, ids: list[int], params: SamplingParams, whole: bool) -> object:
        stop = params.stop
        assert isinstance(stop, tuple)
        chunks = list(ask(driver, ids, params, TextStream(tokenizer, stop, False), whole))
        assert len(chunks) == 1 or not whole
        tokens = [token for chunk in chunks for token in chunk.ids]
        return tokens, "".join(chunk.text for chunk in chunks), chunks[-1].finish_reason

    def client(number: int) -> list[object]:
        answers = []
        for count, (ids, params) in enumerate(asked[number]):
            if count % 5 == number % 5:
                check_session(driver, ids)
            answers.append(said(driver, ids, params, whole=bool((number + count) % 2)))
        return answers

    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(client, range(8)))
    single = make_driver()
    wanted = [[said(single, *request, True) for request in requests] for requests in asked]
    assert got == wanted
    reasons = {reason for answers in wanted for *_, reason in answers}
    assert reasons == {"stop", "length"}
    assert_nothing_is_left(driver)


def check_session(driver: Driver, ids: list[int]) -> None:
    with Session(driver, share_prefix=True) as session:
        np.testing.assert_array_equal(session.prefill(ids), expected_logits(ids, VOCAB))
        np.testing.assert_array_equal(session.decode(2), expected_logits([*ids, 2], VOCAB))
        session.rollback(len(ids))
        np.testing.assert_array_equal(session.decode(1), expected_logits([*ids, 1], VOCAB))


def test_requests_that_come_together_run_together() -> None:
    driver = make_driver()
    events: SimpleQueue[Event] = SimpleQueue()
    prompts = [[1, 2], [3], [4, 5, 6]]
    driver.submit(
        Request(driver.engine.sequence(ids, TWELVE), events.put, index, whole=True)
        for index, ids in enumerate(prompts)
    )
    found = {chunk.index: chunk.ids for chunk in (result_of(events.get()) for _ in prompts)}
    assert found == {i: expected_answer(ids, 12, VOCAB) for i, ids in enumerate(prompts)}
    assert backend_of(driver).steps[0].context_lengths.tolist() == [2, 1, 3]


def test_one_event_for_each_token_or_for_all() -> None:
    driver = make_driver()
    each, whole = list(ask(driver, [5, 6])), list(ask(driver, [5, 6], whole=True))
    assert [chunk.completion_tokens for chunk in each] == list(range(1, 13))
    assert [chunk.finish_reason for chunk in each] == [None] * 11 + ["length"]
    assert [chunk.ids for chunk in whole] == [expected_answer([5, 6], 12, VOCAB)]
    assert whole[0].decode_seconds > 0 < whole[0].prefill_seconds


def test_an_event_loop_reads_and_leaves() -> None:
    """Asks from a loop, which never waits for the engine."""
    driver = make_driver()

    async def read(ids: list[int], leave_after: int) -> list[int]:
        news: asyncio.Queue[Event] = asyncio.Queue()
        deliver = partial(asyncio.get_running_loop().call_soon_threadsafe, news.put_nowait)
        request = Request(driver.engine.sequence(ids, ENDLESS), deliver)
        driver.submit([request])
        tokens: list[int] = []
        while True:
            chunk = result_of(await news.get())
            tokens += chunk.ids
            if chunk.finish_reason:
                assert chunk.finish_reason == "cancelled"
                return tokens[:leave_after]
            if len(tokens) == leave_after:
                driver.cancel(request)

    async def main() -> list[list[int]]:
        return await asyncio.gather(*(read([i], 5 + i) for i in range(6)))

    assert asyncio.run(main()) == [expected_answer([i], 5 + i, VOCAB) for i in range(6)]
    assert_nothing_is_left(driver)


# ---------------------------------------------------------------------------- errors


@pytest.mark.parametrize("way", ["raising", "spoilt"])
def test_a_failing_request_leaves_the_others_alone(way: str) -> None:
    """Prompts with token 200 fail while they share steps with others, sampled ones among them."""
    driver = make_driver(max_batch_tokens=16)
    sampled = SamplingParams(max_tokens=12, temperature=1.0, seed=4)
    wanted = [answer(make_driver(), [i, i], sampled) for i in range(4)]
    getattr(backend_of(driver), way).add(200)

    def client(number: int) -> object:
        if number % 2:
            return answer(driver, [number // 2] * 2, sampled, whole=bool(number % 4 == 1))
        ids = [number] * 20 + [200]
        with pytest.raises(Exception, match="token 200" if way == "raising" else "NaN") as caught:
            answer(driver, ids, whole=bool(number % 4))
        return caught.value

    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(client, range(8)))
    assert got[1::2] == wanted
    assert len(set(map(id, got[::2]))) == 4, "each has an error of its own"
    assert_nothing_is_left(driver)


def test_two_culprits_and_one_innocent_in_one_step() -> None:
    driver = make_driver()
    backend = backend_of(driver)
    backend.raising, backend.spoilt = {200}, {201}
    events: SimpleQueue[Event] = SimpleQueue()
    driver.submit(
        Request(driver.engine.sequence([1, 2, token], TWELVE), events.put, index, whole=True)
        for index, token in enumerate([200, 3, 201])
    )
    found = {event.index: event for event in (events.get() for _ in range(3))}
    assert [isinstance(found[i], Failure) for i in range(3)] == [True, False, True]
    assert result_of(found[1]).ids == expected_answer([1, 2, 3], 12, VOCAB)
    assert_nothing_is_left(driver)


def test_an_error_of_the_detokeniser_is_its_requests_alone() -> None:
    class Broken:
        stopped, end_ids = False, frozenset[int]()

        def push(self, token: int) -> None:
            raise ValueError("no such token")

        close = push

    driver = make_driver()
    other = ask(driver, [1, 2])
    next(other)
    with pytest.raises(ValueError, match="no such"):
        answer(driver, [3], TWELVE, Broken())
    assert [t for chunk in other for t in chunk.ids] == expected_answer([1, 2], 12, VOCAB)[1:]
    assert_nothing_is_left(driver)


def test_an_error_of_nobody_reaches_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = make_driver()
    streams = [ask(driver, [i], ENDLESS) for i in range(3)]
    for stream in streams:
        next(stream)

    def broken() -> None:
        raise MemoryError

    driver.run(lambda engine: monkeypatch.setattr(engine.scheduler, "schedule", broken))
    for stream in streams:
        with pytest.raises(MemoryError):
            list(stream)
    monkeypatch.undo()
    assert answer(driver, [7]) == expected_answer([7], 12, VOCAB)
    assert_nothing_is_left(driver)


def test_a_reader_that_raises_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[object] = []
    monkeypatch.setattr(threading, "excepthook", lambda found: shown.append(found.exc_type))
    driver = make_driver()
    calls = []

    def deliver(event: Event) -> None:
        calls.append(event)
        raise OSError("the loop is closed")

    driver.submit([Request(driver.engine.sequence([1], ENDLESS), deliver)])
    driver.post(lambda _: [][0])
    assert answer(driver, [7]) == expected_answer([7], 12, VOCAB)
    assert len(calls) == 1
    assert sorted(map(str, shown)) == ["<class 'IndexError'>", "<class 'OSError'>"]
    assert_nothing_is_left(driver)


def test_a_failing_session_leaves_the_others_alone() -> None:
    driver = make_driver()
    backend_of(driver).raising = {200}
    stream = ask(driver, [1, 2])
    next(stream)
    with Session(driver) as session:
        session.prefill([3])
        with pytest.raises(RuntimeError, match="token 200"):
            session.prefill([4, 200])
        np.testing.assert_array_equal(session.decode(5), expected_logits([3, 5], VOCAB))
    assert [t for chunk in stream for t in chunk.ids] == expected_answer([1, 2], 12, VOCAB)[1:]
    assert_nothing_is_left(driver)


def test_errors_of_work_are_raised_where_it_was_asked_for() -> None:
    driver = make_driver()
    with pytest.raises(ZeroDivisionError):
        driver.run(lambda _: 1 // 0)
    assert driver.run(lambda engine: driver.run(lambda inner: inner is engine))
    name = driver.run(lambda _: threading.current_thread().name)
    assert name == "deepmnn-engine"


# ---------------------------------------------------------------------------- cancelling


def test_a_cancelled_request_is_gone_before_the_next_step() -> None:
    driver = make_driver()
    events: SimpleQueue[Event] = SimpleQueue()
    request = Request(driver.engine.sequence([1], ENDLESS), events.put)
    driver.cancel(request)  # not submitted: nothing happens
    driver.submit([request])
    result_of(events.get())
    driver.cancel(request)
    steps = driver.run(lambda _: len(backend_of(driver).steps))
    assert_nothing_is_left(driver)
    assert len(backend_of(driver).steps) == steps
    while (chunk := result_of(events.get())).finish_reason is None:
        pass
    assert chunk.finish_reason == "cancelled"
    driver.cancel(request)
    assert_nothing_is_left(driver)
    assert events.empty()


@pytest.mark.parametrize("count", [40, pytest.param(1250, marks=pytest.mark.slow)])
def test_cancel_storms_lose_nothing(count: int) -> None:
    """Eight threads close streams at any time, while a ninth one gets its answers."""
    driver = make_driver(blocks=64, max_sequences=6)
    wanted = expected_answer([9, 9], 12, VOCAB)

    def client(number: int) -> None:
        rng = random.Random(number)
        for _ in range(count):
            stream = ask(driver, [rng.randrange(3) for _ in range(rng.randint(1, 30))], ENDLESS)
            for _ in range(rng.randrange(4)):
                next(stream)
            stream.close()

    with ThreadPoolExecutor(9) as pool:
        storms = [pool.submit(client, number) for number in range(8)]
        while not all(storm.done() for storm in storms):
            assert answer(driver, [9, 9], whole=True) == wanted
        for storm in storms:
            storm.result()
    assert_nothing_is_left(driver)
    assert not driver._stepper._requests


def test_an_interrupted_session_is_as_it_was() -> None:
    """Ctrl-C while it waits for a step; and the engine goes on."""
    driver = make_driver()
    backend, session = backend_of(driver), Session(driver)
    session.prefill([1, 2, 3])
    plain = backend.step

    def interrupting(*arguments: object) -> object:
        backend.step = plain
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.2)
        return plain(*arguments)

    backend.step = interrupting
    with pytest.raises(KeyboardInterrupt):
        session.prefill([4, 5, 6])
    assert session.ids == [1, 2, 3]
    np.testing.assert_array_equal(session.decode(4), expected_logits([1, 2, 3, 4], VOCAB))
    backend.step = interrupting
    with pytest.raises(KeyboardInterrupt):
        list(ask(driver, [8, 9], ENDLESS))
    session.close()
    assert_nothing_is_left(driver)


# ---------------------------------------------------------------------------- lifetimes


def test_a_dropped_driver_ends_its_thread_and_frees_the_engine() -> None:
    gc.collect()
    gc.disable()  # nothing may need it
    try:
        driver = make_driver()
        engine = weakref.ref(driver.engine)
        thread = driver.run(lambda _: threading.get_ident())
        answer(driver, [1, 2])
        backend_of(driver).spoilt = {200}
        with pytest.raises(RequestError):
            answer(driver, [200])
        with Session(driver) as session:
            session.prefill([1])
            with pytest.raises(ContextLengthError):
                session.prefill([1] * 5000)
        stream = ask(driver, [1], ENDLESS)
        next(stream)
        del stream, session
        assert thread in threading._active  # type: ignore[attr-defined]
        del driver
        wait_for(lambda: thread not in threading._active)  # type: ignore[attr-defined]
        wait_for(lambda: engine() is None)
    finally:
        gc.enable()


def test_what_is_unfinished_when_the_driver_goes_is_told() -> None:
    driver = make_driver()
    events: SimpleQueue[Event] = SimpleQueue()
    driver.submit([Request(driver.engine.sequence([1], ENDLESS), events.put, whole=True)])
    del driver
    with pytest.raises(RequestError, match="dropped"):
        result_of(events.get(timeout=30))


def test_the_collector_may_find_sessions_and_streams_on_the_engines_thread() -> None:
    driver = make_driver()
    for _ in range(3):
        session, stream = Session(driver), ask(driver, [3, 4], ENDLESS)
        session.prefill([1, 2])
        next(stream)
        cycle: list[object] = [session, stream]
        cycle.append(cycle)
        del session, stream, cycle
        driver.run(lambda _: gc.collect())
    assert_nothing_is_left(driver)


def run_script(name: str, *arguments: object) -> tuple[str, str]:
    """What a script beside this one prints, and its errors; it must end by itself."""
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", here / name, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.mark.parametrize("way", ["streams", "dropped", "exit", "late"])
def test_an_interpreter_ends_with_requests_unfinished(tmp_path: Path, way: str) -> None:
    assert run_script("exiting_child.py", tiny_artifact(tmp_path), way) == ("ready\n", "")


def test_an_interpreter_ends_beside_daemons_that_wait(tmp_path: Path) -> None:
    """Whose frames nobody ends: the core may find its objects in use, and says so."""
    said, errors = run_script("exiting_child.py", tiny_artifact(tmp_path), "daemons")
    assert said == "ready\n"
    assert not errors or errors.startswith("nanobind: leaked")


def test_a_forked_child_uses_the_model(tmp_path: Path) -> None:
    assert run_script("forking_child.py", tiny_artifact(tmp_path)) == ("ready\n", "")


@pytest.mark.parametrize(
    "way", ["unannounced", "engine", "handler", "tokenizer", "direct", "process", "mnn"]
)
def test_a_forked_child_never_waits_for_its_parents_threads(tmp_path: Path, way: str) -> None:
    if way == "mnn":
        pytest.importorskip("MNN")
    said, errors = run_script("lost_child.py", tiny_artifact(tmp_path, "w8"), way)
    assert said == "ready\n"
    assert not errors or errors.startswith("nanobind: leaked")  # frames that nobody ends
