"""deepmnn plan: a model in a budget of memory, before it is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from rich.table import Table
from typer import Argument, Option

from deepmnn.api.options import LoadOptions
from deepmnn.cli.console import file_size, out, print_json, table
from deepmnn.cli.progress import status
from deepmnn.errors import RequestError, argument
from deepmnn.source.sizes import nbytes

if TYPE_CHECKING:
    from deepmnn.api.memory import Split
    from deepmnn.measure.expected import Speeds, Step
    from deepmnn.measure.planned import Advice, Planned, Subject


def plan(
    name: Annotated[
        str,
        Argument(
            metavar="MODEL",
            help="A converted model, a checkpoint, a config.json, or OWNER/NAME on the hub.",
        ),
    ],
    memory: Annotated[
        str | None, Option(help="The budget, as in 4GiB; default: what the machine has.")
    ] = None,
    context: Annotated[
        int | None,
        Option(min=1, max=2**31 - 1, help="Tokens that the KV cache must hold."),
    ] = None,
    quant: Annotated[
        str | None, Option(help="Of a checkpoint: how to convert it, as for convert; default: w8.")
    ] = None,
    kv_dtype: Annotated[
        str | None, Option(help="KV cache: f32, bf16 or int8; default: what fits.")
    ] = None,
    max_batch_tokens: Annotated[
        int | None, Option(min=1, help="Tokens of one step; default: 512, or what fits.")
    ] = None,
    disk_bandwidth: Annotated[
        str | None,
        Option(help="Bytes a second that the disk gives, as in 7GB/s; default: measured."),
    ] = None,
    threads: Annotated[
        int | None, Option(min=1, help="Worker threads; default: one for each core.")
    ] = None,
    hit_rate: Annotated[
        float | None,
        Option(
            min=0.0,
            max=1.0,
            help="Share of a token's experts found in the cache, as measured; default: as often as "
            "a trained mixture's.",
        ),
    ] = None,
    as_json: Annotated[bool, Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a model needs in a budget of memory, and how fast it will be."""
    from deepmnn.measure.planned import Subject, advice, machine_speeds, planned
    from deepmnn.quant.recipe_file import read_recipe

    options = LoadOptions(
        memory=memory,
        cache_tokens=context,
        kv_dtype=kv_dtype,
        max_batch_tokens=max_batch_tokens,
        threads=threads,
    )
    given = None if disk_bandwidth is None else _bandwidth(disk_bandwidth)
    with status("reading the model") as progress:
        subject = Subject.open(name, None if quant is None else read_recipe(quant))
        progress("the machine's limits")
        speeds = machine_speeds(subject, threads, given)
        progress("planning")
        found = planned(subject, options, speeds, hit_rate)
        others = advice(subject, options, speeds, found, hit_rate)
    if as_json:
        print_json(_as_json(subject, found, speeds, others), indent=2)
        return
    _print(subject, found, speeds, others, hit_rate)


def _bandwidth(text: str) -> int:
    """Bytes a second of "7GB/s". Raises RequestError."""
    found = nbytes(text.strip().removesuffix("/s"), argument("disk_bandwidth"))
    if found < 1:
        raise RequestError(argument("disk_bandwidth", f" is {text!r:.40}"), "more than nothing")
    return found


def _print(
    subject: Subject,
    found: Planned,
    speeds: Speeds,
    others: list[Advice],
    hit_rate: float | None,
) -> None:
    from deepmnn.api.memory import megabytes

    split = found.split
    gib = split.budget / (1 << 30)
    binary = f"{gib:,.0f} GiB" if gib >= 1000 else f"{gib:.3g} GiB"
    out.say(
        f"{subject.name} in {subject.recipe}, memory {binary} ({file_size(split.budget)})", "bold"
    )
    rows = Table(header_style="dim")
    rows.add_column("of the memory", no_wrap=True)
    rows.add_column("bytes", justify="right", no_wrap=True)
    rows.add_column("what")
    for what, size, note in _rows(subject, split):
        rows.add_row(what, file_size(size), note)
    rows.add_row("together", file_size(sum(size for _, size, _ in _rows(subject, split))), "")
    out.print(rows)
    for change in split.changes:
        out.say(f"smaller than usual, to fit: {change}", "yellow")
    out.say(
        f"least memory {megabytes(found.least)}; from {megabytes(split.whole)} on all weights stay "
        "in it"
    )
    if subject.converting:
        out.say(f"to convert it first takes {megabytes(subject.converting)}, and files beside them")
    _print_speed(found, speeds, hit_rate)
    if others:
        made = table("what would help", "instead", "prefill tok/s", "decode tok/s")
        rates = (found.prefill.tokens_per_second, found.decode.tokens_per_second)
        made.add_row("(as planned)", *map(_rate, rates))
        for each in others:
            made.add_row(each.what, _rate(each.prefill), _rate(each.decode))
        out.print(made)


