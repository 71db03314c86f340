"""What a cache of experts hits while a mixture decodes, by size, policy and what a prompt does.

    python -m bench.memory.policy TRACES.npz

Replays the traces of `bench.memory.routing`, one row after the other through one cache: a prompt,
which needs every expert of a layer at once, then tokens one by one. Hits are counted while
decoding, from the second row on. A miss is read, and takes the place of the expert with the lowest
score, if its own is not lower still; a policy is how experts are scored (`caches.py`).

How a prompt is seen:

    scan       one use of every expert that it chooses, layer by layer
    unseen     not at all: what it reads goes by the cache
    tokens     as if each of its tokens had been decoded; the best of what was read stay
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from bench.memory.caches import (
    Cache,
    Experts,
    Fixed,
    Frequency,
    Policy,
    Scores,
    Second,
    Segmented,
)
from numpy.typing import NDArray

SHARES = (0.05, 0.1, 0.2, 0.4, 0.6, 0.9)
PROMPT = 512


@dataclass(frozen=True)
class Traces:
    """Experts numbered over all layers.

    rows: choices [rows, tokens, layers, top_k]. count: experts. foretold: by the layer before, the
    best first [rows, tokens, layers, most].
    """

    rows: Experts
    count: int
    foretold: Experts

    @property
    def layers(self) -> int:
        return int(self.rows.shape[2])

    @staticmethod
    def read(path: Path, sampled: bool, experts: int) -> Traces:
        """Those whose answers are the model's own, or those whose answers are the text's."""
        stored = np.load(path)
        names, mine = ("experts", "foretold"), stored["sampled"] == sampled
        rows, told = (stored[name][mine].astype(np.int64) for name in names)
        layers = rows.shape[2]
        for numbers in (rows, told):
            numbers += (np.arange(layers) * experts)[None, None, :, None]
        order = np.random.default_rng(0).permutation(len(rows))
        return Traces(rows[order], layers * experts, told[order])

    def cache(self, share: float, by_layer: bool, admit: bool) -> Cache:
        parts = self.layers if by_layer else 1
        room = max(1, round(share * self.count / parts))
        return Cache(np.zeros((parts, self.count // parts), bool), room, admit)


def hit_rate(traces: Traces, policy: Policy, cache: Cache, prompt: str) -> float:
    """Hits while decoding, over all choices; the first row only fills the cache."""
    hits = asked = 0
    for number, row in enumerate(traces.rows):
        read_prompt(policy, cache, row[:PROMPT], prompt)
        for token in row[PROMPT:]:
            for layer, experts in enumerate(token):
                there = cache.holds(experts)
                if number:
                    hits, asked = hits + int(there.sum()), asked + len(there)
                policy.use(experts, layer / traces.layers)
                if not there.all():
                    policy.missed(experts[~there])
                    cache.fetch(experts[~there], policy.scores)
            policy.next_token()
    return hits / asked


def read_prompt(policy: Policy, cache: Cache, row: Experts, prompt: str) -> None:
    """Every layer in turn, all its experts at once. row: [tokens, layers, top_k]."""
    layers, count = row.shape[1], len(policy.scores)
    for layer in range(layers if prompt != "unseen" else 0):
        experts = row[:, layer]
        used = np.unique(experts)
        if prompt == "scan":
            for one in used:  # each is read when its turn comes
                there = cache.holds(one[None])
                policy.use(one[None], layer / layers)
                if not there[0]:
                    policy.missed(one[None])
                    cache.fetch(one[None], policy.scores)
            continue
        if isinstance(policy, Frequency):
            weights = policy.growth ** np.arange(len(experts))
            spread = np.repeat(weights, experts.shape[1])
            counts = np.bincount(experts.reshape(-1), spread, minlength=count)
            policy.use_many(counts, policy.scores, 0)
        else:
            counts = np.bincount(experts.reshape(-1), minlength=count)
            last: Scores = np.zeros(count)
            for token, chosen in enumerate(experts):
                last[chosen] = policy.now + token
            policy.use_many(counts, last, layer / layers)
        cache.fetch(used, policy.scores)
    if prompt == "tokens":
        policy.now += len(row)
        if isinstance(policy, Frequency):
            policy.gain *= policy.growth ** len(row)
    else:
        policy.next_token()


def read_ahead(traces: Traces, policy: Policy, cache: Cache, width: int) -> tuple[float, ...]:
    """Decoding with the best `width` experts of the next layer read ahead where they are not held.

    What is read ahead and not chosen is not kept. → shares of all choices: that were held; that
    were read ahead; that had to be waited for; and that were read ahead in vain.
    """
    sums = np.zeros(4)
    for number, (row, told) in enumerate(zip(traces.rows, traces.foretold, strict=True)):
        read_prompt(policy, cache, row[:PROMPT], "tokens")
        for token, guesses in zip(row[PROMPT:], told[PROMPT:], strict=True):
            for layer, experts in enumerate(token):
                there = cache.holds(experts)
                if number and layer:
                    read = guesses[layer, :width]
                    read = read[~cache.holds(read)]
                    ahead = np.isin(experts, read)
                    late = ~there & ~ahead
                    sums += there.sum(), ahead.sum(), late.sum(), len(read) - ahead.sum()
                policy.use(experts, layer / traces.layers)
                if not there.all():
                    policy.missed(experts[~there])
                    cache.fetch(experts[~there], policy.scores)
            policy.next_token()
    return tuple((sums / sums[:3].sum()).tolist())


def best_rate(traces: Traces, cache: Cache) -> float:
    """Belady's bound: what is chosen next stays. A prompt leaves what serves best."""
    hits = asked = 0
    for number, row in enumerate(traces.rows):
        following = traces.rows[number + 1 :, :PROMPT]
        after = following[0] if len(following) else row[:0]
        uses = next_uses(np.concatenate([row[PROMPT:], after]), traces.count)
        policy = Policy(traces.count)
        policy.scores = -next(uses)
        for layer in range(traces.layers):  # a prompt reads everything
            part = np.arange(traces.count).reshape(traces.layers, -1)[layer]
            cache.fetch(part, policy.scores)
        for token in row[PROMPT:]:
            for experts in token:
                there = cache.holds(experts)
                if number:
                    hits, asked = hits + int(there.sum()), asked + len(there)
                policy.scores = -next(uses)
                if not there.all():
                    cache.fetch(experts[~there], policy.scores)
    return hits / asked


