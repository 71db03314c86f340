from __future__ import annotations

import random

import pytest

from deepmnn.engine.kv_cache import BlockManager, BlockTable
from deepmnn.errors import ContextLengthError
from fake_backend import FakeCache


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
    cache = manager.cache
    held = [block for table in tables for block in table.blocks]
    for block in range(cache.blocks):
        assert manager.references(block) == held.count(block)
    assert manager.free_blocks == cache.blocks - len(set(held))
    for table in tables:
        assert table.length <= len(table.ids)
        assert len(table.keys) == table.length // cache.block_size
        assert len(table.blocks) * cache.block_size >= table.length
        rows = [table.blocks[r // cache.block_size] for r in range(table.length)]
        stored = [cache.tokens[b, r % cache.block_size] for r, b in enumerate(rows)]
        assert stored == table.ids[: table.length], "rows are not this sequence's tokens"


@pytest.mark.parametrize("seed", range(20))
def test_random_walk_keeps_every_row(seed: int) -> None:
    rng = random.Random(seed)
    block_size = rng.choice([1, 2, 3, 8])
    manager = BlockManager(FakeCache(rng.randint(3, 24), block_size))
    tables: list[BlockTable] = []
    for _ in range(400):
        action = rng.random()
        if action < 0.3 and len(tables) < 6:
            # Few different tokens, so that prefixes meet.
            table = BlockTable([rng.randrange(2) for _ in range(rng.randint(1, 4 * block_size))])
            manager.share_prefix(table)
            tables.append(table)
        elif tables:
            table = rng.choice(tables)
            if action < 0.75:
                table.ids += [rng.randrange(2)] * (table.pending == 0)
                count = rng.randint(1, table.pending)
                fits = manager.can_append(table, count)
                assert fits == (count <= manager.room(table))
                if fits:
                    write(manager, table, count)
                else:
                    before = (table.length, list(table.blocks), manager.free_blocks)
                    with pytest.raises(ContextLengthError):
                        manager.append(table, count)
                    assert before == (table.length, table.blocks, manager.free_blocks)
            elif action < 0.9:
                length = rng.randint(0, table.length)
                manager.rollback(table, length)
                del table.ids[max(1, length) :]
                table.ids += [rng.randrange(2) for _ in range(rng.randint(0, 3))]
            else:
                manager.free(table)
                tables.remove(table)
        check(manager, tables)


def test_prefix_is_shared_block_by_block() -> None:
    manager = BlockManager(FakeCache(8, 4))
    first = BlockTable(list(range(10)))
    write(manager, first, 10)
    second = BlockTable([*range(9), 99, 98])
    assert manager.share_prefix(second) == 8
    assert second.blocks == first.blocks[:2]
    assert manager.references(first.blocks[0]) == 2
    same_length = BlockTable(list(range(8)))
    assert manager.share_prefix(same_length) == 4, "the last token must stay to be run"
    other = BlockTable([7, *range(1, 10)])
    assert manager.share_prefix(other) == 0


def test_rollback_into_a_shared_block_copies_before_writing() -> None:
    manager = BlockManager(FakeCache(8, 4))
    first, second = BlockTable(list(range(9))), BlockTable(list(range(9)))
    write(manager, first, 9)
    assert manager.share_prefix(second) == 8
    manager.rollback(second, 6)
    second.ids[6:] = [50, 51, 52]
    write(manager, second, 3)
    assert manager.cache.copies == 1
    assert first.blocks[1] != second.blocks[1]
    check(manager, [first, second])


def test_a_block_that_is_rewritten_cannot_be_found_by_its_old_tokens() -> None:
    manager = BlockManager(FakeCache(8, 4))
    first = BlockTable(list(range(8)))
    write(manager, first, 8)
    manager.rollback(first, 6)
    first.ids[6:] = [50, 51]
    write(manager, first, 2)
    old = BlockTable(list(range(9)))
    assert manager.share_prefix(old) == 4
    new = BlockTable([*first.ids, 1])
    assert manager.share_prefix(new) == 8


def test_freed_blocks_are_found_again_and_the_oldest_are_reused_first() -> None:
    manager = BlockManager(FakeCache(4, 2))
    for start in (0, 10):
        table = BlockTable([start, start + 1, start + 2])
        write(manager, table, 3)
        manager.free(table)
    fill = BlockTable([70, 71, 72, 73, 74])
    write(manager, fill, 5)  # three blocks: the two partly filled ones and the older full one
    assert manager.share_prefix(BlockTable([0, 1, 2])) == 0
    assert manager.share_prefix(BlockTable([10, 11, 12])) == 2


def test_blocks_nobody_can_find_are_reused_before_cached_ones() -> None:
    manager = BlockManager(FakeCache(2, 2))
    cached = BlockTable([0, 1])
    write(manager, cached, 2)
    manager.free(cached)
    for token in (7, 8):  # each takes and gives back one partly filled block
        table = BlockTable([token])
        write(manager, table, 1)
        manager.free(table)
    assert manager.share_prefix(BlockTable([0, 1, 2])) == 2


def test_a_freed_sequence_loses_its_last_block_first() -> None:
    manager = BlockManager(FakeCache(2, 2))
    long = BlockTable([0, 1, 2, 3])
    write(manager, long, 4)
    manager.free(long)
    write(manager, BlockTable([9]), 1)
    assert manager.share_prefix(BlockTable([0, 1, 2, 3, 4])) == 2
