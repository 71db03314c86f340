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
from bench.peers.child import ChildError
from bench.serve.loads import Ask, Clients
from bench.serve.process import model_shares, shares
from bench.serve.servers import KV_DTYPE, MODEL, Running

ASKS = [Ask([300 + i, 301, 302, 303], 16) for i in range(4)]


def answer(running: Running) -> None:
    """Has a server read all weights. Raises ChildError."""
    for exchange in asyncio.run(Clients(ASKS, 4)(running.target)):
        if error := exchange.read().error:
            raise ChildError(error)


def main(
    model: Annotated[Path, typer.Argument(help="A converted model.")],
    cache_tokens: Annotated[int, typer.Option(help="Rows of each KV cache.")] = 1024,
) -> None:
    """Start two, have both answer, and print what each holds."""
    command = [sys.executable, "-m", "deepmnn", "serve", str(model), "--threads", "1"]
    command += ["--cache-tokens", str(cache_tokens), "--kv-dtype", KV_DTYPE]
    command += ["--model-name", MODEL]
    weights = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    print(f"weights: {weights / 1e6:.0f} MB; MB of each server when both have answered:\n")
    print("| server | all | its own | weights | weights that it holds alone |")
    print("|---|--:|--:|--:|--:|")
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = {}
        for name in ("first", "second"):
            start = Running(lambda port: [*command, "--port", str(port)], place / name, 120)
            servers[name] = stack.enter_context(start)
            answer(servers[name])
        for name, running in servers.items():
            whole, mapped = shares(running.pid), model_shares(running.pid, model)
            alone = mapped["private"]
            cells = [whole["rss"], whole["private"] - alone, mapped["rss"], alone]
            print(f"| {name} | " + " | ".join(f"{cell / 1e6:.1f}" for cell in cells) + " |")
    print(f"\nThe second server holds {alone / weights:.1%} of the weights a second time.")


if __name__ == "__main__":
    typer.run(main)
