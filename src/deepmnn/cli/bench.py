"""deepmnn bench: speed, and its share of this machine's limits."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from deepmnn.api.options import LoadOptions
from deepmnn.cli import options
from deepmnn.cli.console import err, out, print_json
from deepmnn.cli.progress import status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deepmnn.measure.benchmark import Machine, Row, Speed
    from deepmnn.measure.guessing import Guessing


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
    from deepmnn.measure.guessing import measure_guessing

    prompts = _counts(prompt_tokens, "prompt-tokens")
    batches = None if batch is None else _counts(batch, "batch")
    rows = max(batches or BATCHES) * (max(prompts) + new_tokens + 32)
    machine = _limits(load)
    model = options.open_model(
        path or options.bundled(), replace(load, cache_tokens=load.cache_tokens or rows)
    )
    shown = None if as_json else _print_row
    if shown:
        out.say(path or "tiny-r1", "bold")
        out.say(_line(_COLUMNS), "dim")
    with status("measuring") as progress:
        report = benchmark(model, prompts, new_tokens, batches, repeat, progress, shown, machine)
        guessed = None
        if load.speculate not in (None, "off"):
            progress("guesses")
            guessed = measure_guessing(model, min(prompts), new_tokens, 1, repeat)
    if as_json:
        found = asdict(report) | ({"guessing": asdict(guessed)} if guessed else {})
        print_json(found, indent=2)
        return
    if guessed is not None:
        _print_guessing(guessed)
    if report.machine:
        _print_machine(report.machine)
    out.say(
        "int8 and memory: shares of these limits; busy: share of the threads' time; "
        f"{new_tokens} new tokens; mean ± standard deviation of {repeat} runs",
        "dim",
    )


def _limits(load: LoadOptions) -> Machine | None:
    """The machine's, within a budget: before the model is loaded, if they can be measured in it."""
    from deepmnn import _core
    from deepmnn.api.process_memory import give_back, held_nbytes
    from deepmnn.measure.benchmark import LIMITS_NBYTES, limits

    if load.memory_nbytes is None or held_nbytes() + LIMITS_NBYTES > load.memory_nbytes:
        return None
    found = limits(load.threads or _core.available_cores(), load.isa or _core.isas()[0])
    give_back()
    return found


_COLUMNS = ("prompts", "prefill tok/s", "int8", "busy", "decode tok/s", "memory", "int8", "busy")
_WIDTHS = (-9, 14, 6, 6, 14, 8, 6, 6)
"""Of the columns, 76 characters with the gaps between them; the first is set to the left."""


def _line(cells: Sequence[str]) -> str:
    return " ".join(
        f"{cell:<{-width}}" if width < 0 else f"{cell:>{width}}"
        for cell, width in zip(cells, _WIDTHS, strict=True)
    )


def _print_row(row: Row) -> None:
    """As soon as it is measured, through a pipe too."""
    where = err if out.is_terminal and err.is_terminal else out  # above the spinner, which is err's
    cells = (
        f"{row.batch} × {row.prompt_tokens}",
        _speed(row.prefill),
        _share(row.prefill_macs_share),
        _share(row.prefill_busy),
        _speed(row.decode),
        _share(row.decode_bandwidth_share),
        _share(row.decode_macs_share),
        _share(row.decode_busy),
    )
    where.say(_line(cells))
    where.file.flush()


def _print_guessing(found: Guessing) -> None:
    right = "" if found.acceptance is None else f", {found.acceptance:.0%} of the guesses right"
    out.say(
        f"guessing ahead: {found.guessing:.1f} tok/s, plain {found.plain:.1f} tok/s{right}, "
        f"{found.tokens_per_step:.2f} tokens a step (random prompts, greedy answers)"
    )


def _print_machine(machine: Machine) -> None:
    out.say(
        f"this machine: {machine.threads} threads, {machine.isa}, reads "
        f"{machine.read_bandwidth / 1e9:.1f} GB/s, multiplies "
        f"{machine.int8_macs / 1e9:.0f} G int8 MAC/s"
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
