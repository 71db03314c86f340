"""When a client leaves: how many more steps its answer takes part in.

    python -m bench.serve.freed

A server in this process, whose engine sleeps for each step (bench.serve.paced), so that every step
and every client's end is known on one clock. An answer that is gone by the next step has 0.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from dataclasses import dataclass
from time import perf_counter
from typing import Annotated, Any
from unittest.mock import patch

import typer
from bench.serve.loads import Ask, Target
from bench.serve.paced import PacedBackend, paced_model

STREAMS = 4


@dataclass
class Ends:
    """Seconds of perf_counter at which the server has told the engine of a client's end."""

    moments: list[float]


def measure(times: int, step_ms: float, rng: random.Random) -> tuple[Counter[int], list[float]]:
    """Steps that an abandoned answer still began with → how often; seconds until it was known."""
    from deepmnn.serve.log import Log
    from deepmnn.serve.options import ServeOptions
    from deepmnn.serve.run import Server

    model = paced_model(step_ms / 1e3)
    backend: Any = model.backend
    ends = Ends([])
    cancel = model.driver.cancel

    def cancelled(request: Any) -> None:
        if request.sequence.finish_reason is None:
            ends.moments.append(perf_counter())
        cancel(request)

    with (
        patch.object(model.driver, "cancel", cancelled),
        open(os.devnull, "w") as nowhere,
        Server(ServeOptions(port=0), "bench", Log(nowhere)) as server,
    ):
        server.ready(model)
        target = Target(server.port, "bench")
        return asyncio.run(_measure(target, backend, ends, times, step_ms, rng))


async def _measure(
    target: Target,
    backend: PacedBackend,
    ends: Ends,
    times: int,
    step_ms: float,
    rng: random.Random,
) -> tuple[Counter[int], list[float]]:
    late: Counter[int] = Counter()
    known = []
    for _ in range(times):
        asks = [Ask(f"What is {i} + {rng.randrange(100)}?", 2000) for i in range(STREAMS)]
        exchanges = [await target.ask(ask) for ask in asks]
        await asyncio.gather(*(exchange.began for exchange in exchanges))
        await asyncio.sleep(rng.uniform(0.05, 0.1))
        ends.moments.clear()
        left = perf_counter()
        exchanges[0].abandon()
        await asyncio.sleep(12 * step_ms / 1e3)
        if not ends.moments:
            raise SystemExit("the server has not noticed that a client left")
        end = ends.moments[0]
        known.append(end - left)
        late[sum(begin > end and count == STREAMS for begin, _, count in backend.steps)] += 1
        for exchange in exchanges:
            exchange.abandon()
        await asyncio.sleep(4 * step_ms / 1e3)
        backend.steps.clear()
    return late, known


def main(
    times: Annotated[int, typer.Option(min=1, help="Clients that leave.")] = 50,
    step_ms: Annotated[float, typer.Option(help="Milliseconds of a step.")] = 10.0,
) -> None:
    """Measure and print."""
    late, known = measure(times, step_ms, random.Random(0))
    print("| steps begun with an answer after its client's end reached the server | times |")
    print("|--:|--:|")
    for steps, count in sorted(late.items()):
        print(f"| {steps} | {count} |")
    known.sort()
    print(f"\nThe server knew after {1e3 * known[len(known) // 2]:.1f} ms (median), ", end="")
    print(f"{1e3 * known[-1]:.1f} ms at most.")


if __name__ == "__main__":
    typer.run(main)
