"""The paged KV cache's book-keeping: which block holds which rows of which sequence.

A block is shared by every sequence whose tokens up to its end are the same: a full block is
registered under a key that chains the hash of its tokens to the key of the block before it (the
prefix caching of vLLM, arXiv:2309.06180). Blocks that nobody uses any more keep their rows until
the space is needed, the least recently used first; then they go to disk, if there is one
(kv_disk.py), and come back when they are looked for.

A sequence that does not run may be *parked*: it keeps the names of its blocks, and others may have
the space. The name of a full block is its key; what has none gets a name that nobody looks for.
While a parked sequence holds a name, it stands for one content, in memory, on disk or in both: so
the same rows come back.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence as List
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import count as count_up

from deepmnn.backends.base import Cache
from deepmnn.engine.kv_disk import KvDisk
from deepmnn.engine.recent_rows import RecentRows
from deepmnn.errors import ContextLengthError, Words

_NAME_NBYTES = 8
"""Of the name of a block without a key; keys are longer."""

CACHE_IS_SHORT = Words(
    "Close sessions, or load the model with a larger cache_tokens.",
    "Set a larger --cache-tokens.",
)

_PLACES_ARE_SHORT = Words(
    "Close sessions, or send fewer requests at a time.",
    "Send fewer requests at a time.",
)
"""Their number hardly depends on the cache's size (recent_rows.py)."""


def cache_is_full(
    manager: BlockManager, expected: str = "room for the next tokens"
) -> ContextLengthError:
    """The error for what wants blocks, or places for recent rows, while others hold them all."""
    recent, blocks = manager.recent, manager.free_blocks
    if recent is not None and recent.free < blocks:
        found = f"the KV cache has {recent.free} free places for the rows of recent tokens"
        hint = _PLACES_ARE_SHORT
    else:
        found, hint = f"the KV cache has {blocks} free blocks", CACHE_IS_SHORT
    return ContextLengthError(f"{found}, the rest is in use", expected, hint)


@dataclass(eq=False)
class BlockTable:
    """The tokens of one sequence and the cache blocks of those that have been run.

    ids: every token known so far. length: how many of them have their rows in the cache.
    blocks: cache blocks, in order. keys: the hash chain of the full ones. parked: names of the
    blocks, while it holds none of them. recent: which blocks' recent rows it needs.
    """

    ids: list[int]
    length: int = 0
    blocks: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    parked: list[bytes] | None = None
    recent: range = range(0)

    @property
    def pending(self) -> int:
        """Tokens that have not been run yet."""
        return len(self.ids) - self.length


