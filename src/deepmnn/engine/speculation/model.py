"""A smaller model guesses: it reads what has been said, and goes on (arXiv:2211.17192)."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as List
from dataclasses import dataclass

import numpy as np

from deepmnn.backends.base import F32
from deepmnn.engine.engine import Engine
from deepmnn.engine.kv_cache import BlockTable
from deepmnn.engine.scheduler import Span
from deepmnn.engine.sequence import Sequence
from deepmnn.engine.speculation.drafter import NOTHING, Guess

_KINDS = ["model"]


class ModelDrafter:
    """Runs a second model with a cache of its own. Its guesses are its likeliest tokens.

    Sequences whose prompt is not read yet get no guesses, and neither do those that its cache has
    no room for.

    Args:
        engine: of the second model; nobody else uses it.
        vocab_size: of the model that it guesses for: the ids that both know.
        most: tokens guessed at a time.
    """

    kinds: Mapping[str, float] = dict.fromkeys(_KINDS, 0.6)

    def __init__(self, engine: Engine, vocab_size: int, most: int) -> None:
        self.engine, self.most = engine, most
        self.read_tokens = 0
        self._vocab = min(vocab_size, engine.backend.vocab_size)
        self._readers: dict[Sequence, _Reader] = {}

    @property
    def following(self) -> bool:
        """See `Reader`."""
        return bool(self._readers)

    def offer(self, sequence: Sequence, most: int) -> List[str]:
        """See `Reader`: nothing beyond its context, and nothing after a token that it does not
        know.
        """
        reader, ids = self._readers[sequence], sequence.ids
        new = ids[reader.known :]
        if new and max(new) >= self.engine.backend.vocab_size:
            reader.lost = True
        reader.known = len(ids)
        most = min(most, self.engine.context_length - len(ids))
        return () if reader.lost else _KINDS * most

    def follow(self, sequence: Sequence) -> None:
        """Reads it when it is asked for."""
        self._readers[sequence] = _Reader([])

    def propose(self, asked: List[tuple[Sequence, int]]) -> list[Guess]:
        """See `Drafter`."""
        wanted: dict[_Reader, int] = {}
        self.read_tokens = 0
        for sequence, count in asked:
            # The last of all from now on: those before it make room first.
            reader = self._readers[sequence] = self._readers.pop(sequence)
            reader.catch_up(sequence.ids, self.engine)
            # It writes no row for the last token that it guesses.
            most = self.engine.context_length - len(sequence.ids)
            wanted[reader] = min(count, self.most, most)
        ready = [reader for reader, count in wanted.items() if count > 0]
        longest = max([wanted[reader] for reader in ready], default=0)
        for turn in range(longest):
            ready = self._turn([reader for reader in ready if wanted[reader] > turn])
        return [self._guess(sequence) for sequence, _ in asked]

    def forget(self, sequence: Sequence) -> None:
        """Frees its rows."""
        reader = self._readers.pop(sequence, None)
        if reader is not None:
            self.engine.manager.free(reader)

    def _guess(self, sequence: Sequence) -> Guess:
        tokens = self._readers[sequence].guessed
        return Guess(tokens, _KINDS * len(tokens)) if tokens else NOTHING

    def _turn(self, readers: list[_Reader]) -> list[_Reader]:
        """Runs what they have not run; those that are at the end guess a token, and go on."""
        budget, spans = self.engine.scheduler.max_batch_tokens, []
        for reader in sorted(readers, key=lambda reader: reader.pending):
            if not reader.length:
                self.engine.manager.share_prefix(reader)
            count = min(reader.pending, budget)
            if count and self._make_room(reader, count, readers):
                spans.append(Span(reader, count, rows=int(count == reader.pending)))
                budget -= count
                if count > 2 + self.most:  # what guesses leave behind is less
                    self.read_tokens += count
        if not spans:
            return []
        logits: F32 = self.engine.forward(spans)
        ready = [span.table for span in spans if span.rows]
        for reader, token in zip(ready, np.argmax(logits[:, : self._vocab], axis=1), strict=True):
            reader.ids.append(int(token))
        return ready

    def _make_room(self, reader: _Reader, count: int, busy: list[_Reader]) -> bool:
        """Reserves rows, of sequences that were not asked for lately if need be."""
        manager = self.engine.manager
        for other in self._readers.values():
            if manager.can_append(reader, count):
                break
            if other not in busy:
                manager.free(other)
        if not manager.can_append(reader, count):
            return False
        manager.append(reader, count)
        return True


@dataclass(eq=False)
class _Reader(BlockTable):
    """A sequence as the second model knows it: real tokens, then those that it has guessed.

    real: how many of `ids` are known to be real. known: how many tokens of the sequence it has
    looked at; lost: one of them is none of its own.
    """

    real: int = 0
    known: int = 0
    lost: bool = False

    @property
    def guessed(self) -> list[int]:
        """What it has guessed behind the real tokens."""
        return self.ids[self.real :]

    def catch_up(self, ids: list[int], engine: Engine) -> None:
        """Takes the real tokens; rows of guesses that were right stay."""
        right = self.real
        end = min(len(self.ids), len(ids))
        while right < end and self.ids[right] == ids[right]:
            right += 1
        # The last token is always run: its logits are wanted.
        kept = min(right, len(ids) - 1)
        if self.length > kept:
            engine.manager.rollback(self, kept)
        del self.ids[right:]
        self.ids += ids[right:]
        self.real = len(ids)
