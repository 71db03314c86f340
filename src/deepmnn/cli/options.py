"""Flags that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from deepmnn.cli.console import ConvertProgress, byte_progress

if TYPE_CHECKING:
    from deepmnn.api import LLM
    from deepmnn.engine.sampler import SamplingParams

ModelPath = Annotated[Path, Argument(metavar="PATH", help="A converted model.")]
OptionalModelPath = Annotated[
    Path | None, Argument(metavar="[PATH]", help="A converted model; default: the bundled tiny-r1.")
]
Backend = Annotated[str, Option(help="cpu, or reference (numpy, slow).")]
Threads = Annotated[int | None, Option(min=1, help="Worker threads; default: one for each core.")]
KvDtype = Annotated[str, Option(help="KV cache: f32 or bf16.")]
CacheTokens = Annotated[
    int | None, Option(min=1, help="KV cache rows; default: four contexts, at most 1 GiB.")
]
Temperature = Annotated[float | None, Option(help="0 is greedy; default: the model's own.")]
TopK = Annotated[int | None, Option(help="Keep the k most likely tokens.")]
TopP = Annotated[float | None, Option(help="Keep the most likely tokens up to this mass.")]
MinP = Annotated[float | None, Option(help="Drop tokens below this share of the best.")]
Seed = Annotated[int | None, Option(help="Makes sampling reproducible.")]
MaxTokens = Annotated[int | None, Option(help="Longest answer; default: what the context holds.")]


def sampling(model: LLM, **flags: float | int | tuple[str, ...] | None) -> SamplingParams:
    """The model's recommended parameters with the given flags on top. Raises RequestError."""
    from dataclasses import replace

    given = {name: value for name, value in flags.items() if value is not None}
    return replace(model.generation_config.params, **given)  # type: ignore[arg-type]


def bundled(quant: str = "w8") -> Path:
    """The bundled model, converted at first use with a progress bar."""
    from deepmnn.bundled import bundled_model

    with byte_progress("converting tiny-r1") as progress:
        return bundled_model(quant, ConvertProgress(progress))
