"""What a server costs beside the engine: processor time for each token of each stream.

    python -m bench.serve.cost [--streams 16] [--chat]

The engine of bench.serve.paced computes nothing, so whatever the process takes is HTTP, parsing,
detokenising and scheduling. The same engine without a server, and without text, is subtracted.
The parts are from a second run under a profiler, whose own cost is taken off in proportion.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from time import perf_counter, process_time, sleep
from typing import Annotated, Any, cast

import typer
from bench.peers.child import ChildError
from bench.serve.loads import Ask, Clients, Prompts
from bench.serve.process import cpu_seconds
from bench.serve.servers import Running

WARM_REQUESTS = 32


@dataclass(frozen=True)
class Cost:
    """Of a load: processor seconds of the server, and tokens.

    between: seconds from one step to the next. parts: the profiler's seconds.
    """

    seconds: float
    tokens: int
    between: float
    parts: dict[str, float]

    @property
    def microseconds(self) -> float:
        """For each token."""
        return 1e6 * self.seconds / self.tokens


def served(asks: list[Ask], streams: int, step_ms: float, profiled: bool) -> Cost:
    """The asks, `streams` at a time, on a paced server. Raises ChildError."""
    with tempfile.TemporaryDirectory() as place:
        result, log = Path(place) / "result.json", Path(place) / "log"
        command = [sys.executable, "-m", "bench.serve.paced"]
        tail = [str(result), str(step_ms), str(streams), *(["profile"] if profiled else [])]
        with Running(lambda port: [*command, str(port), *tail], log, 120) as running:
            target = running.target
            asyncio.run(Clients(asks[:WARM_REQUESTS], streams)(target))  # type: ignore[arg-type]
            sleep(0.5)
            before = cpu_seconds(running.pid)
            exchanges = asyncio.run(Clients(asks, streams)(target))  # type: ignore[arg-type]
            sleep(0.2)
            seconds = cpu_seconds(running.pid) - before
            replies = [exchange.read() for exchange in exchanges]
            if errors := [reply.error for reply in replies if reply.error]:
                raise ChildError(errors[0])
        found = json.loads(result.read_text())
    return Cost(seconds, sum(reply.tokens for reply in replies), **found)


def engine_alone(asks: list[Ask], streams: int, step_ms: float) -> Cost:
    """The same numbers of tokens on the same engine, with no text and nobody who reads."""
    from bench.serve.paced import between_steps, paced_model

    import deepmnn
    from deepmnn.engine.request import Event, Request, result_of

    model = paced_model(step_ms / 1e3)
    ended: SimpleQueue[Event] = SimpleQueue()
    driver, rng, backend = model.driver, random.Random(0), model.backend

    def run(count: int) -> None:
        params = deepmnn.SamplingParams(max_tokens=asks[0].tokens, ignore_eos=True)
        for _ in range(count):
            prompts = [rng.choices(range(model.vocab_size), k=64) for _ in range(streams)]
            made = [driver.engine.sequence(ids, params) for ids in prompts]
            driver.submit([Request(each, ended.put, whole=True) for each in made])
            for _ in made:
                result_of(ended.get())

    run(2)
    before, rounds = process_time(), -(-len(asks) // streams)
    run(rounds)
    seconds = process_time() - before
    between = between_steps(cast(Any, backend), streams)
    return Cost(seconds, rounds * streams * asks[0].tokens, between, {})


def main(
    streams: Annotated[int, typer.Option(min=1, help="Answers at a time.")] = 16,
    requests: Annotated[int, typer.Option(min=1, help="Answers in all.")] = 64,
    tokens: Annotated[int, typer.Option(min=1, help="Of each answer.")] = 128,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of a prompt, or words.")] = 64,
    step_ms: Annotated[float, typer.Option(help="Milliseconds that a step sleeps.")] = 20.0,
    chat: Annotated[bool, typer.Option(help="Chat completions, not completions.")] = False,
    out: Annotated[Path | None, typer.Option(help="A JSON file.")] = None,
) -> None:
    """Measure and print a table in Markdown."""
    rng = random.Random(0)
    prompts = Prompts(500, rng)
    texts = [" ".join(f"{rng.randrange(1000)}" for _ in range(prompt)) for _ in range(requests)]
    asks = [Ask(texts[i] if chat else prompts.of(prompt), tokens) for i in range(requests)]
    began = perf_counter()
    whole = served(asks, streams, step_ms, profiled=False)
    alone = engine_alone(asks, streams, step_ms)
    traced = served(asks, streams, step_ms, profiled=True)
    total = whole.microseconds
    print(f"| {streams} streams, {'chat' if chat else 'completions'} | µs for each token |")
    print("|---|--:|")
    print(f"| the server's process | {total:.0f} |")
    print(f"| the engine alone, no text | {alone.microseconds:.0f} |")
    print(f"| **what the server adds** | **{total - alone.microseconds:.0f}** |")
    seen = sum(traced.parts.values()) or 1.0
    for part, seconds in traced.parts.items():
        print(f"| {part} | {total * seconds / seen:.0f} |")
    print(
        f"\nFrom one step to the next: {1e3 * whole.between:.2f} ms; "
        f"the engine alone {1e3 * alone.between:.2f} ms."
    )
    print(f"{whole.tokens} tokens; {perf_counter() - began:.0f} s")
    if out is not None:
        fields = {
            "server": {"microseconds": total, "between": whole.between},
            "engine": {"microseconds": alone.microseconds, "between": alone.between},
            "parts": traced.parts,
        }
        out.write_text(json.dumps(fields, indent=1))


if __name__ == "__main__":
    typer.run(main)