class BlockManager:
    """Hands out the blocks of one cache, with reference counts.

    disk: where blocks go that have to make room; None: they are forgotten. window: of the last
    tokens' rows that the cache's recent entries keep; 0: it has none (recent_rows.py).
    """

    def __init__(self, cache: Cache, disk: KvDisk | None = None, window: int = 0) -> None:
        self.cache, self.disk = cache, disk
        self.recent = RecentRows(cache, window) if window else None
        self.block_size = cache.block_size
        self._references = [0] * cache.blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(cache.blocks))
        self._key_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}
        self._numbers = count_up()

    @property
    def free_blocks(self) -> int:
        """Blocks that no sequence holds (some may still hold rows worth finding again)."""
        return len(self._free)

    @property
    def capacity(self) -> int:
        """Rows that fit in the whole cache."""
        return self.cache.blocks * self.block_size

    def references(self, block: int) -> int:
        """How many sequences hold this block."""
        return self._references[block]

    def share_prefix(self, table: BlockTable) -> int:
        """Gives an empty table the cached blocks that begin with its tokens; returns their rows.

        The last token always stays to be run, because its logits are wanted.
        """
        for index in range((len(table.ids) - 1) // self.block_size):
            key = self._chain(table, index)
            block = self._block_of.get(key)
            if block is not None:
                self._take(block)
            elif len(self._free) > 1:  # one stays for what is to be run
                block = self._bring_back(key)
            if block is None:
                break
            table.blocks.append(block)
            table.keys.append(key)
        self.rollback(table, len(table.blocks) * self.block_size)
        return table.length

    def fork(self, parent: BlockTable, table: BlockTable) -> int:
        """Gives an empty table the rows of one that begins with its tokens; returns how many.

        All but the last, as by `share_prefix`, but not only whole blocks: whoever writes to the
        shared tail first copies it (`append`).
        """
        rows = self._reachable(parent, len(table.ids) - 1)
        for block in parent.blocks[: -(-rows // self.block_size)]:
            self._take(block)
            table.blocks.append(block)
        table.keys += parent.keys[: rows // self.block_size]
        table.length = rows
        self._keep_recent(table)
        return rows

    def can_append(self, table: BlockTable, count: int) -> bool:
        """Whether `count` more rows fit now."""
        return self._missing(table, count, self._shares_tail(table)) <= self._spare()

    def room(self, table: BlockTable) -> int:
        """How many more rows fit now."""
        spare = self._spare() - (1 if self._shares_tail(table) else 0)
        held = len(table.blocks) * self.block_size - table.length
        return max(0, held + spare * self.block_size) if spare >= 0 else 0

    def append(self, table: BlockTable, count: int) -> None:
        """Makes rows length .. length + count of the table writable.

        A partly filled block that others share is copied first. Raises ContextLengthError when
        the cache is full; then nothing has changed.
        """
        shared = self._shares_tail(table)
        missing = self._missing(table, count, shared)
        if missing > self._spare():
            expected = f"{missing}, each for {self.block_size} tokens, for {count} more"
            raise cache_is_full(self, expected)
        tail = table.length // self.block_size
        if shared:
            self._copy_tail(table, tail)
        elif tail < len(table.blocks):
            self._forget(table.blocks[tail])
        while len(table.blocks) * self.block_size < table.length + count:
            table.blocks.append(self._new_block())
            if self.recent is not None:
                self.recent.need(table.blocks[-1])
                table.recent = range(table.recent.start, len(table.blocks))

    def commit(self, table: BlockTable, count: int) -> None:
        """Says that `count` appended rows have been written; full blocks become shareable."""
        table.length += count
        for index in range(len(table.keys), table.length // self.block_size):
            key, block = self._chain(table, index), table.blocks[index]
            table.keys.append(key)
            if key not in self._block_of and self._is_new(key):
                self._block_of[key], self._key_of[block] = block, key
        self._keep_recent(table)

    def rollback(self, table: BlockTable, length: int) -> None:
        """Drops the rows from `length` on. `table.ids` is the caller's to cut.

        Where recent rows before `length` are gone, it drops more: those tokens are pending again.
        """
        length = self._reachable(table, length)
        kept = -(-length // self.block_size)
        if table.parked is not None:
            for name in table.parked[kept:]:
                self._let_go(name)
            table.parked = table.parked[:kept] or None
        dropped = table.blocks[kept:]
        del table.blocks[kept:], table.keys[length // self.block_size :]
        table.length = length
        self._keep_recent(table, dropped)
        for block in reversed(dropped):
            self._release(block)

    def free(self, table: BlockTable) -> None:
        """Drops every row; full blocks can still be found by a later sequence with this prefix."""
        self.rollback(table, 0)

    def park(self, table: BlockTable) -> bool:
        """Leaves a table's blocks to whoever needs the space; `unpark` brings the same rows back.

        Nothing is written before. False, and nothing has changed, without a disk or room there.
        """
        if self.disk is None or table.parked is not None:
            return False
        names: list[bytes] = []
        for block in table.blocks:
            name = self._hold(block)
            if name is None:
                for held in names:
                    self._let_go(held)
                return False
            names.append(name)
        for block in reversed(table.blocks):
            self._release(block)
        table.parked, table.blocks = names or None, []
        return True

    def missing(self, table: BlockTable) -> int:
        """Free blocks that `unpark` takes."""
        blocks = [self._block_of.get(name) for name in table.parked or ()]
        return sum(block is None or self._references[block] == 0 for block in blocks)

    def unpark(self, table: BlockTable) -> None:
        """Gives a parked table its rows back, if as many blocks are free as are `missing`.

        Rows that were lost on the disk, and those after them, are pending again.
        """
        if table.parked is None:
            return
        names, table.parked = table.parked, None
        found = [self._block_of.get(name) for name in names]
        for block in found:
            if block is not None:
                self._take(block)
        for index, name in enumerate(names):
            block = found[index]
            if block is None:
                block = self._bring_back(name)
            if block is None:
                break
            table.blocks.append(block)
        for block in reversed(found[len(table.blocks) :]):
            if block is not None:
                self._release(block)
        for name in names:
            self._let_go(name)
        if len(table.blocks) < len(names):
            # What was lost may be rows reserved ahead, and all that were run are there.
            table.length = min(table.length, len(table.blocks) * self.block_size)
            del table.keys[len(table.blocks) :]

    def _hold(self, block: int) -> bytes | None:
        """The name under which this block's rows will be found as they are; None without room."""
        if self.disk is None:
            return None
        name = self._key_of.get(block)
        if name is not None:
            return name if self.disk.hold(name) else None
        name = next(self._numbers).to_bytes(_NAME_NBYTES)
        if not self.disk.hold(name):
            return None
        # Others may hold the block; when they write behind these rows, it is forgotten: saved.
        self._block_of[name], self._key_of[block] = block, name
        return name

    def _let_go(self, name: bytes) -> None:
        """Ends a `_hold`. Nobody looks for a name that is no key."""
        if self.disk is None:
            return
        self.disk.let_go(name)
        if len(name) == _NAME_NBYTES and not self.disk.is_held(name):
            self.disk.discard(name)
            block = self._block_of.pop(name, None)
            if block is not None:
                del self._key_of[block]
                if block in self._free:
                    self._free.move_to_end(block, last=False)

    def _bring_back(self, name: bytes) -> int | None:
        """A block with the rows that the disk has under this name; None where it has none."""
        if self.disk is None or name not in self.disk:
            return None
        self.disk.touch(name)  # or it could make room itself for what the new block has held
        block = self._new_block()
        if self.disk.load(name, block):
            self._block_of[name], self._key_of[block] = block, name
            return block
        self._release(block)
        return None

    def _is_new(self, key: bytes) -> bool:
        """Whether rows just computed may be found by this key: no parked table has other ones.

        The disk's may differ in the last bits, if a prompt was cut in other spans.
        """
        if self.disk is None:
            return True
        if self.disk.is_held(key):
            return False
        self.disk.discard(key)
        return True

    def _chain(self, table: BlockTable, index: int) -> bytes:
        """The key of block `index`; those before it are in `table.keys`."""
        start = index * self.block_size
        tokens = array("q", table.ids[start : start + self.block_size]).tobytes()
        parent = table.keys[index - 1] if index else b""
        return blake2b(parent + tokens, digest_size=16).digest()

    def _copy_tail(self, table: BlockTable, tail: int) -> None:
        """Gives a table a copy of a block that others share, too."""
        block, copy = table.blocks[tail], self._new_block()
        if self.recent is not None:
            self.recent.need(copy)
        self.cache.copy_block(block, copy)
        if self.recent is not None:
            self.recent.let_go(block)
        self._release(block)
        table.blocks[tail] = copy

    def _reachable(self, table: BlockTable, length: int) -> int:
        """The longest length, at most `length`, at which the table's rows are enough to go on."""
        if self.recent is None:
            return length
        return self.recent.reachable(table.blocks, length)

    def _keep_recent(self, table: BlockTable, dropped: List[int] = ()) -> None:
        """Needs the recent rows that the table's next tokens read, and no other ones.

        dropped: blocks that were its last ones until now.
        """
        if self.recent is None:
            return
        held, blocks = table.recent, [*table.blocks, *dropped]
        table.recent = self.recent.kept(table.blocks, table.length)
        for index in table.recent:
            if index not in held:
                self.recent.need(blocks[index])
        for index in held:
            if index not in table.recent:
                self.recent.let_go(blocks[index])

    def _spare(self) -> int:
        """Blocks that can be written to now."""
        free = len(self._free)
        return free if self.recent is None else min(free, self.recent.free)

    def _shares_tail(self, table: BlockTable) -> bool:
        """Whether the next row falls into a block that another sequence holds too."""
        tail = table.length // self.block_size
        return tail < len(table.blocks) and self._references[table.blocks[tail]] > 1

    def _missing(self, table: BlockTable, count: int, shared: bool) -> int:
        """Free blocks that `count` more rows take; shared: one of them for a copy of the tail."""
        blocks = -(-(table.length + count) // self.block_size) - len(table.blocks)
        return (blocks if blocks > 0 else 0) + shared

    def _new_block(self) -> int:
        block = next(iter(self._free))
        self._forget(block)
        self._take(block)
        return block

    def _take(self, block: int) -> None:
        self._free.pop(block, None)
        self._references[block] += 1

    def _release(self, block: int) -> None:
        self._references[block] -= 1
        if self._references[block] == 0:
            self._free[block] = None
            if block not in self._key_of:
                self._free.move_to_end(block, last=False)

    def _forget(self, block: int) -> None:
        """The block is about to be overwritten: its rows go to disk, or are forgotten."""
        key = self._key_of.pop(block, None)
        if key is not None:
            del self._block_of[key]
            if self.disk is not None:
                self.disk.save(key, block)
