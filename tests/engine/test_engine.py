from __future__ import annotations

import random

import numpy as np
import pytest

from deepmnn.engine.driver import Driver
from deepmnn.engine.engine import Engine
from deepmnn.engine.kv_cache import BlockTable
from deepmnn.engine.scheduler import Span
from deepmnn.engine.sequence import Sequence
from deepmnn.engine.session import Session
from deepmnn.errors import ContextLengthError, RequestError
from deepmnn.text.sampling_params import SamplingParams
from fake_backend import FakeBackend, expected_answer, expected_logits


def make_engine(
    blocks: int = 32, block_size: int = 4, context: int = 1000, **limits: int
) -> tuple[Engine, FakeBackend]:
    backend = FakeBackend()
    engine = Engine(backend, blocks * block_size, context, block_size=block_size, **limits)
    return engine, backend


def run(engine: Engine, limit: int = 10_000) -> None:
    while engine.scheduler.busy:
        engine.step()
        limit -= 1
        assert limit, "the engine does not come to an end"


def free_blocks(driver: Driver) -> int:
    """When the driver has done what was asked of it."""
    return driver.run(lambda engine: engine.manager.free_blocks)


@pytest.mark.parametrize("seed", range(12))
def test_answers_do_not_depend_on_the_batch(seed: int) -> None:
    """Random arrivals, cancellations, chunk sizes and a cache that is too small for all."""
    rng = random.Random(seed)
    engine, backend = make_engine(
        blocks=rng.randint(12, 40),
        block_size=rng.choice([1, 2, 4, 7]),
        max_batch_tokens=rng.choice([1, 3, 8, 64]),
        max_sequences=rng.randint(1, 9),
    )
    wanted: list[tuple[Sequence, list[int]]] = []
    for _ in range(60):
        if rng.random() < 0.3:
            prompt = [rng.randrange(3) for _ in range(rng.randint(1, engine.context_length - 1))]
            count = rng.randint(1, min(20, engine.context_length - len(prompt)))
            sequence = engine.submit(prompt, SamplingParams(max_tokens=count))
            wanted.append((sequence, expected_answer(prompt, count, backend.vocab_size)))
        if rng.random() < 0.03 and wanted:
            engine.cancel(rng.choice(wanted)[0])
        engine.step()
        assert len(engine.scheduler.running) <= engine.scheduler.max_sequences
    run(engine)
    assert all(len(batch.ids) <= engine.scheduler.max_batch_tokens for batch in backend.steps)
    assert engine.manager.free_blocks == engine.cache.blocks
    assert wanted
    for sequence, answer in wanted:
        if sequence.finish_reason == "cancelled":
            assert sequence.answer == answer[: len(sequence.answer)]
        else:
            assert sequence.finish_reason == "length"
            assert sequence.answer == answer


def test_preemption_happens_and_loses_nothing() -> None:
    engine, backend = make_engine(blocks=8, block_size=2)
    params = SamplingParams(max_tokens=10)
    sequences = [engine.submit([i, i + 1, i + 2], params) for i in range(4)]
    run(engine)
    assert sum(s.preemptions for s in sequences) > 0
    assert sequences[0].preemptions == 0, "the oldest sequence always goes on"
    for i, sequence in enumerate(sequences):
        assert sequence.answer == expected_answer([i, i + 1, i + 2], 10, backend.vocab_size)


@pytest.mark.parametrize(("most", "together"), [(None, 9), (3, 3), (1, 1), (20, 9)])
def test_a_backend_may_run_fewer_sequences_at_once(most: int | None, together: int) -> None:
    engine = Engine(FakeBackend(max_sequences=most), 640, 100, max_sequences=9)
    sequences = [engine.submit([i, 1], SamplingParams(max_tokens=5)) for i in range(12)]
    engine.step()
    assert len(engine.scheduler.running) == together
    run(engine)
    for i, sequence in enumerate(sequences):
        assert sequence.answer == expected_answer([i, 1], 5, engine.backend.vocab_size)


def test_a_preempted_sequence_goes_before_those_that_wait() -> None:
    engine, _ = make_engine(blocks=6, block_size=2, max_sequences=2)
    params = SamplingParams(max_tokens=8)
    first, second, third = (engine.submit([i, i + 1, i + 2], params) for i in range(3))
    while not second.preemptions:
        engine.step()
    assert list(engine.scheduler.waiting) == [second, third]
    run(engine)
    assert first.finish_reason == second.finish_reason == third.finish_reason == "length"
    assert second.cached_tokens == 0, "its own rows, found again, are no cached prompt"


def test_nobody_is_admitted_to_the_last_blocks_of_the_running() -> None:
    engine, _ = make_engine(blocks=3, block_size=2)
    first = engine.submit([1, 2, 3, 4], SamplingParams(max_tokens=2))
    second = engine.submit([5], SamplingParams(max_tokens=2))
    engine.step()
    assert engine.manager.free_blocks == 1
    assert second.length == 0, "the first would be short of a block for its next token"
    run(engine)
    assert first.preemptions == second.preemptions == 0


