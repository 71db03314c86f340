"""A model whose weights cannot be read: an error for who needed them, and for nobody else."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pytest

import deepmnn
from deepmnn.backends.base import F32, Batch
from deepmnn.engine.driver import Driver
from deepmnn.engine.engine import Engine
from deepmnn.engine.request import Event, Failure, Request, result_of
from deepmnn.engine.session import Session
from deepmnn.errors import ArtifactError
from deepmnn.text.sampling_params import SamplingParams
from fake_backend import FakeBackend, FakeCache, expected_answer, expected_logits
from tiny_artifact import tiny_artifact

VOCAB = 97
TWELVE = SamplingParams(max_tokens=12, ignore_eos=True)


class Streamed(FakeBackend):
    """Tokens need experts, which are read.

    damaged: those that never come. failures: reads that fail from now on, whoever needs them. The
    rows of a step that fails are garbage.
    """

    def __init__(self) -> None:
        super().__init__()
        self.damaged: set[int] = set()
        self.failures = 0
        self.calls = 0

    def step(self, cache: FakeCache, batch: Batch) -> F32:
        self.calls += 1
        missing = self.damaged.intersection(batch.ids.tolist())
        if self.failures or missing:
            self.failures = max(0, self.failures - 1)
            starts = batch.sequence_starts
            for index, table in enumerate(batch.block_tables):
                for position in batch.positions[starts[index] : starts[index + 1]]:
                    slot = table[position // cache.block_size], position % cache.block_size
                    cache.tokens[slot] = cache.positions[slot] = -7
            raise ArtifactError(f"expert {missing} cannot be read: Input/output error")
        return super().step(cache, batch)


def make_driver(directory: Path, **limits: int) -> tuple[Driver, Streamed]:
    backend = Streamed()
    engine = Engine(
        backend, 400, 1000, block_size=4, kv_disk=1 << 22, kv_directory=directory, **limits
    )
    return Driver(engine), backend


def ask_all(driver: Driver, prompts: list[list[int]]) -> list[Event]:
    """How each of them ended, all asked for together."""
    events: SimpleQueue[Event] = SimpleQueue()
    driver.submit(
        Request(driver.engine.sequence(ids, TWELVE), events.put, index, whole=True)
        for index, ids in enumerate(prompts)
    )
    found = {event.index: event for event in (events.get(timeout=60) for _ in prompts)}
    return [found[index] for index in range(len(prompts))]


def answer(ids: list[int]) -> list[int]:
    return expected_answer(ids, 12, VOCAB)


@pytest.mark.parametrize("max_batch_tokens", [8, 512])
def test_an_expert_that_cannot_be_read(tmp_path: Path, max_batch_tokens: int) -> None:
    """It ends the answers that need it, in a prompt or later, and no other."""
    driver, backend = make_driver(tmp_path, max_batch_tokens=max_batch_tokens)
    prompts = [[n, n + 1, *range(n, n + 20)] for n in range(12)]
    backend.damaged = {25, answer(prompts[0])[6]}
    needed = [backend.damaged & {*ids, *answer(ids)[:-1]} for ids in prompts]
    assert 2 < sum(map(bool, needed)) < 12
    for ids, event, damaged in zip(prompts, ask_all(driver, prompts), needed, strict=True):
        assert isinstance(event, Failure) == bool(damaged)
        if damaged:
            with pytest.raises(ArtifactError, match="cannot be read"):
                result_of(event)
        else:
            assert result_of(event).ids == answer(ids)
    backend.damaged.clear()
    for ids, event in zip(prompts, ask_all(driver, prompts), strict=True):
        assert result_of(event).ids == answer(ids)
    assert driver.run(lambda engine: engine.manager.free_blocks) == driver.engine.cache.blocks


def test_a_read_that_fails_once(tmp_path: Path) -> None:
    """Whoever shares the step tries again alone; who was alone gets the error, and asks again."""
    driver, backend = make_driver(tmp_path)
    prompts = [[n, n + 1, n + 2] for n in range(5)]
    backend.failures = 1
    assert [result_of(e).ids for e in ask_all(driver, prompts)] == [answer(ids) for ids in prompts]
    backend.failures = 1
    [event] = ask_all(driver, [[9, 9]])
    with pytest.raises(ArtifactError):
        result_of(event)
    [event] = ask_all(driver, [[9, 9]])
    assert result_of(event).ids == answer([9, 9])


def test_a_model_that_stays_refused_ends_all_at_once(tmp_path: Path) -> None:
    driver, backend = make_driver(tmp_path, max_sequences=8)
    backend.failures = 1 << 30
    prompts = [[n, n + 1, n + 2] for n in range(40)]
    for event in ask_all(driver, prompts):
        with pytest.raises(ArtifactError, match="cannot be read"):
            result_of(event)
    assert backend.calls <= 2 * len(prompts), "together, then each alone, and no third time"
    backend.failures = 0
    assert [result_of(e).ids for e in ask_all(driver, prompts)] == [answer(ids) for ids in prompts]


def test_sessions_that_fail_are_as_they_were(tmp_path: Path) -> None:
    """In memory or on disk, beside others that run on."""
    driver, backend = make_driver(tmp_path, max_batch_tokens=8)
    backend.damaged = {90}
    sessions = [Session(driver) for _ in range(12)]
    ids = [[n] * (30 + n) for n in range(12)]  # more than the cache holds
    for session, mine in zip(sessions, ids, strict=True):
        session.prefill(mine)
    with ThreadPoolExecutor(4) as pool:
        asked = pool.submit(ask_all, driver, [[1, 2], [3, 90, 4]])
        for session, mine in zip(sessions, ids, strict=True):
            with pytest.raises(ArtifactError):
                session.prefill([*range(10), 90, 3])
            with pytest.raises(ArtifactError):
                session.logits([90])
            assert session.ids == mine
            mine.append(5)
            np.testing.assert_array_equal(session.decode(5), expected_logits(mine, VOCAB))
        good, bad = asked.result()
    assert result_of(good).ids == answer([1, 2])
    assert isinstance(bad, Failure)
    disk = driver.engine.manager.disk
    assert disk is not None
    assert disk.read
    assert not disk.lost


def test_a_session_whose_lost_rows_cannot_be_run_again(tmp_path: Path) -> None:
    """The disk fails, then the model: what was said before stays, and is run when it can be."""
    driver, backend = make_driver(tmp_path, max_batch_tokens=8)
    session, other = Session(driver), Session(driver)
    ids = [*range(60, 90)]
    session.prefill(ids)
    other.prefill([1] * 390)
    disk = driver.engine.manager.disk
    assert disk is not None
    os.ftruncate(disk._file, 0)
    backend.failures = 1
    with pytest.raises(ArtifactError):
        session.decode(7)
    assert session.ids == ids
    session.rollback(29)
    ids[29:] = [8]
    np.testing.assert_array_equal(session.decode(8), expected_logits(ids, VOCAB))


def test_a_weight_file_that_is_cut_while_many_ask(tmp_path: Path) -> None:
    """The real engine, whose mapped model stays refused from then on."""
    made = tiny_artifact(tmp_path, "w8")
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    model = deepmnn.load(copy, threads=2, max_sequences=4)
    prompts = [[n, n + 1, n + 2] for n in range(2, 14)]
    session = model.session()
    session.prefill([4, 5, 6])
    streams = [model.stream(ids, SamplingParams(max_tokens=150)) for ids in prompts]
    for stream in streams[:2]:
        next(stream)
    [shard] = copy.glob("*.safetensors")
    os.truncate(shard, 4096)
    for stream in streams:
        with pytest.raises(ArtifactError, match="cut"):
            list(stream)
    with pytest.raises(ArtifactError, match="cut"):
        session.decode(7)
    assert session.ids == [4, 5, 6]
    with pytest.raises(ArtifactError, match="cut"):
        model.generate(prompts)
    assert not model.engine.scheduler.busy
