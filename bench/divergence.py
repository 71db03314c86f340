"""What quantisation does to a language model: how far its next token diverges from float32's.

    python -m bench.divergence CHECKPOINT [TEXT ...] [--quant w8 --quant w4] > divergence.md

CHECKPOINT is any model that `deepmnn.load` takes but a converted one; its conversions stay in the
user's cache. TEXT are files; without any, a page of English and a module of Python's own library.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.console import Console

import deepmnn
from deepmnn.measure.judge import Judgement, judge
from deepmnn.measure.kept_predictions import KeptPredictions
from deepmnn.measure.predictions import predictions
from deepmnn.measure.texts import built_in_texts, cut, read_texts

FLOAT = "fp32"
RECIPES = ("bf16", "w8", "w6", "w5", "w4", "w3")
NOTES = """
KL is the Kullback-Leibler divergence of the next token's distribution from that of the float32
model, in nats, over every token of every piece; each piece starts a context of its own. Weights
are rounded as the recipe says, and with 8 and 4 bits the activations to int8, as always. The KV
cache is float32. `docs/eval.md` has the formulas.
"""

console = Console(stderr=True)


def row(name: str, found: Judgement, size: int) -> str:
    """A line of the table. size: bytes of the weights."""
    kl = found.divergence
    assert kl is not None
    return (
        f"| {name} | {kl.mean:.4f} | {kl.percentile_99:.3f} | {kl.same_first_choice:.1%} | "
        f"{found.perplexity_ratio:.4f} | {size / 1e6:.0f} |"
    )


def main(
    checkpoint: Annotated[str, typer.Argument(help="A directory, a file or a name of the hub.")],
    text: Annotated[list[Path] | None, typer.Argument(help="Files of text.")] = None,
    quant: Annotated[list[str], typer.Option(help="Recipes to compare.")] = list(RECIPES),  # noqa: B006
    tokens: Annotated[int, typer.Option(min=2, help="Of a piece.")] = 384,
    most: Annotated[int, typer.Option(min=1, help="Pieces of each text.")] = 4,
) -> None:
    """Measure and print the table."""
    exact = deepmnn.load(checkpoint, quant=FLOAT)
    texts = [read_texts(path) for path in text or []] or built_in_texts()
    pieces = [piece for each in texts for piece in cut(exact.tokenizer, each, tokens, most)]
    print("|  | mean KL | 99 % below | same first choice | perplexity × | weights, MB |")
    print("|---|---|---|---|---|---|")
    with TemporaryDirectory(prefix="deepmnn-divergence-") as folder:
        reference = KeptPredictions(Path(folder), predictions(exact))
        for name in quant:
            console.print(f"comparing {name}")
            model = deepmnn.load(checkpoint, quant=name)
            found = judge(predictions(model), pieces, reference)
            print(row(name, found, model.artifact.weights_nbytes), flush=True)
    print(f"\n{sum(map(len, pieces)):,} tokens in {len(pieces)} pieces.\n{NOTES}")


if __name__ == "__main__":
    typer.run(main)
