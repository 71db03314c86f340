"""The loads: who asks when."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

from bench.serve.client import Exchange, post


@dataclass(frozen=True)
class Ask:
    """A request: a prompt, and how many tokens it wants.

    prompt: token ids for the completions endpoint, or what a user says in a chat. to_end: the
    answer goes on behind an end token, so that all servers do the same work.
    """

    prompt: Sequence[int] | str
    tokens: int
    to_end: bool = True

    @property
    def path(self) -> str:
        """Of the endpoint."""
        return "/v1/chat/completions" if isinstance(self.prompt, str) else "/v1/completions"

    def body(self, model: str) -> dict[str, object]:
        """As servers take it: greedy, streaming, with the tokens counted at the end."""
        prompt: dict[str, object] = {"prompt": self.prompt}
        if isinstance(self.prompt, str):
            prompt = {"messages": [{"role": "user", "content": self.prompt}]}
        return {
            "model": model,
            **prompt,
            "max_tokens": self.tokens,
            "ignore_eos": self.to_end,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


@dataclass(frozen=True)
class Target:
    """A server that listens on this machine, and the name of its model."""

    port: int
    model: str

    async def ask(self, ask: Ask) -> Exchange:
        """Sends a request."""
        return await post(self.port, ask.path, ask.body(self.model))


Load = Callable[[Target], Awaitable[list[Exchange]]]
"""Runs against a server, to the end of all exchanges, which are in the order of the requests."""


@dataclass(frozen=True)
class Clients:
    """Each client sends its next request when it has the whole answer to the last one."""

    asks: Sequence[Ask]
    clients: int

    async def __call__(self, target: Target) -> list[Exchange]:
        waiting = iter(enumerate(self.asks))
        done: dict[int, Exchange] = {}

        async def client() -> None:
            for index, ask in waiting:
                done[index] = await target.ask(ask)
                await done[index].ended

        await asyncio.gather(*(client() for _ in range(self.clients)))
        return [done[index] for index in sorted(done)]


@dataclass(frozen=True)
class Arrivals:
    """Requests at random moments, `rate` each second on average, however slow the answers are."""

    asks: Sequence[Ask]
    rate: float
    seed: int = 0

    async def __call__(self, target: Target) -> list[Exchange]:
        rng, moment, begin = random.Random(self.seed), 0.0, perf_counter()
        exchanges = []
        for ask in self.asks:
            moment += rng.expovariate(self.rate)
            await asyncio.sleep(begin + moment - perf_counter())
            exchanges.append(await target.ask(ask))
        await asyncio.gather(*(exchange.ended for exchange in exchanges))
        return exchanges


@dataclass(frozen=True)
class Interrupted:
    """Streams that all run; after `quiet` seconds a long prompt arrives. It is the last one."""

    streams: Sequence[Ask]
    long: Ask
    quiet: float

    async def __call__(self, target: Target) -> list[Exchange]:
        exchanges = [await target.ask(ask) for ask in self.streams]
        await asyncio.gather(*(exchange.began for exchange in exchanges))
        await asyncio.sleep(self.quiet)
        exchanges.append(await target.ask(self.long))
        await asyncio.gather(*(exchange.ended for exchange in exchanges))
        return exchanges


@dataclass(frozen=True)
class Prompts:
    """Draws prompts that no server has seen. vocab_size: ids below it are text."""

    vocab_size: int
    rng: random.Random

    def of(self, length: int) -> list[int]:
        """One of that many tokens."""
        return self.rng.choices(range(self.vocab_size), k=length)

    def mixed(self, count: int, low: int, high: int) -> list[list[int]]:
        """Lengths evenly spaced on a logarithmic scale from low to high, in random order.

        So every engine gets the same amount of work, and short prompts are more frequent.
        """
        steps = max(1, count - 1)
        ratio = math.log(high / low)
        lengths = [round(low * math.exp(ratio * index / steps)) for index in range(count)]
        self.rng.shuffle(lengths)
        return [self.of(length) for length in lengths]
