"""What is measured of a server."""

from __future__ import annotations

import random
from dataclasses import dataclass

from bench.serve.loads import Arrivals, Ask, Clients, Interrupted, Load, Prompts
from bench.serve.servers import Room

STALL_TOKENS = 4096
"""The long prompt that arrives while streams run."""


@dataclass(frozen=True)
class Case:
    """One measurement. Subclasses make its load from prompts that no server has seen.

    clients: answers that run together at most.
    """

    clients: int
    low: int
    high: int
    tokens: int

    @property
    def name(self) -> str:
        """As in the tables and files."""
        raise NotImplementedError

    @property
    def room(self) -> Room:
        """What the server must hold."""
        return Room(self.clients, self.high + self.tokens)

    def load(self, vocab_size: int, seed: int) -> Load:
        """Prompts of another seed are other prompts."""
        raise NotImplementedError

    def _asks(self, prompts: Prompts, count: int) -> list[Ask]:
        return [Ask(ids, self.tokens) for ids in prompts.mixed(count, self.low, self.high)]


@dataclass(frozen=True)
class Steady(Case):
    """All clients ask at once, and all answers are equally long. The bare engine does it, too."""

    @property
    def name(self) -> str:
        return f"{self.clients} steady streams"

    def load(self, vocab_size: int, seed: int) -> Clients:
        prompts = Prompts(vocab_size, random.Random(seed))
        return Clients(self._asks(prompts, self.clients), self.clients)


@dataclass(frozen=True)
class Closed(Case):
    """Each client asks again when it is answered. requests: of all clients together."""

    requests: int = 1

    @property
    def name(self) -> str:
        return f"{self.clients} client{'s' * (self.clients > 1)}"

    def load(self, vocab_size: int, seed: int) -> Clients:
        prompts = Prompts(vocab_size, random.Random(seed))
        return Clients(self._asks(prompts, self.requests), self.clients)


@dataclass(frozen=True)
class Open(Case):
    """Requests come at random moments, whether earlier ones are answered or not."""

    requests: int = 1
    rate: float = 0.1

    @property
    def name(self) -> str:
        return f"{self.rate:g} requests/s"

    def load(self, vocab_size: int, seed: int) -> Arrivals:
        prompts = Prompts(vocab_size, random.Random(seed))
        return Arrivals(self._asks(prompts, self.requests), self.rate, seed)


@dataclass(frozen=True)
class Arriving(Case):
    """All clients but one run steadily; then a long prompt comes."""

    long: int = STALL_TOKENS
    quiet: float = 3.0

    @property
    def name(self) -> str:
        return f"{self.long} tokens arrive at {self.clients - 1} streams"

    @property
    def room(self) -> Room:
        return Room(self.clients, self.long + self.tokens)

    def load(self, vocab_size: int, seed: int) -> Interrupted:
        prompts = Prompts(vocab_size, random.Random(seed))
        streams = self._asks(prompts, self.clients - 1)
        return Interrupted(streams, Ask(prompts.of(self.long), 8), self.quiet)


FULL: tuple[Case, ...] = (
    Steady(16, 128, 128, 128),
    Closed(1, 128, 2048, 64, requests=4),
    Closed(4, 128, 2048, 64, requests=8),
    Closed(16, 128, 2048, 64, requests=32),
    Closed(64, 128, 2048, 64, requests=64),
    Open(16, 128, 2048, 64, requests=24, rate=0.12),
    Arriving(17, 128, 128, 250),
    Arriving(5, 128, 128, 400),
)
QUICK: tuple[Case, ...] = (
    Steady(16, 32, 32, 24),
    Closed(4, 32, 256, 16, requests=8),
    Open(4, 32, 256, 16, requests=4, rate=1.0),
    Arriving(5, 32, 32, 96, long=512, quiet=1.0),
)