def next_uses(row: Experts, count: int) -> Iterator[Scores]:
    """When each expert is chosen next, at first and after every layer of every token."""
    steps = row.reshape(-1, row.shape[-1])
    following: NDArray[np.int64] = np.full(steps.shape, 1 << 40)
    last: NDArray[np.int64] = np.full(count, 1 << 40)
    for step in range(len(steps) - 1, -1, -1):
        following[step] = last[steps[step]]
        last[steps[step]] = step
    now = last.astype(np.float64)
    yield now
    for step, experts in enumerate(steps):
        now[experts] = following[step]
        yield now


# ---------------------------------------------------------------- the table


def policies(traces: Traces, others: Scores) -> Iterator[tuple[str, str, bool]]:
    """Name, prompt and whether every miss is kept."""
    yield from (("LRU", prompt, True) for prompt in ("scan", "unseen", "tokens"))
    yield from (("LFU", prompt, False) for prompt in ("scan", "unseen", "tokens"))
    yield ("LFU", "tokens", True)
    for half_life in (8, 16, 32, 64, 128, 256, 512):
        yield (f"LFU, half-life {half_life}", "tokens", False)
    for half_life in (32, 64, 128):
        yield (f"LFU, half-life {half_life}", "tokens", True)
    for half_life in (64, 128):
        yield (f"LFU, half-life {half_life}", "scan", False)
        yield (f"LFU, half-life {half_life}", "unseen", False)
    yield from (("LRU-2", prompt, True) for prompt in ("scan", "tokens"))
    yield from (("segmented LRU", prompt, True) for prompt in ("scan", "unseen"))
    yield ("fixed", "unseen", False)


def made(name: str, traces: Traces, others: Scores, held: int) -> Policy:
    """A policy by its name in the table."""
    kind, _, half_life = name.partition(", half-life ")
    if kind == "LFU":
        return Frequency(traces.count, float(half_life or "inf"))
    if kind == "LRU-2":
        return Second(traces.count)
    if kind == "segmented LRU":
        return Segmented(traces.count, held)
    if kind == "fixed":
        return Fixed(others.copy())
    return Policy(traces.count)


def table(traces: Traces, others: Scores, by_layer: bool) -> Iterator[str]:
    """Hit rates in Markdown, a line for each policy."""
    yield "| policy | prompt | misses are kept |" + "".join(f" {s:.0%} |" for s in SHARES)
    yield "|---|---|---|" + "--:|" * len(SHARES)
    for name, prompt, admit in policies(traces, others):
        rates = []
        for share in SHARES:
            held = round(share * traces.count)
            cache = traces.cache(share, by_layer, admit)
            rates.append(hit_rate(traces, made(name, traces, others, held), cache, prompt))
        kept = "always" if admit else "if worth it"
        yield f"| {name} | {prompt} | {kept} |" + "".join(f" {rate:.1%} |" for rate in rates)
    rates = [best_rate(traces, traces.cache(share, by_layer, False)) for share in SHARES]
    yield "| Belady | knows the future | if worth it |" + "".join(f" {r:.1%} |" for r in rates)


def foretold_table(traces: Traces) -> Iterator[str]:
    """What reading ahead gives under LFU with a half-life of 64 tokens, in Markdown."""
    yield "| cache | read ahead | held | read ahead | waited for | read in vain |"
    yield "|--:|--:|--:|--:|--:|--:|"
    for share in SHARES[:-1]:
        for width in (0, 4, 6, 8, 10):
            cache = traces.cache(share, False, False)
            found = read_ahead(traces, Frequency(traces.count, 64), cache, width)
            cells = "".join(f" {part:.1%} |" for part in found)
            yield f"| {share:.0%} | {width} |{cells}"


def main(
    path: Annotated[
        Path, typer.Argument(metavar="TRACES", help="Written by bench.memory.routing.")
    ],
    rows: Annotated[int, typer.Option(help="Rows to replay.")] = 12,
    experts: Annotated[int, typer.Option(help="Routed experts of a layer.")] = 128,
    by_layer: Annotated[bool, typer.Option(help="A cache for each layer.")] = False,
    sampled: Annotated[bool, typer.Option(help="The model's own answers.")] = True,
    ahead: Annotated[bool, typer.Option(help="Instead: what reading ahead gives.")] = False,
) -> None:
    """Print the hit rates of decoding."""
    traces = Traces.read(path, sampled, experts)
    rest = traces.rows[rows:]
    others = np.bincount(rest.reshape(-1), minlength=traces.count).astype(np.float64)
    used = Traces(traces.rows[:rows], traces.count, traces.foretold[:rows])
    lines = foretold_table(used) if ahead else table(used, others, by_layer)
    for line in lines:
        print(line)
        sys.stdout.flush()


if __name__ == "__main__":
    typer.run(main)
