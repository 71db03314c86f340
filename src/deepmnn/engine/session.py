"""A sequence driven by hand, token by token."""

from __future__ import annotations

from collections.abc import Sequence as List
from functools import partial
from types import TracebackType

import numpy as np

from deepmnn.backends.base import F32
from deepmnn.engine.driver import Driver
from deepmnn.engine.engine import Engine
from deepmnn.engine.kv_cache import BlockTable
from deepmnn.engine.scheduler import Span
from deepmnn.errors import ContextLengthError, RequestError, shown
from deepmnn.text.token_ids import integer, plain, token_ids


class Session:
    """Feeds tokens to the model and hands back logits.

    Holds its cache blocks until it is closed or dropped; with a disk for the cache, only while it
    runs: others may have the space, and the rows come back when it runs again (docs/kv-disk.md).
    Any thread may use it, one at a time; the model runs on the engine's thread, between the steps
    of other requests.

        with model.session() as session:
            logits = session.prefill(ids)
            logits = session.decode(int(logits.argmax()))

    share_prefix: start from cached blocks of other sequences with the same beginning.
    """

    _closed = True  # until it is made: one that was interrupted has nothing to give back

    def __init__(self, driver: Driver, *, share_prefix: bool = False) -> None:
        self._driver = driver
        self._share_prefix = share_prefix
        self._table = BlockTable([])
        self._closed = False

    def __repr__(self) -> str:
        state = ", closed" if self._closed else ""
        return f"Session({self.length} of {self._driver.engine.context_length} tokens{state})"

    @property
    def length(self) -> int:
        """Tokens in the context so far."""
        return len(self._table.ids)

    @property
    def ids(self) -> list[int]:
        """The tokens in the context."""
        return list(self._table.ids)

    def prefill(self, ids: List[int]) -> F32:
        """Appends tokens; the logits [vocab_size] after the last one.

        Raises RequestError for an impossible token, ContextLengthError when they do not fit;
        the session is then as it was.
        """
        logits: F32 = self._run(ids, all_rows=False)[-1]
        return logits

    def logits(self, ids: List[int]) -> F32:
        """Appends tokens; the logits [len(ids), vocab_size] after each of them."""
        return self._run(ids, all_rows=True)

    def decode(self, token: int) -> F32:
        """Appends one token; the logits [vocab_size] after it."""
        logits: F32 = self._run([token], all_rows=False)[-1]
        return logits

    def rollback(self, length: int) -> None:
        """Forgets every token from `length` on. Raises RequestError unless 0 <= length <= now."""
        self._check_open()
        kept = integer(plain(length))
        if kept is None or not 0 <= kept <= self.length:
            raise RequestError(f"rollback to length {shown(length)}", f"0 to {self.length}")
        self._driver.run(partial(self._cut, kept))

    def close(self) -> None:
        """Gives the cache blocks back, before the next step. Closing twice is fine."""
        if self._closed:
            return
        table = self._table
        if table.ids:
            self._driver.post(lambda engine: engine.scheduler.drop(table))
        self._closed = True  # last: interrupted before it, `__del__` frees once more, which is fine

    def __del__(self) -> None:
        self.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self, ids: List[int], *, all_rows: bool) -> F32:
        self._check_open()
        engine, table, given = self._driver.engine, self._table, token_ids(ids)
        start, total = self.length, self.length + len(given)
        if total > engine.context_length:
            raise ContextLengthError(
                f"the context would have {total} tokens",
                f"at most {engine.context_length}",
                "Roll back, or open a new session.",
            )
        table.ids += engine.check_ids(given)
        parts = []
        try:
            while table.pending:
                parts.append(self._driver.run(partial(self._forward, start if all_rows else None)))
        except BaseException:  # an interrupt, too, while the model may still run
            self._driver.run(partial(self._cut, start))
            raise
        return np.concatenate(parts)

    def _forward(self, wanted: int | None, engine: Engine) -> F32:
        """Runs as many pending tokens as a step takes.

        wanted: the first token whose logits are wanted; None: only the last one's are.
        """
        table, scheduler = self._table, engine.scheduler
        try:
            scheduler.resume(table)
            if self._share_prefix and not table.length and wanted is None:
                engine.manager.share_prefix(table)
            most = scheduler.max_batch_tokens
            count = min(table.pending, most if wanted is None else min(most, engine.max_rows))
            scheduler.make_room(table, count)
            rows = int(count == table.pending)
            if wanted is not None:  # rows that the disk has lost may have to be run before
                rows = min(count, max(0, table.length + count - wanted))
            return engine.forward([Span(table, count, rows)])
        finally:
            scheduler.rest(table)

    def _cut(self, length: int, engine: Engine) -> None:
        if not length:
            engine.scheduler.drop(self._table)
        engine.manager.rollback(self._table, min(length, self._table.length))
        del self._table.ids[length:]

    def _check_open(self) -> None:
        if self._closed:
            raise RequestError("the session is closed", "an open session", "Open a new one.")
