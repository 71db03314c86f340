"""How often a widened model in 4 bits chooses the experts that the small one chooses.

    python -m bench.memory.agreement MIXTURE/hf OUT TRACES.npz

Both run the rows of the traces through deepmnn's engine, layer by layer: the small one in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from deepmnn.inspect.sides.opened import opened
from deepmnn.inspect.sides.options import SideOptions

CHOICES = "mlp.gate.top_k"


def choices(
    name: str, quant: str | None, samples: list[NDArray[np.int32]]
) -> Iterator[NDArray[np.int32]]:
    """The experts [tokens, top_k] of every routed layer."""
    with opened(name, SideOptions(quant=quant)) as subject:
        for layer in subject.side.layers(samples):
            for value, found in layer.items():
                if value.endswith(CHOICES):
                    yield np.asarray(found)


def main(
    small: Annotated[str, typer.Argument(help="The small model's Hugging Face directory.")],
    wide: Annotated[str, typer.Argument(help="The widened model, converted.")],
    traces: Annotated[Path, typer.Argument(help="Written by bench.memory.routing.")],
    rows: Annotated[int, typer.Option(help="Rows to run.")] = 4,
    tokens: Annotated[int, typer.Option(help="Of each row, the first.")] = 512,
) -> None:
    """Print the share of equal choices, by layer and of all."""
    samples = list(np.load(traces)["ids"][:rows, :tokens].astype(np.int32))
    shares = []
    pairs = zip(choices(small, "fp32", samples), choices(wide, None, samples), strict=True)
    for number, (wanted, found) in enumerate(pairs):
        equal = (wanted[:, :, None] == found[:, None, :]).any(-1)
        shares.append(float(equal.mean()))
        whole = equal.all(-1).mean()
        print(f"layer {number}: {shares[-1]:.1%} of choices, all of {whole:.1%} of tokens")
    print(f"all: {np.mean(shares):.1%}")


if __name__ == "__main__":
    typer.run(main)
