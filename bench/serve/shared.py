"""Two servers with one model: what the second one takes in memory beside the first.

python -m bench.serve.shared MODEL
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from bench.serve.loads import Ask, Clients
from bench.serve.process import model_shares, shares
from bench.serve.servers import MODEL, Running

ASKS = [Ask([300 + i, 301, 302, 303], 16) for i in range(4)]


def available() -> int:
    """Bytes that programs can still get."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    raise OSError("/proc/meminfo has no MemAvailable")


def main(
    model: Annotated[Path, typer.Argument(help="A converted model.")],
    cache_tokens: Annotated[int, typer.Option(help="Rows of each KV cache.")] = 1024,
) -> None:
    """Start two, have both answer, and print what each holds."""
    command = [sys.executable, "-m", "deepmnn", "serve", str(model), "--threads", "1"]
    command += ["--cache-tokens", str(cache_tokens), "--model-name", MODEL]
    weights = sum(f.stat().st_size for f in model.glob("*.safetensors"))
    print(f"weights: {weights / 1e6:.0f} MB\n")
    print("| server | all its memory, MB | private, MB | of weights, MB | private of weights, MB |")
    print("|---|--:|--:|--:|--:|")
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        own, free = 0, []
        for number in ("first", "second"):
            free.append(available())
            start = Running(lambda port: [*command, "--port", str(port)], place / number, 120)
            running = stack.enter_context(start)
            for exchange in asyncio.run(Clients(ASKS, 4)(running.target)):
                if error := exchange.read().error:
                    raise SystemExit(f"the {number} server: {error}")
            whole, mapped = shares(running.pid), model_shares(running.pid, model)
            cells = [whole["rss"], whole["private"], mapped["rss"], mapped["private"]]
            print(f"| {number} | " + " | ".join(f"{cell / 1e6:.1f}" for cell in cells) + " |")
            own = whole["private"]
        free.append(available())
    fell = free[1] - free[2]
    print(f"\nThe second server's own bytes are {own / weights:.1%} of the model's.")
    print(f"The machine's free memory fell by {fell / 1e6:.0f} MB ({fell / weights:.1%}).")


if __name__ == "__main__":
    typer.run(main)
