"""A cache of experts, and how policies score what it holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Experts = NDArray[np.int64]
"""Numbers of experts, counted over all layers."""
Scores = NDArray[np.float64]


class Policy:
    """Scores of experts; this one is least recently used.

    scores: [experts], higher ones stay. now: tokens so far.
    """

    def __init__(self, count: int) -> None:
        self.scores: Scores = np.zeros(count)
        self.now = 0

    def use(self, experts: Experts, order: float = 0.0) -> None:
        """One token chooses these. order: of layers within it, from 0 up to 1."""
        self.scores[experts] = self.now + order

    def use_many(self, counts: NDArray[Any], last: Scores, order: float) -> None:
        """A prompt's tokens choose every expert so many times, `last` at these tokens."""
        used = counts > 0
        self.scores[used] = last[used] + order

    def missed(self, experts: Experts) -> None:
        """These were read for it."""

    def next_token(self) -> None:
        """A token is done."""
        self.now += 1


class Frequency(Policy):
    """Least frequently used, where a use counts half after `half_life` tokens."""

    def __init__(self, count: int, half_life: float = np.inf) -> None:
        super().__init__(count)
        self.gain, self.growth = 1.0, 2 ** (1 / half_life)

    def use(self, experts: Experts, order: float = 0.0) -> None:
        self.scores[experts] += self.gain

    def use_many(self, counts: NDArray[Any], last: Scores, order: float) -> None:
        self.scores += counts * self.gain

    def next_token(self) -> None:
        super().next_token()
        self.gain *= self.growth
        if self.gain > 1e100:
            self.scores /= self.gain
            self.gain = 1.0


class Second(Policy):
    """LRU-2: by the use before the last (O'Neil et al., 1993)."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.last: Scores = np.full(count, -1e9)

    def use(self, experts: Experts, order: float = 0.0) -> None:
        self.scores[experts] = self.last[experts] + 1e-6 * self.now
        self.last[experts] = self.now + order

    def use_many(self, counts: NDArray[Any], last: Scores, order: float) -> None:
        used = counts > 0
        self.scores[used] = np.where(counts > 1, last - 1, self.last)[used]
        self.last[used] = last[used] + order


class Segmented(Policy):
    """Segmented LRU: what is used again while it is held is protected, up to 80 % of the cache."""

    def __init__(self, count: int, held: int) -> None:
        super().__init__(count)
        self.protected, self.most = np.zeros(count, bool), max(1, held * 4 // 5)
        self.last: Scores = np.zeros(count)

    def missed(self, experts: Experts) -> None:
        self.protected[experts] = False
        self.scores[experts] = self.last[experts]

    def use(self, experts: Experts, order: float = 0.0) -> None:
        self.last[experts] = self.now + order
        self.protected[experts] = True
        self.scores[experts] = self.last[experts] + 1e9
        over = int(self.protected.sum()) - self.most
        if over > 0:
            held = np.flatnonzero(self.protected)
            oldest = held[np.argpartition(self.last[held], over - 1)[:over]]
            self.protected[oldest] = False
            self.scores[oldest] = self.last[oldest]


class Fixed(Policy):
    """Always the same ones: the most used of other traces."""

    def __init__(self, counts: Scores) -> None:
        super().__init__(len(counts))
        self.scores = counts

    def use(self, experts: Experts, order: float = 0.0) -> None:
        pass

    def use_many(self, counts: NDArray[Any], last: Scores, order: float) -> None:
        pass


@dataclass
class Cache:
    """Which experts are held: the best scored, `room` in each of the equal parts of `held`.

    held: bool [parts, experts of a part]; parts are layers, or there is one.
    admit: also what scores lowest is kept after a miss, as it must where a policy has no choice.
    """

    held: NDArray[np.bool_]
    room: int
    admit: bool = False

    def fetch(self, experts: Experts, scores: Scores) -> None:
        """Read experts take their places. All of a part: experts of one layer."""
        part, size = int(experts[0]) // self.held.shape[1], self.held.shape[1]
        held, mine = self.held[part], scores[part * size : (part + 1) * size]
        held[experts % size] = True
        over = int(held.sum()) - self.room
        if over > 0:
            candidates = np.flatnonzero(held)
            worth = mine[candidates]
            if self.admit and self.room >= len(experts):
                worth = np.where(np.isin(candidates, experts % size), np.inf, worth)
            held[candidates[np.argpartition(worth, over - 1)[:over]]] = False

    def holds(self, experts: Experts) -> NDArray[np.bool_]:
        """Which of them are held."""
        found: NDArray[np.bool_] = self.held.reshape(-1)[experts]
        return found
