"""deepmnn profile: what a model's time and memory go to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.text import Text
from typer import BadParameter, Option

from deepmnn.api.options import LoadOptions
from deepmnn.cli import options
from deepmnn.cli.console import err, out, print_json, table
from deepmnn.cli.progress import work_progress
from deepmnn.cli.whole_file import write_file
from deepmnn.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deepmnn.inspect.profile import Phase, Profile

_THREADS = 16
_MOST = 8
"""Threads, and nodes or layers, that are shown of a phase."""


def profile(
    path: options.OptionalModelPath = None,
    given: Annotated[
        str | None,
        Option(
            "--input",
            metavar="FILE",
            help="The prompt: a file of token ids (.bin: int32, or .npy), a text file, or a text; "
            "default: random ids.",
        ),
    ] = None,
    repeat: Annotated[
        int, Option(min=1, help="Prompts to prefill, and steps to decode; 15 s each at most.")
    ] = 100,
    batch: Annotated[int, Option(min=1, help="Sequences that run together.")] = 1,
    context: Annotated[
        int | None,
        Option(min=1, help="Tokens in the cache when decoding begins; default: the prompt's."),
    ] = None,
    as_json: Annotated[bool, Option("--json", help="Print JSON.")] = False,
    html: Annotated[
        Path | None, Option(metavar="FILE", help="Write a page: flame charts, roofline, tables.")
    ] = None,
    trace: Annotated[
        Path | None,
        Option(metavar="FILE", help="Write a trace for ui.perfetto.dev or chrome://tracing."),
    ] = None,
    overwrite: Annotated[bool, Option(help="Replace an earlier page or trace.")] = False,
    *,
    load: Annotated[LoadOptions, {"cache_tokens": None, "max_sequences": None}],
) -> None:
    """Show what a model's time and memory go to: by op, layer, thread and owner."""
    from deepmnn.inspect.page_file import check_page, write_page
    from deepmnn.inspect.profile import profile as measured
    from deepmnn.inspect.profile.input import prompt
    from deepmnn.inspect.profile.page import page
    from deepmnn.inspect.profile.trace import chrome

    if html is not None and trace is not None and html.resolve() == trace.resolve():
        raise BadParameter("--html and --trace are one file")
    if html is not None:  # what could not be written after a minute is refused now
        check_page(html, overwrite)
    if trace is not None:
        _check_trace(trace, overwrite)
    model = options.open_model(path or options.bundled(), load)
    ids = None if given is None else prompt(model, given)
    with work_progress("profiling") as progress:
        found = measured(
            model,
            ids,
            repeat=repeat,
            batch=batch,
            context=context,
            trace=trace is not None,
            progress=progress,
        )
    if html is not None:
        write_page(html, page(found), overwrite)
    if trace is not None and found.trace is not None:
        made = chrome(found.trace, f"deepmnn {found.model}")
        write_file(trace, json.dumps(made).encode())
    if as_json:
        print_json(found.as_dict(), indent=2)
        return
    _print(found)
    for file in (html, trace):
        if file is not None:
            err.say(f"written: {file}", "dim")
    if found.trace is not None and found.trace.lost:
        err.say(f"the trace had no room for its first {found.trace.lost:,} spans", "yellow")


def _check_trace(path: Path, overwrite: bool) -> None:
    """Raises StorageError unless a trace may be written there."""
    from deepmnn.artifact.target import OVERWRITE
    from deepmnn.inspect.profile.trace import BEGIN

    if not path.resolve().parent.is_dir():
        raise StorageError(f"{path.parent} is no directory", "a directory that exists")
    if not path.exists():
        return
    if not path.is_file() or not path.read_bytes()[: len(BEGIN)] == BEGIN:
        raise StorageError(f"{path} exists and is no trace", "a new file", "Choose another name.")
    if not overwrite:
        raise StorageError(f"{path} exists", "a new file", OVERWRITE)


def _print(found: Profile) -> None:
    from deepmnn.inspect.profile import words

    out.say(
        f"{found.model}: {found.model_type} as {found.recipe}, {found.backend}, "
        f"{found.threads} threads, {found.batch} × {found.prompt_tokens} tokens",
        "bold",
    )
    out.say(words.machine(found))
    out.say(
        "limit: share of that; threads: percent busy, stealing work from another, waiting", "dim"
    )
    for phase in found.phases:
        _print_phase(phase)
    for note in found.notes:
        out.say(f"note: {note}", "dim")


def _print_phase(phase: Phase) -> None:
    from deepmnn.inspect.profile import words

    out.print()
    out.say(f"{phase.name}: {words.headline(phase)}", "bold")
    for title, costs in (
        ("op", [*phase.kinds, phase.whole]),
        ("the nodes that take longest", words.busiest(phase.nodes, _MOST)),
        ("the layers that take longest", words.busiest(phase.layers, _MOST)),
    ):
        if costs:
            out.say(_line([*words.COST_COLUMNS, "busy/steal/wait"], title), "dim")
        for cost in costs:
            threads = "/".join(cell.rstrip("%") for cell in words.thread_cells(cost))
            out.say(_line([*words.cost_cells(cost), threads], _short(cost.name)))
    _print_streaming(phase)
    out.say(f"{'time':>7} {'a step':>9}  beside the ops", "dim")
    for name, share, time, meaning in words.part_rows(phase):
        out.say(f"{share:>7} {time:>9}  {name}: {meaning}")
    if len(phase.threads) > 1:
        for name, *shares in words.thread_rows(phase)[:_THREADS]:
            said = zip(shares, words.THREAD_COLUMNS, strict=True)
            out.say(f"{name}: {', '.join(f'{share} {what}' for share, what in said)}")
    made = table("", *words.MEMORY_COLUMNS)
    for owner in phase.memory:
        made.add_row(*map(Text, words.memory_cells(owner)))
    out.print(made)
    out.say(words.rss_words(phase))
    out.say(words.system_words(phase))


def _print_streaming(phase: Phase) -> None:
    from deepmnn.inspect.profile import words

    found = phase.streaming
    if found is None:
        return
    for line in words.streaming_words(found):
        out.say(line)
    made = table("layers that wait longest", "layer", *words.LAYER_COLUMNS)
    for layer in sorted(found.layers, key=lambda layer: -layer.waiting)[:_MOST]:
        cells = words.layer_cells(layer, found.steps)
        made.add_row(*map(Text, [words.layer_name(layer), *cells]))
    out.print(made)


_WIDTHS = (7, 7, 6, 5, 5, 7, 5, 7, 9)
"""Of the columns of costs, and of the threads' shares."""


def _line(cells: Sequence[str], name: str) -> str:
    narrow = {"µs a call": "µs/call", "busy/steal/wait": "threads"}
    figures = (f"{narrow.get(c, c):>{w}}" for c, w in zip(cells, _WIDTHS, strict=True))
    return f"{' '.join(figures)}  {name}"


def _short(name: str) -> str:
    """As much of its end as a terminal has room for."""
    room = max(16, out.width - sum(_WIDTHS) - len(_WIDTHS) - 1)
    return name if len(name) <= room or not out.is_terminal else f"…{name[1 - room :]}"
