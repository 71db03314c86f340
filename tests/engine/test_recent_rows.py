"""Blocks whose recent rows have places that are fewer than blocks: what must be there, is."""

from __future__ import annotations

import random

import pytest

from deepmnn.engine.kv_cache import BlockManager, BlockTable
from deepmnn.engine.recent_rows import SLACK, places
from deepmnn.errors import ContextLengthError
from deepmnn.graph.caches import (
    CacheEntry,
    block_multiple,
    block_nbytes,
    block_size,
    kept_width,
    window,
)
from fake_backend import FakeCache, RecentCache

V4 = {
    "window": CacheEntry(512, window=128),
    "entries": CacheEntry(512, ratio=4),
    "heavy": CacheEntry(512, ratio=128),
    "inputs": CacheEntry(2048, window=8, exact=True),
}


def write(manager: BlockManager, table: BlockTable, count: int, reach: int) -> None:
    """Reserves rows, looks whether those that they read are there, and fills them."""
    manager.append(table, count)
    cache = manager.cache
    assert isinstance(cache, RecentCache)
    size = cache.block_size
    read = range(max(0, table.length + 1 - reach), table.length)
    places = [int(cache.recents[table.blocks[row // size]]) for row in read]
    assert min(places, default=0) >= 0, "a row that is read has no place"
    found = [int(cache.recent_tokens[p, row % size]) for p, row in zip(places, read, strict=True)]
    assert found == table.ids[read.start : read.stop], "rows are not this sequence's tokens"
    for row in range(table.length, table.length + count):
        block, slot = table.blocks[row // size], row % size
        assert manager.references(block) == 1
        cache.tokens[block, slot], cache.positions[block, slot] = table.ids[row], row
        cache.recent_tokens[cache.recents[block], slot] = table.ids[row]
    manager.commit(table, count)


@pytest.mark.parametrize("seed", range(30))
def test_random_walk_finds_every_row_that_is_read(seed: int) -> None:
    rng = random.Random(seed)
    size, reach = rng.choice([2, 3, 8, 16]), rng.randint(1, 20)
    blocks = rng.randint(20, 60)
    least = (reach + SLACK) // size + 3
    manager = BlockManager(RecentCache(blocks, size, min(blocks, least)), window=reach)
    tables: list[BlockTable] = []
    begun: dict[BlockTable, int] = {}  # the length from which on a table has run by itself
    for _ in range(500):
        action = rng.random()
        if action < 0.2 and len(tables) < 5:
            table = BlockTable([rng.randrange(2) for _ in range(rng.randint(1, 5 * size))])
            if tables and rng.random() < 0.4:
                leader = rng.choice(tables)
                if leader.length > 1:
                    table = BlockTable(leader.ids[: leader.length])
                    manager.fork(leader, table)
            else:
                manager.share_prefix(table)
            tables.append(table)
            begun[table] = table.length
        elif tables:
            table = rng.choice(tables)
            if action < 0.75:
                table.ids += [rng.randrange(2)] * (table.pending == 0)
                count = min(rng.randint(1, table.pending), manager.room(table))
                if count:
                    write(manager, table, count, reach)
                else:
                    before = (table.length, list(table.blocks), manager.free_blocks)
                    with pytest.raises(ContextLengthError):
                        manager.append(table, 1)
                    assert before == (table.length, table.blocks, manager.free_blocks)
                    manager.free(table)
                    tables.remove(table)
            elif action < 0.9:
                length, was = rng.randint(0, table.length), table.length
                manager.rollback(table, length)
                assert table.length <= length
                if length >= begun[table] and was - length <= SLACK - size:
                    assert table.length == length, "a little is taken back at once"
                begun[table] = min(begun[table], table.length)
                del table.ids[max(1, length) :]
            else:
                manager.free(table)
                tables.remove(table)
        check(manager, tables)
    for table in tables:
        manager.free(table)
    assert manager.recent is not None
    assert manager.recent.free == manager.cache.recent_blocks


def check(manager: BlockManager, tables: list[BlockTable]) -> None:
    held = [block for table in tables for block in table.blocks]
    assert manager.free_blocks == manager.cache.blocks - len(set(held))
    assert manager.recent is not None
    needed = {table.blocks[index] for table in tables for index in table.recent}
    assert manager.recent.free == manager.cache.recent_blocks - len(needed)
    for table in tables:
        rows = [table.blocks[r // manager.block_size] for r in range(table.length)]
        cache = manager.cache
        assert isinstance(cache, FakeCache)
        stored = [cache.tokens[b, r % manager.block_size] for r, b in enumerate(rows)]
        assert stored == table.ids[: table.length]


def test_a_far_rollback_goes_to_a_border_that_can_be_gone_on_from() -> None:
    manager = BlockManager(RecentCache(40, 4, 14), window=4)
    table = BlockTable(list(range(100)))
    write(manager, table, 13, 4)
    write(manager, table, 40, 4)
    other = BlockTable([*range(13), 99])
    assert manager.share_prefix(other) in (0, 4, 8, 12)
    manager.rollback(table, 50)
    assert table.length == 50
    manager.rollback(table, 7)
    assert table.length in (0, 4, 7), "where the rows before are still there"


def test_places_are_for_all_sequences_but_no_more_than_blocks() -> None:
    assert places({"k": CacheEntry(7)}, 100, "f32", 512, 64) == 0
    assert block_size(V4) == 128
    assert places(V4, 10**6, "bf16", 512, 4) == 3 + 4 + 3 * (4 + 8)
    assert places(V4, 5, "bf16", 512, 4) == 5
    heavy = {"window": CacheEntry(1 << 20, window=128)}
    assert places(heavy, 10**6, "f32", 512, 64) == (128 + SLACK) // 32 + 1 + 512 // 32


def test_sizes_of_entries() -> None:
    assert block_multiple(V4) == 128
    assert block_multiple({}) == 1
    assert block_size({"a": CacheEntry(3, ratio=6), "b": CacheEntry(3, ratio=4)}) == 36
    assert window(V4) == 128
    assert window({}) == 0
    assert kept_width(V4) == 128 + 4
    kept, recent = block_nbytes(V4, 128, "bf16")
    assert kept == 2 * (32 * 512 + 512)
    assert recent == 128 * (2 * 512 + 4 * 2048)
    assert block_nbytes(V4, 128, "int8")[0] == 33 * (512 + 4 * 8)
