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

    tokens: in order; none where nothing can be said. kinds: of each token; guesses of one kind are
    right about equally often, where those before them in the same guess are.
    """

    tokens: List[int]
    kinds: List[str]


class Drafter(Protocol):
    """Guesses tokens. Whether they are right is found out by the model itself (`Speculation`).

    Between two steps `Sequence.ids` are real tokens only, and only grow: what has become of a
    guess is seen there. A drafter may be asked for any of the sequences that it follows, in any
    step, or not.
    """

    most: int
    """Tokens it guesses at a time."""
    kinds: Mapping[str, float]
    """What its guesses are called, and the chance that one is right of which nothing is known."""

    def follow(self, sequence: Sequence) -> None:
        """The sequence starts, and will be asked for."""
        ...

    def propose(self, asked: List[tuple[Sequence, int]]) -> list[Guess]:
        """A guess for each (sequence, tokens wanted); it may be shorter."""
        ...

    def forget(self, sequence: Sequence) -> None:
        """It has ended, or is asked for no longer; it need not have been followed."""
        ...


class Lookup(Drafter, Protocol):
    """A drafter that takes no time to speak of."""

    def repeats(self, sequence: Sequence) -> bool:
        """Whether a guess is very likely right: told at once, with hardly a look."""
        ...


class Reader(Drafter, Protocol):
    """A drafter that must read what it guesses from: it takes time, for guesses and beside them."""

    @property
    def following(self) -> bool:
        """Whether it follows any sequence."""
        ...

    @property
    def read_tokens(self) -> int:
        """Tokens that the last `propose` had to read besides what a guess needs: its time says
        little about guesses then.
        """
        ...

    def offer(self, sequence: Sequence, most: int) -> List[str]:
        """The kinds of the tokens that it would guess now, at most so many; none: it can not."""
        ...


NOTHING = Guess((), ())
"""A guess of no tokens."""
