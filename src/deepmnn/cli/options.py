"""Flags that several verbs share."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from deepmnn.cli.console import ConvertProgress, byte_progress, err

if TYPE_CHECKING:
    from deepmnn.api import LLM
    from deepmnn.text.sampling_params import SamplingParams

ModelPath = Annotated[
    Path, Argument(metavar="PATH", help="A converted model, or a folder exported for MNN.")
]
OptionalModelPath = Annotated[
    Path | None,
    Argument(metavar="[PATH]", help="As for chat; default: the bundled tiny-r1."),
]
Backend = Annotated[
    str | None,
    Option(
        help="cpu, mnn, or reference (numpy, slow); default: mnn for its own folders, else cpu."
    ),
]
Memory = Annotated[
    str | None,
    Option(help="MNN: low (int8 activations, quick; the default), normal or high (floats, exact)."),
]
Precision = Annotated[
    str | None,
    Option(help="MNN: low (float16 where the processor can), normal or high (the default)."),
]
Threads = Annotated[int | None, Option(min=1, help="Worker threads; default: one for each core.")]
Numa = Annotated[
    str,
    Option(
        help="Several memory nodes: distribute (over all), isolate (to one) or off; "
        "see docs/numa.md."
    ),
]
KvDtype = Annotated[str, Option(help="KV cache: f32, bf16 or int8.")]
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


def load(
    path: Path,
    backend: str | None,
    threads: int | None,
    kv_dtype: str,
    cache_tokens: int | None,
    memory: str | None,
    precision: str | None,
    numa: str = "off",
) -> LLM:
    """The model; for MNN a converted one is exported at first use, with a progress bar."""
    from dataclasses import replace

    import deepmnn
    from deepmnn.backends.mnn.backend import MnnOptions

    flags = {"memory": memory, "precision": precision}
    given = {name: value for name, value in flags.items() if value is not None}
    mnn = replace(MnnOptions(), **given) if given else None
    load = partial(
        deepmnn.load,
        path,
        backend,
        threads,
        kv_dtype,
        cache_tokens=cache_tokens,
        mnn=mnn,
        numa=numa,
    )
    if backend != "mnn":
        model = load()
        if numa != "off" and getattr(model.backend, "numa", "off") == "off":
            err.print(f"[dim]numa {numa} changes nothing: there is one memory node[/]")
        return model
    with byte_progress("exporting for MNN") as progress:
        return load(progress=ConvertProgress(progress))


def bundled(quant: str = "w8") -> Path:
    """The bundled model, converted at first use with a progress bar."""
    from deepmnn.conversion.bundled import bundled_model

    with byte_progress("converting tiny-r1") as progress:
        return bundled_model(quant, ConvertProgress(progress))
