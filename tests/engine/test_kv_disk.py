"""Blocks that go to disk: the same rows come back, or none."""

from __future__ import annotations

import errno
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deepmnn.engine import kv_disk
from deepmnn.engine.driver import Driver
from deepmnn.engine.engine import Engine
from deepmnn.engine.kv_cache import BlockManager, BlockTable
from deepmnn.engine.kv_disk import KvDisk
from deepmnn.engine.sequence import Sequence
from deepmnn.engine.session import Session
from deepmnn.errors import ContextLengthError, RequestError, StorageError
from deepmnn.text.sampling_params import SamplingParams
from fake_backend import FakeBackend, FakeCache, expected_answer, expected_logits

SLOT = 4096
"""Bytes of a block of the fake cache on disk."""


def make_manager(directory: Path, blocks: int, block_size: int, capacity: int) -> BlockManager:
    cache = FakeCache(blocks, block_size)
    return BlockManager(cache, KvDisk(cache, capacity * SLOT, directory))


def make_engine(
    directory: Path, blocks: int, block_size: int = 4, capacity: int = 1000, **limits: int
) -> tuple[Engine, FakeBackend]:
    backend = FakeBackend()
    engine = Engine(
        backend,
        blocks * block_size,
        1000,
        block_size=block_size,
        kv_disk=capacity * SLOT,
        kv_directory=directory,
        **limits,
    )
    return engine, backend


def disk_of(manager: BlockManager) -> KvDisk:
    assert manager.disk is not None
    return manager.disk


