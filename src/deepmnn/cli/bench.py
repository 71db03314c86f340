"""deepmnn bench: speed, and its share of this machine's limits."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from deepmnn.api.options import LoadOptions
from deepmnn.cli import options
from deepmnn.cli.console import out, print_json, table
from deepmnn.cli.progress import status

if TYPE_CHECKING:
    from deepmnn.measure.benchmark import Report, Speed


def bench(
    path: options.OptionalModelPath = None,
    prompt_tokens: Annotated[str, Option(help="Prompt lengths, comma-separated.")] = "128,512",
    new_tokens: Annotated[int, Option(min=1, help="Tokens to decode.")] = 64,
    batch: Annotated[
        str | None, Option(help="Batch sizes, comma-separated; default: 1,4,16, for MNN 1.")
    ] = None,
    repeat: Annotated[int, Option(min=1, help="Timed runs per row.")] = 5,
    as_json: Annotated[bool, Option("--json", help="Print JSON.")] = False,
    *,
    load: Annotated[
        LoadOptions,
        {"cache_tokens": "KV cache rows; default: what the runs need.", "max_sequences": None},
    ],
) -> None:
    """Measure prefill and decode speed."""
    from deepmnn.measure.benchmark import BATCHES, benchmark

    prompts = _counts(prompt_tokens, "prompt-tokens")
    batches = None if batch is None else _counts(batch, "batch")
    rows = max(batches or BATCHES) * (max(prompts) + new_tokens + 32)
    location = path or options.bundled()
    model = options.open_model(location, replace(load, cache_tokens=load.cache_tokens or rows))
    with status("measuring") as progress:
        report = benchmark(model, prompts, new_tokens, batches, repeat, progress)
    if as_json:
        print_json(asdict(report), indent=2)
        return
    _print(report, str(location))
    out.print(
        "int8 and memory: shares of these limits; busy: share of the threads' time; "
        f"{new_tokens} new tokens; mean ± standard deviation of {repeat} runs",
        style="dim",
        soft_wrap=True,
    )


def _print(report: Report, location: str) -> None:
    columns = ("prefill tok/s", "int8", "busy", "decode tok/s", "memory", "int8", "busy")
    made = table("", "prompts", *columns)  # 80 columns wide
    for row in report.rows:
        made.add_row(
            f"{row.batch} × {row.prompt_tokens}",
            _speed(row.prefill),
            _share(row.prefill_macs_share),
            _share(row.prefill_busy),
            _speed(row.decode),
            _share(row.decode_bandwidth_share),
            _share(row.decode_macs_share),
            _share(row.decode_busy),
        )
    out.say(location, "bold")
    out.print(made)
    if report.machine:
        machine = report.machine
        out.print(
            f"this machine: {machine.threads} threads, {machine.isa}, reads "
            f"{machine.read_bandwidth / 1e9:.1f} GB/s, multiplies "
            f"{machine.int8_macs / 1e9:.0f} G int8 MAC/s",
            soft_wrap=True,
        )


def _speed(speed: Speed) -> str:
    digits = 0 if speed.mean >= 100 else 1
    return f"{speed.mean:.{digits}f} ± {speed.sd:.{digits}f}"


def _counts(text: str, flag: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise typer.BadParameter(f"--{flag} is {text!r}, expected counts such as 1,4,16")
    return counts


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
