"""What quantisation does to a language model: how far its next token diverges from float32's.

    python -m bench.divergence CHECKPOINT [TEXT ...] [--quant w8 --quant w4] > divergence.md

CHECKPOINT is any model that `deepmnn.load` takes but a converted one; its conversions stay in the
user's cache. TEXT are files; without any, a page of English and a module of Python's own library.
"""

from __future__ import annotations

import inspect
import statistics
from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console

import deepmnn

FLOAT = "fp32"
RECIPES = ("bf16", "w8", "w4")
NOTES = """
KL is the Kullback-Leibler divergence of the next token's distribution from that of the float32
model, in nats, over every token of every piece; each piece starts a context of its own. Weights
are rounded as the recipe says, and with 8 and 4 bits the activations to int8, as always. The KV
cache is float32.
"""

console = Console(stderr=True)


def pieces(model: deepmnn.LLM, texts: Sequence[str], tokens: int, most: int) -> list[list[int]]:
    """Up to `most` runs of so many tokens from each text."""
    found = []
    for text in texts:
        ids = model.tokenizer.encode(text)
        starts = range(0, len(ids) - tokens + 1, tokens)
        found += [ids[start : start + tokens] for start in starts[:most]]
    return found


def log_probabilities(model: deepmnn.LLM, ids: list[int]) -> NDArray[np.float64]:
    """[len(ids), vocab_size]."""
    logits = model.logits(ids).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def compare(
    exact: deepmnn.LLM, model: deepmnn.LLM, asked: list[list[int]]
) -> tuple[NDArray[np.float64], float]:
    """(KL of every token, the share of tokens with the same first choice)."""
    divergences, same = [], []
    for ids in asked:
        wanted, found = log_probabilities(exact, ids), log_probabilities(model, ids)
        divergences.append((np.exp(wanted) * (wanted - found)).sum(axis=1))
        same.append(wanted.argmax(axis=1) == found.argmax(axis=1))
    return np.concatenate(divergences), float(np.concatenate(same).mean())


def main(
    checkpoint: Annotated[str, typer.Argument(help="A directory, a file or a name of the hub.")],
    text: Annotated[list[Path] | None, typer.Argument(help="Files of text.")] = None,
    quant: Annotated[list[str], typer.Option(help="Recipes to compare.")] = list(RECIPES),  # noqa: B006
    tokens: Annotated[int, typer.Option(min=2, help="Of a piece.")] = 384,
    most: Annotated[int, typer.Option(min=1, help="Pieces of each text.")] = 4,
) -> None:
    """Measure and print the table."""
    texts = [path.read_text(encoding="utf-8") for path in text or []] or [
        "\n\n".join(topics[name] for name in sorted(topics)),
        inspect.getsource(statistics),
    ]
    exact = deepmnn.load(checkpoint, quant=FLOAT)
    asked = pieces(exact, texts, tokens, most)
    print("|  | mean KL | 99 % below | same first choice | weights, MB |\n|---|---|---|---|---|")
    for name in quant:
        console.print(f"comparing {name}")
        model = deepmnn.load(checkpoint, quant=name)
        found, same = compare(exact, model, asked)
        size = model.artifact.weights_nbytes / 1e6
        print(
            f"| {name} | {found.mean():.4f} | {np.quantile(found, 0.99):.3f} | {same:.1%} | "
            f"{size:.0f} |",
            flush=True,
        )
    print(f"\n{sum(map(len, asked)):,} tokens in {len(asked)} pieces.\n{NOTES}")


if __name__ == "__main__":
    typer.run(main)