def _rows(subject: Subject, split: Split) -> list[tuple[str, int, str]]:
    """(what, bytes, note) of everything that a budget is split into."""
    weights, layers = split.weights, subject.workload.experts
    if weights.mapped:
        rows = [("weights", weights.total_nbytes, "all of them")]
    else:
        rows = [("weights that stay", weights.resident_nbytes, "which every token uses")]
        if layers:
            every = sum(layer.experts for layer in layers)
            size = weights.expert_nbytes / every
            cached = int(weights.cache_nbytes / size)
            note = f"{cached:,} of {every:,} experts of {file_size(size)}, "
            note += f"{cached / len(layers):.1f} of {layers[0].experts} a layer"
            rows.append(("cache of experts", weights.cache_nbytes, note))
        if weights.streamed_nbytes:
            note = f"for {file_size(weights.streamed_nbytes)} that each step reads again"
            rows.append(("read ahead", weights.ring_nbytes, note))
        if weights.table_nbytes:
            rows.append(("embedding rows", weights.table_nbytes, "read when they are needed"))
    sizes, step = split.sizes, split.step
    rows.append(("KV cache", split.kv, f"{sizes.cache_tokens:,} tokens in {sizes.kv_dtype}"))
    note = f"{sizes.max_batch_tokens} tokens: activations {file_size(step.activations)}, "
    note += f"work {file_size(step.working + step.quantised)}"
    rows.append(("a step", step.nbytes, note))
    rows.append(
        ("Python and the rest", split.base, "libraries, tokenizer, templates, grammars, growth")
    )
    return rows


def _print_speed(found: Planned, speeds: Speeds, hit_rate: float | None) -> None:
    out.say(
        f"this machine: disk {speeds.disk / 1e9:.2f} GB/s in blocks of an expert, memory "
        f"{speeds.memory / 1e9:.1f} GB/s, {speeds.int8_macs / 1e9:.0f} G int8 MAC/s",
        "dim",
    )
    made = table("speed to expect", "", "tok/s", "from disk", "disk s", "compute s", "waits s")
    tokens = found.prefill.tokens
    for what, step in (
        (f"prefill {tokens}, the first", found.first),
        (f"prefill {tokens}, later", found.prefill),
        ("decode, a token", found.decode),
    ):
        made.add_row(
            what,
            _rate(step.tokens_per_second),
            file_size(step.missed),
            *(f"{seconds:.3f}" for seconds in (step.disk, step.compute, step.exposed)),
        )
    out.print(made)
    out.say("a step takes the longer of disk and compute, and what it waits", "dim")
    if not found.split.weights.mapped and found.split.weights.expert_nbytes:
        from deepmnn.measure.expected import hit_share

        share = hit_share(found.split.weights) if hit_rate is None else hit_rate
        how = "as with a trained mixture" if hit_rate is None else "as given"
        out.say(f"assumed: {share:.0%} of the experts that a token needs are cached ({how})", "dim")


def _rate(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.1f}" if rate >= 1 else f"{rate:.2f}"


def _as_json(
    subject: Subject, found: Planned, speeds: Speeds, others: list[Advice]
) -> dict[str, Any]:
    split = found.split
    weights = split.weights
    names = ("total", "least", "memory", "resident", "streamed", "ring", "expert", "cache", "table")

    def said(step: Step) -> dict[str, float]:
        return {
            "tokens": step.tokens,
            "tokens_per_second": step.tokens_per_second,
            "missed_nbytes": step.missed,
            "disk_seconds": step.disk,
            "compute_seconds": step.compute,
            "exposed_seconds": step.exposed,
        }

    return {
        "model": subject.name,
        "recipe": subject.recipe,
        "memory_nbytes": split.budget,
        "least_nbytes": found.least,
        "converting_nbytes": subject.converting,
        "whole_nbytes": split.whole,
        "weights": {"mapped": weights.mapped}
        | {f"{name}_nbytes": getattr(weights, f"{name}_nbytes") for name in names},
        "kv_nbytes": split.kv,
        "kv_dtype": split.sizes.kv_dtype,
        "cache_tokens": split.sizes.cache_tokens,
        "max_batch_tokens": split.sizes.max_batch_tokens,
        "step_nbytes": split.step.nbytes,
        "process_nbytes": split.base,
        "changes": list(split.changes),
        "machine": vars(speeds),
        "first_prefill": said(found.first),
        "prefill": said(found.prefill),
        "decode": said(found.decode),
        "advice": [vars(each) for each in others],
    }
