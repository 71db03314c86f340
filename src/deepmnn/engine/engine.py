"""The engine: many sequences, one model, one step at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from collections.abc import Sequence as List
from dataclasses import dataclass
from pathlib import Path

from deepmnn.backends.base import F32, Backend, Draw
from deepmnn.engine.batch import make_batch
from deepmnn.engine.kv_cache import BlockManager, BlockTable, cache_is_full
from deepmnn.engine.kv_disk import KvDisk
from deepmnn.engine.recent_rows import places
from deepmnn.engine.scheduler import Scheduler, Span
from deepmnn.engine.sequence import Sequence
from deepmnn.engine.speculation.speculation import Speculation, drop_guesses
from deepmnn.errors import ContextLengthError, RequestError, Words, shown
from deepmnn.graph.caches import block_size as usual_block_size
from deepmnn.graph.caches import window
from deepmnn.text.constraint import Constraint
from deepmnn.text.sampling_params import SamplingParams
from deepmnn.text.stream import TextStream
from deepmnn.text.token_ids import token_ids

log = logging.getLogger("deepmnn")

_TOO_LONG_FOR_CACHE = Words(
    "Shorten the prompt, or load the model with a larger cache_tokens.",
    "Shorten the prompt, or set a larger --cache-tokens.",
)


@dataclass(frozen=True, slots=True)
class Step:
    """What one step did: how long it took, and the prompt tokens and answers that it ran.

    guessing: for how many of the answers tokens were guessed ahead. drafted_tokens: how many, in
    all; accepted_tokens: those of them that were right.
    """

    seconds: float
    prompt_tokens: int
    answers: int
    guessing: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0


class Engine:
    """Runs sequences on a backend. Not thread-safe: it has an owner, who shares it (driver.py).

    Args:
        backend: the model.
        cache_tokens: rows of the KV cache, shared by all sequences; rounded up to whole blocks.
        block_size: tokens of a block; None: as many as the model's rows need (graph/caches.py).
        context_length: the longest sequence the model takes.
        max_batch_tokens: tokens of one step; a longer prompt is prefilled in spans.
        max_sequences: sequences that run at the same time, as far as the backend runs as many.
        kv_dtype: "f32", "bf16" or "int8".
        eos_ids: tokens that end an answer, beside those of its TextStream.
        max_rows: rows of logits of one step, for who wants them of every token.
        kv_disk: bytes that cache blocks may take on disk when they make room for others; 0, or
            where a cache has recent rows, which is warned of: they are forgotten, and what is idle
            keeps its own.
        kv_directory: where; needed with kv_disk.

    Attributes:
        watch: called with each `Step`, on the owner's thread; it must not raise.
        speculation: guesses tokens ahead; None does not. Set it before the first request.
    """

    def __init__(
        self,
        backend: Backend,
        cache_tokens: int,
        context_length: int,
        *,
        max_batch_tokens: int = 512,
        max_sequences: int = 64,
        kv_dtype: str = "f32",
        eos_ids: Iterable[int] = (),
        block_size: int | None = None,
        max_rows: int | None = None,
        kv_disk: int = 0,
        kv_directory: Path | None = None,
    ) -> None:
        self.backend = backend
        self.max_rows = max_rows or max_batch_tokens
        together = min(max_sequences, backend.max_sequences or max_sequences)
        caches, size = backend.caches, block_size or usual_block_size(backend.caches)
        blocks = -(-cache_tokens // size)
        recent = places(caches, blocks, kv_dtype, max_batch_tokens, together)
        self.cache = backend.new_cache(blocks, size, kv_dtype, recent)
        disk = None
        if kv_disk and kv_directory is not None and self.cache.block_nbytes and not recent:
            disk = KvDisk(self.cache, kv_disk, kv_directory)
        elif kv_disk and recent:
            log.warning("no rows of this model's KV cache go to disk: it keeps recent ones apart")
        self.manager = BlockManager(self.cache, disk, window(caches))
        self.scheduler = Scheduler(self.manager, max_batch_tokens, together)
        self.context_length = min(context_length, self.manager.capacity)
        self._cache_is_short = self.context_length < context_length
        self.eos_ids = frozenset(eos_ids)
        self.watch: Callable[[Step], object] | None = None
        self.speculation: Speculation | None = None

    def submit(
        self,
        ids: List[int],
        params: SamplingParams,
        output: TextStream | None = None,
        constraint: Constraint | None = None,
    ) -> Sequence:
        """Queues a request. Raises RequestError or ContextLengthError before any work is done."""
        sequence = self.sequence(ids, params, output, constraint)
        self.scheduler.add(sequence)
        return sequence

    def sequence(
        self,
        ids: List[int],
        params: SamplingParams,
        output: TextStream | None = None,
        constraint: Constraint | None = None,
    ) -> Sequence:
        """A request that is not queued yet. Raises as `submit` does; any thread may call this."""
        prompt, eos_ids, most = self.check(ids), self.eos_ids, self.context_length
        limit = most if params.max_tokens is None else min(most, len(prompt) + params.max_tokens)
        if output is not None:
            eos_ids |= output.end_ids
        return Sequence(
            prompt,
            params=params,
            limit=limit,
            eos_ids=eos_ids,
            output=output,
            constraint=constraint,
        )

    def check(self, ids: List[int]) -> list[int]:
        """The tokens of a prompt as a plain list; raises as `submit` does.

        An answer has room behind them for one token at least.
        """
        given = token_ids(ids)
        if len(given) >= self.context_length:
            raise self.too_long(f"the prompt has {len(given):,} tokens")
        return self.check_ids(given)

    def too_long(self, found: str) -> ContextLengthError:
        """The error for a prompt that leaves no room for an answer."""
        return ContextLengthError(
            found,
            f"fewer than {self.context_length:,}, which the context holds",
            _TOO_LONG_FOR_CACHE if self._cache_is_short else "Shorten the prompt.",
        )

    def step(self) -> list[Sequence]:
        """Runs one step and returns the sequences that got tokens or an error.

        An error is for the sequence that caused it (`Sequence.error`): when a step of several
        fails, each is tried alone, and only those that still fail are ended.
        """
        began = time.perf_counter()
        spans = self.scheduler.schedule()
        if not spans:
            return self._refuse()
        answers = sum([span.count == 1 for span in spans])
        tokens = sum([span.count for span in spans]) - answers
        speculation = self.speculation
        if speculation is not None and not speculation.guess(spans):
            speculation = None  # learns nothing from this step
        guessed = time.perf_counter()
        self._draw(self._forward(spans))
        if speculation is not None:
            speculation.learn(spans, time.perf_counter() - guessed)
        guesses = self._settle(spans)
        step = Step(time.perf_counter() - began, tokens, answers, *guesses)
        self.scheduler.learn(step.seconds, tokens, answers)
        if self.watch is not None:
            self.watch(step)
        return [span.table for span in spans if span.rows or span.table.finish_reason]

    def cancel(self, sequence: Sequence) -> None:
        """Ends a sequence early; nothing happens when it has ended."""
        if sequence.finish_reason is None:
            sequence.finish_reason = "cancelled"  # text that was held back has no reader
        self._remove(sequence)

    def fail(self, sequence: Sequence, error: BaseException) -> None:
        """Ends a sequence with an error."""
        sequence.fail(error)
        self._remove(sequence)

    def forward(self, spans: List[Span[BlockTable]]) -> F32:
        """Runs spans whose cache rows are reserved; the logits [rows, vocab_size] they ask for.

        Nothing has changed when it raises: the same spans can be run again. The rows of guesses are
        not committed: who guesses knows which of them are right.
        """
        batch, logits = make_batch(spans), None
        if self.speculation is not None:
            logits = self.speculation.step(batch, spans)
        if logits is None:
            logits = self.backend.step(self.cache, batch)
        for span in spans:
            self.manager.commit(span.table, span.known)
        return logits

    def run_pending(
        self, tables: List[BlockTable], stopped: Callable[[], bool] = lambda: False
    ) -> None:
        """Runs every pending token of sequences that are driven from outside, logits unread.

        Fills each step as the scheduler would; asks before each whether it is stopped. The tables'
        rows are the caller's to free (`manager.free`). Raises ContextLengthError when the cache is
        full.
        """
        while any(table.pending for table in tables) and not stopped():
            budget, spans = self.scheduler.max_batch_tokens, []
            for table in tables:
                count = min(table.pending, budget)
                if count:
                    self.scheduler.make_room(table, count)
                    spans.append(Span(table, count, rows=int(count == table.pending)))
                    budget -= count
            self.forward(spans)

    def check_ids(self, given: List[int]) -> list[int]:
        """The ids as a plain list. Raises RequestError unless they are tokens of this model."""
        ids = list(token_ids(given))
        if not ids:
            raise RequestError("the prompt is empty", "at least one token")
        vocab = self.backend.vocab_size
        for id in (min(ids), max(ids)):
            if not 0 <= id < vocab:
                raise RequestError(
                    f"token id {shown(id)} is outside the vocabulary",
                    f"0 to {vocab - 1}",
                    "Check that the tokenizer belongs to this model.",
                )
        return ids

    def _forward(self, spans: List[Span[Sequence]]) -> list[tuple[Span[Sequence], F32]]:
        """Those that get tokens now, with their logits [rows, vocab_size].

        What fails is tried again, alone and without guesses.
        """
        try:
            logits, found, end = self.forward(spans), [], 0
        except Exception as error:
            if len(spans) == 1 and not spans[0].guesses:
                self.fail(spans[0].table, error)
                return []
        else:
            for span in spans:
                begin, end = end, end + span.rows
                if span.rows:
                    found.append((span, logits[begin:end]))
            return found
        for span in spans:
            drop_guesses(span, self.manager)
        return [pair for span in spans for pair in self._forward([span])]

    def _draw(self, found: list[tuple[Span[Sequence], F32]]) -> None:
        """Draws the next token of each sequence, and further ones while guesses are right."""
        turn = 0
        while found:
            sequences = [span.table for span, _ in found]
            ready, rows, draws = self._draws(sequences, [logits[turn] for _, logits in found])
            for sequence, row, token in zip(ready, rows, self._sample(ready, draws), strict=True):
                if token is not None:
                    try:
                        sequence.record(row, token)
                        sequence.accept((token,))
                    except Exception as error:  # of its detokeniser or its grammar
                        sequence.fail(error)
            turn += 1
            found = [pair for pair in found if _goes_on(pair[0], turn)]

    def _settle(self, spans: List[Span[Sequence]]) -> tuple[int, int, int]:
        """Keeps the rows of guesses that were right, and lets go of what has ended.

        Returns how many answers had guesses, the tokens guessed, and those that were right.
        """
        guessing = guessed = accepted = 0
        for span in spans:
            sequence = span.table
            if span.guesses and sequence.error is None:
                rows = len(sequence.ids) - 1 - sequence.length
                # The last token has no row; it is a guess where it has ended the answer.
                last = sequence.ids[-1:] == span.guesses[rows : rows + 1]
                self.manager.commit(sequence, rows)
                self.manager.rollback(sequence, sequence.length)
                sequence.drafted_tokens += len(span.guesses)
                sequence.accepted_tokens += rows + last
                guessing += 1
                guessed += len(span.guesses)
                accepted += rows + last
            if sequence.finish_reason:
                self._remove(sequence)
        return guessing, guessed, accepted

    def _remove(self, sequence: Sequence) -> None:
        self.scheduler.remove(sequence)
        if self.speculation is not None:
            self.speculation.forget(sequence)

    def _draws(
        self, sequences: list[Sequence], rows: Iterable[F32]
    ) -> tuple[list[Sequence], list[F32], list[Draw]]:
        """How each sequence's next token is drawn, without those whose grammar fails."""
        ready, kept, draws = [], [], []
        for sequence, row in zip(sequences, rows, strict=True):
            try:
                draws.append(sequence.draw(row))
            except Exception as error:
                self.fail(sequence, error)
                continue
            ready.append(sequence)
            kept.append(row)
        return ready, kept, draws

    def _sample(self, sequences: list[Sequence], draws: list[Draw]) -> List[int | None]:
        """Each sequence's next token; None where it failed."""
        try:
            return self.backend.sample(draws)
        except Exception as error:
            if len(draws) == 1:
                self.fail(sequences[0], error)
                return [None]
        pairs = zip(sequences, draws, strict=True)
        return [token for sequence, draw in pairs for token in self._sample([sequence], [draw])]

    def _refuse(self) -> list[Sequence]:
        """Nothing can run: if something wants to, the cache is held by open sessions.

        The first one is refused; the others may fit without it.
        """
        stuck = [*self.scheduler.running, *self.scheduler.waiting][:1]
        for sequence in stuck:
            self.fail(sequence, cache_is_full(self.manager))
        return stuck


def _goes_on(span: Span[Sequence], drawn: int) -> bool:
    """Whether a step can draw another token: so many were, the last one is as guessed."""
    sequence = span.table
    if drawn > len(span.guesses) or sequence.finish_reason is not None:
        return False
    return sequence.ids[-1] == span.guesses[drawn - 1]
