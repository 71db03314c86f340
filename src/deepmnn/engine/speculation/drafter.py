"""What guesses the next tokens of answers."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as List
from dataclasses import dataclass
from typing import Protocol

from deepmnn.engine.sequence import Sequence


@dataclass(slots=True)
class Guess:
    """What may come next in an answer.

    tokens: in order; none where nothing can be said. kind: guesses of one kind are right about
    equally often.
    """

    tokens: List[int]
    kind: str


class Drafter(Protocol):
    """Guesses tokens. Whether they are right is found out by the model itself (`Speculation`).

    Between two steps `Sequence.ids` are real tokens only, and only grow: what has become of a
    guess is seen there. A drafter may be asked for any of the sequences, in any step, or not.
    """

    most: int
    """Tokens it guesses at a time."""
    kinds: Mapping[str, float]
    """What its guesses are called, and the chance that one is right of which nothing is known."""

    def propose(self, asked: List[tuple[Sequence, int]]) -> list[Guess]:
        """A guess for each (sequence, tokens wanted); it may be shorter."""
        ...

    def forget(self, sequence: Sequence) -> None:
        """The sequence has ended, if it was ever asked for."""
        ...


NOTHING = Guess((), "")
"""A guess of no tokens."""
