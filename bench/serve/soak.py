"""Ten thousand requests, half of them abandoned at random moments, on a server of tiny-r1.

    python -m bench.serve.soak [--requests 10000] [--clients 32]

Every answer that is read to its end is compared with the bare engine's. What a client leaves must
be out of the engine before its next step: bench.serve.freed measures that. Ends with status 1
when an answer differs, one does not come, or resident memory grows by 2 % after a tenth of them,
huge pages left out: the kernel makes them of the KV cache at moments of its own.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Annotated
from urllib.request import urlopen

import typer
from bench.peers.child import Peer, call
from bench.serve.loads import Ask, Target
from bench.serve.process import shares
from bench.serve.servers import MODEL, Running

PATIENCE = 60.0
"""Seconds for any one answer: longer is a hang."""

MOST_GROWTH = 0.02
LONGEST = 48
PROMPTS = 200
CACHE_TOKENS = 4096
"""Rows of the KV cache: so few that all are in use early, and are taken back again and again."""


@dataclass
class Soak:
    """Sends requests from several clients, and keeps what was wrong.

    Attributes:
        counts: whole, abandoned (before, within and after the answer) and wrong exchanges.
        wrong: a few words on the first of them.
    """

    target: Target
    asks: list[Ask]
    expected: list[str]
    rng: random.Random
    seconds: float = 0.05
    """That an answer takes, as far as is known."""
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    async def run(self, requests: int, clients: int) -> None:
        """That many, half of them abandoned."""
        left = iter(range(requests))
        await asyncio.gather(*(self._client(left) for _ in range(clients)))

    async def _client(self, left: Iterator[int]) -> None:
        for _ in left:
            index = self.rng.randrange(len(self.asks))
            try:
                if self.rng.random() < 0.5:
                    await self._abandon(self.asks[index])
                else:
                    await self._read(index)
            except OSError as error:
                self._note("no connection", str(error))

    async def _abandon(self, ask: Ask) -> None:
        exchange = await self.target.ask(ask)
        await asyncio.wait([exchange.ended], timeout=self.rng.uniform(0, 1.2 * self.seconds))
        moment = "after" if exchange.ended.done() else "within" if exchange.first else "before"
        exchange.abandon()
        await exchange.ended
        self.counts[f"abandoned {moment} the answer"] += 1

    async def _read(self, index: int) -> None:
        exchange = await self.target.ask(self.asks[index])
        await asyncio.wait([exchange.ended], timeout=PATIENCE)
        if not exchange.ended.done():
            exchange.abandon()
            self._note("hung", self.asks[index].body(MODEL).__repr__())
            return
        reply = exchange.read()
        self.seconds += 0.05 * (exchange.closed - exchange.sent - self.seconds)
        if reply.error or reply.text != self.expected[index]:
            self._note("wrong", f"{reply.error} {reply.text!r}, not {self.expected[index]!r}")
        else:
            self.counts["read to the end"] += 1

    def _note(self, kind: str, words: str) -> None:
        self.counts[kind] += 1
        if len(self.wrong) < 5:
            self.wrong.append(f"{kind}: {words}")


async def settle(port: int) -> float:
    """Waits until nothing runs or waits, and returns the seconds that took."""
    began = perf_counter()
    while perf_counter() - began < PATIENCE:
        read = await asyncio.to_thread(metrics, port)
        if not read["vllm:num_requests_running"] and not read["vllm:num_requests_waiting"]:
            return perf_counter() - began
    raise SystemExit(f"answers still run {PATIENCE:.0f} s after the last request")


def metrics(port: int) -> dict[str, float]:
    """What the server counts, without labels."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE) as answer:
        lines = answer.read().decode().splitlines()
    found = {}
    for line in lines:
        if line and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            found[name.partition("{")[0]] = float(value)
    return found


def questions(rng: random.Random) -> list[Ask]:
    """Sums for tiny-r1, with answers of different lengths."""
    return [
        Ask(
            f"What is {rng.randrange(1000)} + {rng.randrange(1000)}?",
            rng.randint(1, LONGEST),
            False,
        )
        for _ in range(PROMPTS)
    ]


async def soak(running: Running, asks: list[Ask], expected: list[str], plan: Plan) -> bool:
    """Runs it in ten parts; whether all was well."""
    made = Soak(running.target, asks, expected, random.Random(plan.seed))
    part, sizes, began = max(1, plan.requests // 10), [], perf_counter()
    for number in range(1, 11):
        await made.run(part, plan.clients)
        seconds = await settle(running.target.port)
        used = shares(running.pid)
        sizes.append(used["rss"] - used["huge"])
        print(
            f"{number * part:6} requests, {perf_counter() - began:.0f} s: resident "
            f"{used['rss'] / 1e6:.1f} MB, {used['huge'] / 1e6:.1f} MB of it in huge pages, "
            f"idle after {1e3 * seconds:.0f} ms",
            flush=True,
        )
    growth = sizes[-1] / sizes[0] - 1
    for name, count in made.counts.most_common():
        print(f"{name}: {count}")
    print(f"resident memory without huge pages since {part} requests: {growth:+.2%}")
    print("\n".join(made.wrong))
    return not made.wrong and growth < MOST_GROWTH


@dataclass(frozen=True)
class Plan:
    """How many requests, from how many clients."""

    requests: int
    clients: int
    seed: int


def main(
    requests: Annotated[int, typer.Option(min=10, help="In all.")] = 10_000,
    clients: Annotated[int, typer.Option(min=1, help="At a time.")] = 32,
    threads: Annotated[int, typer.Option(min=1, help="Worker threads of the engine.")] = 1,
    seed: Annotated[int, typer.Option(help="Other moments and questions.")] = 0,
) -> None:
    """Run it, and print what was seen."""
    from deepmnn.conversion.bundled import bundled_checkpoint

    model, asks = str(bundled_checkpoint()), questions(random.Random(seed))
    fields = [{"prompt": ask.prompt, "tokens": ask.tokens} for ask in asks]
    request = {"model": model, "threads": threads, "asks": fields}
    peer = Peer("deepmnn", sys.executable)
    expected = call(peer, "answers", request, 600, None, "bench.serve.bare")
    command = [sys.executable, "-m", "deepmnn", "serve", model, "--threads", str(threads)]
    command += ["--model-name", MODEL, "--cache-tokens", str(CACHE_TOKENS)]
    with tempfile.TemporaryDirectory() as place:
        start = Running(lambda port: [*command, "--port", str(port)], Path(place) / "log", 120)
        with start as running:
            well = asyncio.run(soak(running, asks, expected, Plan(requests, clients, seed)))
    raise typer.Exit(0 if well else 1)


if __name__ == "__main__":
    typer.run(main)
