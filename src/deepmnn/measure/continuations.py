"""Log-likelihoods of texts behind contexts: many at a time, what they share is run once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

from deepmnn.backends.base import F32
from deepmnn.engine.engine import Engine
from deepmnn.engine.kv_cache import BlockTable
from deepmnn.engine.scheduler import Span
from deepmnn.errors import ContextLengthError, RequestError
from deepmnn.measure.predictions import ROWS
from deepmnn.quant.divergence import Rows

if TYPE_CHECKING:
    from deepmnn.api.llm import LLM


@dataclass(frozen=True)
class Continuation:
    """What may stand behind a context: token ids both, neither of them empty."""

    context: tuple[int, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Likelihood:
    """Of a continuation: its log probability, in nats, and whether greedy decoding gives it."""

    logprob: float
    is_greedy: bool


def likelihoods(
    model: LLM,
    asked: Sequence[Continuation],
    progress: Callable[[int, int], None] | None = None,
) -> list[Likelihood]:
    """One for each continuation, in the order in which they are asked.

    A context is run once for all its continuations, and as many as fit run in one step. What
    several contexts begin with is run once, too, in whole blocks of the cache.

    progress: called with (different continuations done, in all). Raises RequestError for tokens
    that the model has not got, for an empty context or continuation and for logits that are no
    finite numbers; ContextLengthError where context and continuation, without its last token, do
    not fit.
    """
    engine = model.driver.engine
    for each in asked:
        _check(engine, each)
    unique = sorted(set(asked), key=lambda each: (each.context, each.tokens))
    groups = deque(list(group) for _, group in groupby(unique, key=lambda each: each.context))
    found: dict[Continuation, Likelihood] = {}
    while groups:
        wave = _Wave()
        try:
            model.driver.run(partial(wave.take, groups))
            while wave.waiting:
                found |= model.driver.run(wave.step)
                if progress:
                    progress(len(found), len(unique))
        finally:
            model.driver.run(wave.free)
    return [found[each] for each in asked]


def _check(engine: Engine, each: Continuation) -> None:
    if not each.context or not each.tokens:
        raise RequestError("a context or its continuation is empty", "at least a token in both")
    engine.check_ids(each.context + each.tokens)
    length = len(each.context) + len(each.tokens)
    if length > engine.context_length + 1:
        raise ContextLengthError(
            f"context and continuation have {length:,} tokens",
            f"at most {engine.context_length + 1:,}",
        )


class _Row:
    """A continuation while it runs: its place in the cache, and what is known so far."""

    def __init__(self, asked: Continuation, context: BlockTable, last: bool) -> None:
        self.asked = asked
        self.table = BlockTable([])
        self._context = context
        self._last = last
        self._read = 0
        self._logprob = 0.0
        self._is_greedy = True

    def begin(self, engine: Engine) -> None:
        """Takes the rows of its context, whose last token is the first one to be run.

        The last continuation of a context needs no copy of a block that is partly filled.
        """
        if self.table.ids:
            return
        if self._last:
            self.table = self._context
            self.table.ids += self.asked.context[-1:]
        else:
            self.table.ids += self.asked.context
            engine.manager.fork(self._context, self.table)
        self.table.ids += self.asked.tokens[:-1]

    def add(self, logits: F32) -> None:
        """What the model expects in the place of the next tokens, [tokens, vocab_size]."""
        tokens = self.asked.tokens[self._read : self._read + len(logits)]
        self._logprob -= float(Rows(logits).surprisal(tokens).sum())
        self._is_greedy &= logits.argmax(axis=1).tolist() == list(tokens)
        self._read += len(logits)

    @property
    def likelihood(self) -> Likelihood:
        """When all of it has been run."""
        return Likelihood(self._logprob, self._is_greedy)


class _Wave:
    """Contexts that are in the cache together, and their continuations. The engine's thread only.

    waiting: those that are not done.
    """

    def __init__(self) -> None:
        self.waiting: deque[_Row] = deque()
        self._contexts: list[BlockTable] = []
        self._held: list[BlockTable] = []

    def take(self, groups: deque[list[Continuation]], engine: Engine) -> None:
        """Takes groups of one context each, as many as fit, and runs the contexts."""
        budget = engine.scheduler.max_batch_tokens
        while groups:
            table = BlockTable(list(groups[0][0].context))
            self._held.append(table)
            engine.manager.share_prefix(table)
            table.ids.pop()
            tokens = table.pending + sum(len(each.tokens) for each in groups[0])
            if self._contexts and (tokens > budget or self._waits(engine, table)):
                break
            budget -= tokens
            self._contexts.append(table)
            *others, last = groups.popleft()
            self.waiting += [_Row(each, table, last=False) for each in others]
            self.waiting.append(_Row(last, table, last=True))
        engine.run_pending(self._contexts)

    def step(self, engine: Engine) -> dict[Continuation, Likelihood]:
        """Runs as many continuations as a step takes; those that are done by then."""
        budget = min(engine.scheduler.max_batch_tokens, ROWS)
        spans: list[Span[BlockTable]] = []
        for row in self.waiting:
            row.begin(engine)
            count = min(row.table.pending, budget)
            try:
                engine.scheduler.make_room(row.table, count)
            except ContextLengthError:
                if not spans:
                    raise
                break  # when those before it are done, there may be room
            spans.append(Span(row.table, count, rows=count))
            budget -= count
            if not budget:
                break
        logits, begin = engine.forward(spans), 0
        for row, span in zip(self.waiting, spans, strict=False):
            row.add(logits[begin : begin + span.count])
            begin += span.count
        return self._done(engine)

    def free(self, engine: Engine) -> None:
        """Gives back everything; the blocks of contexts can still be found."""
        for table in (*self._held, *(row.table for row in self.waiting)):
            engine.manager.free(table)

    def _done(self, engine: Engine) -> dict[Continuation, Likelihood]:
        done = {}
        while self.waiting and self.waiting[0].table.ids and not self.waiting[0].table.pending:
            row = self.waiting.popleft()
            engine.manager.free(row.table)
            done[row.asked] = row.likelihood
        return done

    def _waits(self, engine: Engine, table: BlockTable) -> bool:
        """Whether a context comes with the next wave: there is no room for it, or a block that it
        shares with the one before is not there yet.
        """
        size = engine.manager.block_size
        rows = sum(each.pending for each in (*self._contexts, table))
        if rows > engine.manager.free_blocks * size // 2:
            return True
        before, same = self._contexts[-1].ids, 0
        for ours, theirs in zip(table.ids, before, strict=False):
            if ours != theirs:
                break
            same += 1
        return same // size * size > table.length
