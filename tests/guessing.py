"""Drafters for tests: they know what will be said, and are wrong as often as they are told."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from collections.abc import Sequence as List

from deepmnn.engine.engine import Engine
from deepmnn.engine.sequence import Sequence
from deepmnn.engine.speculation.depth import Depth, Fixed
from deepmnn.engine.speculation.drafter import Guess, Lookup, Reader
from deepmnn.engine.speculation.speculation import Speculation


class ScriptedDrafter:
    """truth: the answer to a prompt, without guesses. right: how often a token is the true one."""

    kinds: Mapping[str, float] = {"script": 0.5}
    read_tokens = 0
    following = True

    def __init__(
        self,
        truth: Callable[[Sequence], List[int]],
        right: float,
        vocab_size: int,
        seed: int = 0,
        most: int = 8,
    ) -> None:
        self.most, self.asked, self.followed, self.forgotten = most, 0, 0, 0
        self._truth, self._right, self._vocab = truth, right, vocab_size
        self._random = random.Random(seed)

    def propose(self, asked: List[tuple[Sequence, int]]) -> list[Guess]:
        self.asked += 1
        made = [self._tokens(sequence, count) for sequence, count in asked]
        return [Guess(tokens, ["script"] * len(tokens)) for tokens in made]

    def repeats(self, sequence: Sequence) -> bool:
        return False

    def offer(self, sequence: Sequence, most: int) -> List[str]:
        return ["script"] * most

    def follow(self, sequence: Sequence) -> None:
        self.followed += 1

    def forget(self, sequence: Sequence) -> None:
        self.forgotten += 1

    def _tokens(self, sequence: Sequence, count: int) -> list[int]:
        done = sequence.completion_tokens
        tokens = list(self._truth(sequence)[done : done + count])
        for index, token in enumerate(tokens):
            if self._random.random() >= self._right:
                tokens[index] = (token + self._random.randrange(1, self._vocab)) % self._vocab
        return tokens


class RandomDepth(Fixed):
    """Any depth, whatever it costs."""

    def __init__(self, seed: int) -> None:
        super().__init__(8)
        self._random = random.Random(seed)

    def choose(self, offers: List[object], most_rows: int) -> list[int]:  # type: ignore[override]
        room, depths = most_rows - len(offers), []
        for offer in offers:
            most = min(len(offer.gains), room)  # type: ignore[attr-defined]
            depths.append(self._random.randint(0, max(0, most)))
            room -= depths[-1]
        return depths


def guess_ahead(
    engine: Engine,
    lookup: Lookup | None = None,
    model: Reader | None = None,
    depth: Depth | None = None,
) -> Speculation:
    """Makes an engine guess; without a depth as much as it can."""
    made = Speculation(
        engine.manager,
        min(engine.max_rows, engine.scheduler.max_batch_tokens),
        lookup,
        model,
        depth or Fixed(8),
    )
    engine.speculation = made
    return made