def test_decodes_run_beside_a_chunked_prefill() -> None:
    engine, backend = make_engine(blocks=64, max_batch_tokens=8)
    short = engine.submit([1, 2], SamplingParams(max_tokens=20))
    engine.step()
    engine.submit(list(range(40)), SamplingParams(max_tokens=2))
    engine.step()
    assert backend.steps[-1].context_lengths.tolist() == [3, 7]
    assert short.completion_tokens == 2
    run(engine)


def test_a_prefix_is_run_once() -> None:
    engine, backend = make_engine(blocks=64, block_size=4)
    prefix = list(range(40))
    first = engine.submit([*prefix, 1], SamplingParams(max_tokens=3))
    run(engine)
    before = sum(len(batch.ids) for batch in backend.steps)
    second = engine.submit([*prefix, 2], SamplingParams(max_tokens=3))
    run(engine)
    assert (first.cached_tokens, second.cached_tokens) == (0, 40)
    assert sum(len(batch.ids) for batch in backend.steps) - before == 1 + 2
    assert second.answer == expected_answer([*prefix, 2], 3, backend.vocab_size)


def test_eos_ends_the_answer() -> None:
    engine, backend = make_engine()
    answer = expected_answer([5, 6], 10, backend.vocab_size)
    engine.eos_ids = frozenset({answer[3]})
    stopped = engine.submit([5, 6], SamplingParams(max_tokens=10))
    ignored = engine.submit([5, 6], SamplingParams(max_tokens=10, ignore_eos=True))
    run(engine)
    assert (stopped.finish_reason, ignored.finish_reason) == ("stop", "length")
    assert stopped.answer == answer[: answer.index(answer[3]) + 1]
    assert ignored.answer == answer


def test_impossible_requests_are_refused_before_any_work() -> None:
    engine, backend = make_engine(blocks=4, block_size=4, context=12)
    wrong = ([], [backend.vocab_size], [-1], [[1, 2]], [[1], [2, 3]], ["a"], [0.5], [2**70], None)
    for ids in (*wrong, [1, True], [10**5000], "ab", b"ab", {1, 2}, (i for i in (1, 2))):
        with pytest.raises(RequestError):
            engine.submit(ids, SamplingParams())
    for length, max_tokens in ((13, 1), (12, 1), (10**12, 5), (12, None)):
        with pytest.raises(ContextLengthError, match="12"):
            engine.submit(range(length), SamplingParams(max_tokens=max_tokens))
    assert not backend.steps
    assert not engine.scheduler.busy
    for most in (None, 5, 2**80):
        sequence = engine.submit([1] * 8, SamplingParams(max_tokens=most))
        run(engine)
        assert (len(sequence.answer), sequence.finish_reason) == (4, "length")


def test_open_sessions_can_fill_the_cache_without_a_hang() -> None:
    engine, backend = make_engine(blocks=4, block_size=4)
    driver = Driver(engine)
    with Session(driver) as session:
        session.prefill([1] * 13)
        sequence = engine.submit([1] * 8, SamplingParams(max_tokens=2))
        run(engine)
        assert sequence.finish_reason == "error"
        with pytest.raises(ContextLengthError, match="sessions"):
            raise sequence.error or AssertionError
        with pytest.raises(ContextLengthError):
            session.prefill([1] * 4)
        assert session.length == 13
    assert free_blocks(driver) == engine.cache.blocks
    sequence = engine.submit([1] * 8, SamplingParams(max_tokens=2))
    run(engine)
    assert sequence.answer == expected_answer([1] * 8, 2, backend.vocab_size)


def test_only_what_does_not_fit_beside_a_session_is_refused() -> None:
    engine, backend = make_engine(blocks=4, block_size=4)
    session = Session(Driver(engine))
    session.prefill([1] * 9)
    large = engine.submit([2] * 5, SamplingParams(max_tokens=2))
    small = engine.submit([3], SamplingParams(max_tokens=3))
    run(engine)
    assert isinstance(large.error, ContextLengthError)
    assert small.answer == expected_answer([3], 3, backend.vocab_size)


def test_running_sequences_give_way_to_a_session() -> None:
    engine, backend = make_engine(blocks=7, block_size=2)
    driver, ids = Driver(engine), [7, 8, 9, 10, 11, 12, 13]
    prompts = ([1, 2, 3], [5, 6, 7])
    session = Session(driver)

    def start(engine: Engine) -> list[Sequence]:
        started = [engine.submit(prompt, SamplingParams(max_tokens=4)) for prompt in prompts]
        engine.step()
        wanted = expected_logits(ids, backend.vocab_size)
        np.testing.assert_array_equal(session.prefill(ids), wanted)
        assert [sequence.preemptions for sequence in started] == [0, 1]
        return started

    sequences = driver.run(start)
    while driver.run(lambda engine: engine.scheduler.busy):
        pass
    for prompt, sequence in zip(prompts, sequences, strict=True):
        assert sequence.answer == expected_answer(prompt, 4, backend.vocab_size)