def write(manager: BlockManager, table: BlockTable, count: int) -> None:
    """Reserves rows and fills them as a backend would."""
    manager.append(table, count)
    cache = manager.cache
    for row in range(table.length, table.length + count):
        slot = table.blocks[row // cache.block_size], row % cache.block_size
        cache.tokens[slot], cache.positions[slot] = table.ids[row], row
    manager.commit(table, count)


def check(manager: BlockManager, tables: list[BlockTable]) -> None:
    """What must hold between any two calls."""
    cache, disk = manager.cache, disk_of(manager)
    held = [block for table in tables for block in table.blocks]
    assert [manager.references(b) for b in range(cache.blocks)] == [
        held.count(b) for b in range(cache.blocks)
    ]
    names = {name for table in tables for name in table.parked or ()}
    assert names == set(disk._holders)
    assert len(disk) <= disk.capacity
    for table in tables:
        if table.parked is not None:
            assert not table.blocks
            assert len(table.parked) == -(-table.length // cache.block_size)
            continue
        rows = [table.blocks[r // cache.block_size] for r in range(table.length)]
        stored = [cache.tokens[b, r % cache.block_size] for r, b in enumerate(rows)]
        assert stored == table.ids[: table.length], "rows are not this sequence's tokens"


def damage(disk: KvDisk, rng: random.Random) -> None:
    """Flips a bit of every block on the disk."""
    for slot in [*disk._held.values(), *disk._loose.values()]:
        page = memoryview(kv_disk.mmap.mmap(-1, SLOT))
        os.preadv(disk._file, [page], slot.place * SLOT)
        page[rng.randrange(disk._cache.block_nbytes)] ^= 1 << rng.randrange(8)
        os.pwritev(disk._file, [page], slot.place * SLOT)


@pytest.mark.parametrize("seed", range(25))
def test_random_walk_against_a_cache_without_limits(seed: int, tmp_path: Path) -> None:
    """Every row of every table is its own token at any time; none is lost unless the disk is."""
    rng = random.Random(seed)
    block_size, harmful = rng.choice([1, 2, 3, 8]), seed % 5 == 4
    manager = make_manager(tmp_path, rng.randint(4, 16), block_size, rng.choice([1, 6, 100]))
    tables: list[BlockTable] = []
    for _ in range(300):
        action = rng.random()
        if action < 0.2 and len(tables) < 12:
            table = BlockTable([rng.randrange(2) for _ in range(rng.randint(1, 4 * block_size))])
            manager.share_prefix(table)
            tables.append(table)
        elif tables:
            table = rng.choice(tables)
            if action < 0.6:
                if table.parked is not None:
                    if manager.missing(table) > manager.free_blocks:
                        continue
                    length = table.length
                    manager.unpark(table)
                    assert harmful or table.length == length
                table.ids += [rng.randrange(2)] * (table.pending == 0)
                count = min(table.pending, manager.room(table), rng.randint(1, 2 * block_size))
                if count:
                    write(manager, table, count)
            elif action < 0.8:
                length, blocks = table.length, list(table.blocks)
                if not manager.park(table):
                    assert table.blocks == blocks
                assert table.length == length
            elif action < 0.92:
                length = rng.randint(0, table.length)
                manager.rollback(table, length)
                del table.ids[max(1, length) :]
                table.ids += [rng.randrange(2) for _ in range(rng.randint(0, 3))]
            elif action < 0.97 or not harmful:
                manager.free(table)
                tables.remove(table)
            else:
                damage(disk_of(manager), rng)
        check(manager, tables)
    for table in tables:
        manager.free(table)
    assert manager.free_blocks == manager.cache.blocks
    assert not disk_of(manager)._holders
    assert not disk_of(manager)._held
    assert {len(name) for name in disk_of(manager)._loose} <= {16}, "nobody looks for others"


def test_a_prefix_that_made_room_is_read_and_not_run_again(tmp_path: Path) -> None:
    engine, backend = make_engine(tmp_path, blocks=12)
    prompts = [[index] * 4 + list(range(30)) for index in range(5)]
    for _ in range(2):
        for prompt in prompts:
            engine.submit(prompt, SamplingParams(max_tokens=2))
            run(engine)
    sequences = sum(len(batch.ids) for batch in backend.steps)
    assert sequences == 5 * (34 + 1) + 5 * (2 + 1), "all whole blocks came back"
    disk = disk_of(engine.manager)
    assert disk.read
    assert disk.written == len(disk), "each is written once"
    assert not disk.lost


def run(engine: Engine, limit: int = 10_000) -> None:
    while engine.scheduler.busy:
        engine.step()
        limit -= 1
        assert limit, "the engine does not come to an end"


@pytest.mark.parametrize("seed", range(12))
def test_answers_and_sessions_over_a_small_cache(seed: int, tmp_path: Path) -> None:
    """Requests, cancellations and sessions together, each as if it were alone."""
    rng = random.Random(seed)
    size = rng.choice([1, 2, 4, 7])
    engine, backend = make_engine(
        tmp_path,
        blocks=-(-60 // size),
        block_size=size,
        capacity=rng.choice([400, 3000]) // size,
        max_batch_tokens=rng.choice([3, 8, 64]),
        max_sequences=rng.randint(1, 9),
    )
    driver = Driver(engine)
    sessions = [Session(driver, share_prefix=rng.random() < 0.5) for _ in range(6)]
    ids: list[list[int]] = [[] for _ in sessions]
    wanted: list[tuple[Sequence, list[int]]] = []

    def submit(engine: Engine) -> None:
        prompt = [rng.randrange(3) for _ in range(rng.randint(1, 30))]
        count = rng.randint(1, 20)
        sequence = engine.submit(prompt, SamplingParams(max_tokens=count))
        wanted.append((sequence, expected_answer(prompt, count, backend.vocab_size)))

    for _ in range(60):
        if rng.random() < 0.4:
            driver.run(submit)
            if rng.random() < 0.1:
                driver.run(lambda engine: engine.cancel(rng.choice(wanted)[0]))
        which = rng.randrange(len(sessions))
        session, mine = sessions[which], ids[which]
        if mine and (rng.random() < 0.2 or len(mine) > 40):
            length = rng.randint(0, len(mine))
            session.rollback(length)
            del mine[length:]
            continue
        new = [rng.randrange(2) for _ in range(rng.choice([1, 1, 2, 15]))]
        mine += new
        if rng.random() < 0.3:
            got = session.logits(new)
            first = len(mine) - len(new) + 1
            rows = [
                expected_logits(mine[:n], backend.vocab_size) for n in range(first, len(mine) + 1)
            ]
            np.testing.assert_array_equal(got, np.stack(rows))
        else:
            np.testing.assert_array_equal(
                session.prefill(new), expected_logits(mine, backend.vocab_size)
            )
        assert (session.length, session.ids) == (len(mine), mine)
    while driver.run(lambda engine: engine.scheduler.busy):
        pass
    for sequence, answer in wanted:
        whole = sequence.finish_reason != "cancelled"
        assert sequence.error is None
        assert sequence.answer == (answer if whole else answer[: len(sequence.answer)])
    for session in sessions:
        session.close()
    assert driver.run(lambda engine: engine.manager.free_blocks) == engine.cache.blocks
    assert not disk_of(engine.manager)._holders
    assert not driver.run(lambda engine: engine.scheduler._resting)


def test_open_sessions_make_room_and_run_nothing_again(tmp_path: Path) -> None:
    engine, backend = make_engine(tmp_path, blocks=5, block_size=4)
    driver = Driver(engine)
    sessions = [Session(driver) for _ in range(10)]
    prompts = [[index, *range(14)] for index in range(10)]
    for session, prompt in zip(sessions, prompts, strict=True):
        session.prefill(prompt)
    for _ in range(3):
        for session, prompt in zip(sessions, prompts, strict=True):
            prompt.append(7)
            wanted = expected_logits(prompt, backend.vocab_size)
            np.testing.assert_array_equal(session.decode(7), wanted)
    assert sum(len(batch.ids) for batch in backend.steps) == 10 * (15 + 3)


def test_preempted_answers_run_nothing_again(tmp_path: Path) -> None:
    engine, backend = make_engine(tmp_path, blocks=8, block_size=5)
    prompts = [[i] * (2 + i) for i in range(6)]
    sequences = [engine.submit(prompt, SamplingParams(max_tokens=10)) for prompt in prompts]
    run(engine)
    assert sum(s.preemptions for s in sequences) > 0
    for prompt, sequence in zip(prompts, sequences, strict=True):
        assert sequence.answer == expected_answer(prompt, 10, backend.vocab_size)
    assert sum(len(batch.ids) for batch in backend.steps) == sum(len(p) + 9 for p in prompts)


def test_a_parked_tail_that_others_hold_comes_back_as_it_was(tmp_path: Path) -> None:
    manager = make_manager(tmp_path, blocks=6, block_size=4, capacity=50)
    parent = BlockTable([1, 2, 3, 4, 5, 6])
    write(manager, parent, 6)
    child = BlockTable([1, 2, 3, 4, 5, 6, 7])
    manager.fork(parent, child)
    assert manager.park(child)
    parent.ids[5:] = [9, 9]
    manager.rollback(parent, 5)
    write(manager, parent, 2)  # in place: it holds the block alone now
    check(manager, [parent, child])
    manager.unpark(child)
    check(manager, [parent, child])
    assert child.length == 6
    other = BlockTable([*child.ids[:6], 8])
    manager.fork(child, other)
    assert manager.park(child)
    assert manager.park(other)
    for table in (child, other):
        manager.unpark(table)
        assert table.length == 6
        check(manager, [parent, child, other])
        write(manager, table, 1)
    check(manager, [parent, child, other])


@pytest.mark.parametrize("lost", range(5))
def test_rows_reserved_ahead_are_no_tokens(tmp_path: Path, lost: int) -> None:
    """A table with blocks for guesses that nobody made comes back without one of its blocks."""
    manager = make_manager(tmp_path, blocks=6, block_size=4, capacity=50)
    table = BlockTable(list(range(11)))
    write(manager, table, 10)
    manager.append(table, 7)
    keys = list(table.keys)
    assert len(table.blocks) == 5
    assert manager.park(table)
    assert table.parked is not None
    name = table.parked[lost]
    filler = BlockTable([50] * 24)
    write(manager, filler, 24)
    manager.free(filler)
    disk_of(manager)._remove(name)
    manager.unpark(table)
    assert table.length == min(10, 4 * lost)
    assert table.keys == keys[: table.length // 4]
    write(manager, table, table.pending)
    check(manager, [table])


def test_what_differs_in_the_last_bits_is_not_taken_for_the_same(tmp_path: Path) -> None:
    """Two sequences of the same tokens that were computed apart get their own rows back."""
    manager = make_manager(tmp_path, blocks=4, block_size=2, capacity=50)
    first, second = BlockTable([1, 2, 3, 4, 5]), BlockTable([1, 2, 3, 4, 5])
    for table, mark in ((first, 100), (second, 200)):
        write(manager, table, 4)
        manager.cache.positions[table.blocks] += mark
        assert manager.park(table)
        filler = BlockTable([9] * 8)
        write(manager, filler, 8)
        manager.free(filler)
    for table, mark in ((second, 200), (first, 100)):
        manager.unpark(table)
        positions = manager.cache.positions[table.blocks].reshape(-1)
        assert positions.tolist() == [mark, mark + 1, mark + 2, mark + 3]
        manager.park(table)


@pytest.mark.parametrize("every_row", [False, True])
def test_a_damaged_block_is_run_again(tmp_path: Path, every_row: bool) -> None:
    engine, backend = make_engine(tmp_path, blocks=8, max_batch_tokens=5)
    driver = Driver(engine)
    session, other = Session(driver), Session(driver)
    ids = list(range(20))
    session.prefill(ids)
    other.prefill([1] * 30)
    disk = disk_of(engine.manager)
    driver.run(lambda _: damage(disk, random.Random(0)))
    ids += [4, 5]
    got = session.logits([4, 5]) if every_row else session.prefill([4, 5])[None]
    wanted = [expected_logits(ids[:n], backend.vocab_size) for n in (21, 22)]
    np.testing.assert_array_equal(got, np.stack(wanted)[-len(got) :])
    assert len(got) == 1 + every_row
    assert disk.lost
    assert session.ids == ids


def test_what_cannot_be_read_is_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine, backend = make_engine(tmp_path, blocks=8)
    driver = Driver(engine)
    session, other = Session(driver), Session(driver)
    session.prefill(list(range(20)))
    other.prefill([1] * 30)

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(kv_disk.os, "preadv", fail)
        wanted = expected_logits([*range(20), 3], backend.vocab_size)
        np.testing.assert_array_equal(session.decode(3), wanted)
    assert "cannot be read: Input/output error" in caplog.text
    os.ftruncate(disk_of(engine.manager)._file, 0)  # and the file of somebody who cuts it
    np.testing.assert_array_equal(other.decode(2), expected_logits([1] * 30 + [2], 97))


def test_a_full_disk_is_told_once_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine, _backend = make_engine(tmp_path, blocks=8)
    driver, disk = Driver(engine), disk_of(engine.manager)
    sessions = [Session(driver) for _ in range(3)]

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    ids: list[list[int]] = [[number] * 20 for number in range(3)]
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(kv_disk.os, "pwritev", full)
        patch.setattr(kv_disk, "_PAUSE", 0.0)
        for session, mine in zip(sessions, ids, strict=True):
            session.prefill(mine)
        for session, mine in zip(sessions, ids, strict=True):
            mine.append(1)
            np.testing.assert_array_equal(session.decode(1), expected_logits(mine, 97))
    assert caplog.text.count("No space left on device; expected room for them") == 1
    assert not disk.written
    assert disk.unwritten
    for session, mine in zip(sessions, ids, strict=True):
        mine.append(2)
        np.testing.assert_array_equal(session.decode(2), expected_logits(mine, 97))
    assert disk.written


def test_a_full_budget_keeps_sessions_in_memory(tmp_path: Path) -> None:
    """What is idle has its place on the disk before it lets go of its memory."""
    engine, _backend = make_engine(tmp_path, blocks=8, capacity=3)
    driver = Driver(engine)
    first, second = Session(driver), Session(driver)
    first.prefill([1] * 20)
    with pytest.raises(ContextLengthError, match="sessions"):
        second.prefill([2] * 20)
    np.testing.assert_array_equal(first.decode(3), expected_logits([1] * 20 + [3], 97))


def test_the_file_has_no_name_and_outlives_its_directory(tmp_path: Path) -> None:
    directory = tmp_path / "deep" / "kv"
    engine, backend = make_engine(directory, blocks=8)
    driver = Driver(engine)
    sessions = [Session(driver) for _ in range(4)]
    for number, session in enumerate(sessions):
        session.prefill([number] * 20)
    assert disk_of(engine.manager).written
    assert not list(directory.iterdir())
    shutil.rmtree(directory)
    for number, session in enumerate(sessions):
        wanted = expected_logits([number] * 20 + [5], backend.vocab_size)
        np.testing.assert_array_equal(session.decode(5), wanted)
    assert not disk_of(engine.manager).lost


@pytest.mark.parametrize("refused", ["at once", "by the first write"])
def test_a_file_system_without_direct_transfers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    write = os.pwritev
    if refused == "at once":
        monkeypatch.setattr(kv_disk, "_make_direct", lambda file: False)
    else:

        def picky(file: int, *rest: object) -> int:
            if kv_disk.fcntl(file, kv_disk.F_GETFL) & os.O_DIRECT:
                raise OSError(errno.EINVAL, "Invalid argument")
            return write(file, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr(kv_disk.os, "pwritev", picky)
    manager = make_manager(tmp_path, blocks=2, block_size=4, capacity=9)
    disk = disk_of(manager)
    manager.cache.tokens[0] = [4, 5, 6, 7]
    if refused == "at once":
        kv_disk._make_buffered(disk._file)
    assert disk.save(b"name", 0)
    assert disk.load(b"name", 1)
    assert manager.cache.tokens[1].tolist() == [4, 5, 6, 7]


def test_without_o_tmpfile_the_name_is_gone_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def old(path: object, flags: int, *mode: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return real(path, flags, *mode)  # type: ignore[arg-type]

    monkeypatch.setattr(kv_disk.os, "open", old)
    manager = make_manager(tmp_path, blocks=2, block_size=4, capacity=9)
    assert disk_of(manager).save(b"name", 0)
    assert not list(tmp_path.iterdir())


def test_wrong_places_and_sizes(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="which one block of the KV cache takes"):
        KvDisk(FakeCache(2, 4), 100, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        KvDisk(FakeCache(2, 4), SLOT, tmp_path / "file")


_KILLED = """
import os, signal, sys
sys.path[:0] = {path!r}
from pathlib import Path
from test_kv_disk import make_manager, disk_of
manager = make_manager(Path(sys.argv[1]), 2, 4, 9)
assert disk_of(manager).save(b"name", 0)
if len(sys.argv) > 2:  # a child has a file of its own
    if not os.fork():
        assert not disk_of(manager).load(b"name", 1)
        assert disk_of(manager).save(b"name", 1) and disk_of(manager).load(b"name", 0)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 7
    assert disk_of(manager).load(b"name", 1)
    manager.cache.tokens[0] = 3
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("more", [[], ["fork"]], ids=["alone", "forked"])
def test_a_killed_process_leaves_nothing(tmp_path: Path, more: list[str]) -> None:
    here = Path(__file__).parent
    code = _KILLED.format(path=[str(here), str(here.parent)])
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, tmp_path, *more],
        check=False,
        timeout=100,
    )
    assert done.returncode == -signal.SIGKILL
    assert not list(tmp_path.iterdir())