@pytest.mark.parametrize("seed", range(8))
def test_session_random_walk(seed: int) -> None:
    """prefill, decode and rollback of two sessions that share prefixes give the right logits."""
    rng = random.Random(seed)
    engine, backend = make_engine(blocks=40, block_size=rng.choice([1, 3, 4]), max_batch_tokens=5)
    driver = Driver(engine)
    sessions = [Session(driver, share_prefix=True) for _ in range(2)]
    ids: list[list[int]] = [[], []]
    for _ in range(80):
        which = rng.randrange(2)
        session, mine = sessions[which], ids[which]
        if mine and (rng.random() < 0.3 or len(mine) > 15):
            length = rng.randint(0, len(mine))
            session.rollback(length)
            del mine[length:]
        else:
            new = [rng.randrange(2) for _ in range(rng.choice([1, 1, 2, 5]))]
            logits = session.decode(new[0]) if len(new) == 1 else session.prefill(new)
            mine += new
            np.testing.assert_array_equal(logits, expected_logits(mine, backend.vocab_size))
        assert (session.length, session.ids) == (len(mine), mine)
    for session in sessions:
        session.close()
        session.close()
    assert free_blocks(driver) == engine.cache.blocks


def test_tables_driven_from_outside_run_side_by_side() -> None:
    engine, backend = make_engine(blocks=8, block_size=4, max_batch_tokens=6)
    tables = [BlockTable([1, 2, 3, 4]), BlockTable([5, 6, 7, 8, 9]), BlockTable([1])]
    engine.run_pending(tables)
    assert [len(batch.ids) for batch in backend.steps] == [6, 4]
    tables[1].ids.append(3)
    engine.run_pending(tables)
    assert backend.steps[-1].context_lengths.tolist() == [6]
    assert [table.pending for table in tables] == [0, 0, 0]
    tables[0].ids += [0] * 40
    with pytest.raises(ContextLengthError):
        engine.run_pending(tables)
    for table in tables:
        engine.manager.free(table)
    assert engine.manager.free_blocks == engine.cache.blocks
    engine.run_pending([])


def test_guesses_are_verified_in_one_step() -> None:
    """Several rows of one sequence, beside one that wants its last and one in mid-prompt."""
    engine, backend = make_engine()
    prompt = [3, 1, 4, 1, 5]
    guess = expected_answer(prompt, 4, backend.vocab_size)
    verifying, other, longer = BlockTable(list(prompt)), BlockTable([9, 2]), BlockTable([6] * 8)
    engine.run_pending([verifying])
    verifying.ids += guess
    spans = [Span(verifying, 4, 4), Span(other, 2, 1), Span(longer, 5, 0)]
    for span in spans:
        engine.manager.append(span.table, span.count)
    logits = engine.forward(spans)
    contexts = [[*prompt, *guess[: i + 1]] for i in range(4)] + [[9, 2]]
    wanted = [expected_logits(ids, backend.vocab_size) for ids in contexts]
    np.testing.assert_array_equal(logits, np.stack(wanted))
    assert [table.pending for table in (verifying, other, longer)] == [0, 0, 3]
    engine.manager.rollback(verifying, len(prompt) + 2)  # the last two guesses were wrong
    verifying.ids[len(prompt) + 2 :] = [8]
    engine.manager.append(verifying, 1)
    np.testing.assert_array_equal(
        engine.forward([Span(verifying, 1, 1)])[0],
        expected_logits([*prompt, *guess[:2], 8], backend.vocab_size),
    )


def test_session_logits_of_every_row_in_chunks() -> None:
    engine, backend = make_engine(max_batch_tokens=4)
    ids = [3, 1, 4, 1, 5, 9, 2, 6, 5]
    with Session(Driver(engine)) as session:
        logits = session.logits(ids)
    wanted = [expected_logits(ids[: i + 1], backend.vocab_size) for i in range(len(ids))]
    np.testing.assert_array_equal(logits, np.stack(wanted))


def test_session_logits_come_for_cached_tokens_too() -> None:
    engine, backend = make_engine()
    driver = Driver(engine)
    ids = [3, 1, 4, 1, 5, 9, 2, 6, 5]
    with Session(driver) as session:
        session.prefill(ids)
    with Session(driver, share_prefix=True) as session:
        logits = session.logits(ids)
    wanted = [expected_logits(ids[: i + 1], backend.vocab_size) for i in range(len(ids))]
    np.testing.assert_array_equal(logits, np.stack(wanted))


def test_session_errors_leave_it_as_it_was() -> None:
    engine, backend = make_engine(blocks=4, block_size=4, context=12)
    session = Session(Driver(engine))
    session.prefill([1, 2, 3])
    for wrong in (-1, 4, "2"):
        with pytest.raises(RequestError):
            session.rollback(wrong)
    with pytest.raises(RequestError):
        session.prefill([])
    with pytest.raises(RequestError):
        session.decode(backend.vocab_size)
    with pytest.raises(ContextLengthError):
        session.prefill([1] * 10)
    assert session.ids == [1, 2, 3]
    np.testing.assert_array_equal(
        session.decode(4), expected_logits([1, 2, 3, 4], backend.vocab_size)
    )
    session.close()
    with pytest.raises(RequestError, match="closed"):
        session.decode(1)
