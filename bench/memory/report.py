"""The files of a report: memory.json and memory.md."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

from bench.memory.engines import Engine
from bench.memory.planner import hit_rate
from bench.memory.rounds import Found, Plan, limit_name, raw
from bench.memory.run import Measured
from bench.peers.host import Host

OURS = "deepmnn"
GIB = 1 << 30

NOTES = """\
## How to read this

- Each run is a process of its own in a control group with the limit, page cache included, without
  swap. The model's files are dropped from the page cache before it. "Killed" is the kernel's word.
- One prompt, then steps of one token. BigMoeOnEdge takes no tokens: it draws its own where they are
  random words, else it is greedy. Tokens per second are medians of the rounds; **bold** marks the
  fastest.
- "Read" is what the process took from the disk, page faults included, as the kernel counts it.
- "Disk, GB/s": direct reads of 4 MiB, three at a time, just before and just after the run; the
  better counts. Under it, the share of it that the phase read.
- "Major faults" waited for the disk. "Cores busy" is processor time by wall time.
- "Of the bound": what the slower one of disk (bytes read / that bandwidth) and everything else (the
  time without waiting for the disk) takes, as a share of the time.
- "Same bits": the logits of the prompt's last token and of the first steps are those of the same
  engine without a limit."""

Cell = Callable[[Sequence[Measured]], str]


def save(out: Path, plan: Plan, found: Found, facts: Mapping[str, str]) -> None:
    """Writes what is there so far."""
    fields = {
        "host": asdict(Host.now()),
        "facts": dict(facts),
        "versions": found.versions,
        "rows": raw(found),
        "expected": {str(limit): asdict(each) for limit, each in found.expected.items()},
    }
    _write(out / "memory.json", json.dumps(fields, indent=1))
    _write(out / "memory.md", page(plan, found, facts))


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}")
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(path)


def page(plan: Plan, found: Found, facts: Mapping[str, str]) -> str:
    """In Markdown."""
    lines = ["# More model than memory", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {fact} |" for name, fact in facts.items()]
    lines += ["", "## Engines", ""]
    for engine in plan.engines:
        extra = " ".join(plan.extra.get(engine.name, ()))
        more = f", and `{extra}`" if extra else ""
        version = found.versions.get(engine.name, "")
        lines.append(f"- {engine.title} ({version}): {engine.settings}{more}")
    for limit in sorted(found.rows, key=lambda each: each or math.inf):
        lines += ["", f"## {limit_name(limit)[0].upper()}{limit_name(limit)[1:]}", ""]
        lines += table(plan.engines, found.rows[limit])
    lines += expectations(found)
    return "\n".join(lines) + f"\n\n{NOTES}"


def expectations(found: Found) -> list[str]:
    """A row for each limit: what the planner said, by what was measured."""
    head = ["", "prefill, tok/s", "planned", "decode, tok/s", "planned", "hits", "planned"]
    head.append("decode, planned with the hits of the run")
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for limit, said in sorted(found.expected.items(), key=lambda each: each[0] or math.inf):
        runs = found.rows[limit].get(OURS, ())
        prefill, decode, hits = rate(runs, "prefill"), rate(runs, "decode"), hit_rate(runs)
        cells = [limit_name(limit)]
        for measured, planned in ((prefill, said.prefill), (decode, said.decode)):
            cells += [_figure(measured), _beside(planned, measured)]
        cells += ["" if hits is None else f"{hits:.0%}", f"{said.hit_rate:.0%}"]
        lines.append("| " + " | ".join([*cells, _beside(said.given, decode)]) + " |")
    return ["", "## The planner", "", *lines] if found.expected else []


def _figure(figure: float | None) -> str:
    return "" if figure is None else f"{figure:.3g}"


def _beside(planned: float, measured: float | None) -> str:
    return f"{planned:.3g} ({planned / measured - 1:+.0%})" if measured else f"{planned:.3g}"


def table(engines: Sequence[Engine], row: Mapping[str, Sequence[Measured]]) -> list[str]:
    """A column for each engine, and why a run did not finish."""
    ran = [engine for engine in engines if engine.name in row]
    head = ["", *(engine.title for engine in ran), "deepmnn / best peer"]
    cells = [head, ["---"] * len(head)]
    for phase in ("prefill", "decode"):
        cells.append([f"{phase}, tok/s", *_rates(ran, row, phase), _ratio(row, phase)])
    for name, cell in CELLS:
        texts = [cell(row[engine.name]) for engine in ran]
        if any(texts):
            cells.append([name, *texts, ""])
    lines = ["| " + " | ".join(each) + " |" for each in cells]
    for engine in ran:
        failures = dict.fromkeys(each.failure for each in row[engine.name] if each.failure)
        lines += [f"\n- {engine.title}: {failure}" for failure in failures]
    return lines


def _rates(
    engines: Sequence[Engine], row: Mapping[str, Sequence[Measured]], phase: str
) -> list[str]:
    rates = [rate(row[engine.name], phase) for engine in engines]
    best = max((each for each in rates if each), default=0.0)
    texts = ["" if each is None else f"{each:.3g}" for each in rates]
    return [
        f"**{text}**" if each and each == best else text
        for each, text in zip(rates, texts, strict=True)
    ]


def rate(runs: Sequence[Measured], phase: str) -> float | None:
    """Tokens per second, the median of the runs that finished the phase."""
    rates = [run.phases[phase].rate for run in runs if phase in run.phases]
    return median(rates) if rates else None


def _ratio(row: Mapping[str, Sequence[Measured]], phase: str) -> str:
    ours = rate(row.get(OURS, ()), phase)
    peers = [found for name in row if name != OURS and (found := rate(row[name], phase))]
    return f"{ours / max(peers):.2f} ×" if ours and peers else ""


def _of(phase: str, figure: Callable[[Measured], float], form: str) -> Cell:
    """The median of a figure of the runs that finished a phase."""

    def cell(runs: Sequence[Measured]) -> str:
        figures = [figure(run) for run in runs if phase in run.phases]
        return form.format(median(figures)) if figures else ""

    return cell


def _share(phase: str) -> Callable[[Measured], float]:
    def share(run: Measured) -> float:
        found = run.phases[phase]
        return found.read_nbytes / found.seconds / run.disk if run.disk else 0.0

    return share


def _of_bound(phase: str) -> Callable[[Measured], float]:
    def share(run: Measured) -> float:
        found, waited = run.phases[phase], run.own[phase]["wait_seconds"]
        disk = found.read_nbytes / run.disk if run.disk else 0.0
        return max(disk, found.seconds - waited) / found.seconds

    return share


def _of_streamed(phase: str, figure: Callable[[Measured], float], form: str) -> Cell:
    """As `_of`, of runs that tell how long they waited for the disk."""
    cell = _of(phase, figure, form)
    return lambda runs: cell([run for run in runs if "wait_seconds" in (run.own.get(phase) or {})])


def _bits(runs: Sequence[Measured]) -> str:
    known = [run.same_bits for run in runs if run.same_bits is not None]
    return ("yes" if all(known) else "no") if known else ""


CELLS: tuple[tuple[str, Cell], ...] = (
    ("steps", _of("decode", lambda run: run.phases["decode"].tokens, "{:.0f}")),
    ("load, s", _of("load", lambda run: run.phases["load"].seconds, "{:.1f}")),
    (
        "read to load, GB",
        _of("load", lambda run: run.phases["load"].read_nbytes / 1e9, "{:.2f}"),
    ),
    (
        "read in prefill, GB",
        _of("prefill", lambda run: run.phases["prefill"].read_nbytes / 1e9, "{:.2f}"),
    ),
    (
        "disk, GB/s",
        lambda runs: f"{median(run.disk for run in runs) / 1e9:.2f}" if runs[0].disk else "",
    ),
    ("disk in prefill", _of("prefill", _share("prefill"), "{:.0%}")),
    ("of the bound, prefill", _of_streamed("prefill", _of_bound("prefill"), "{:.0%}")),
    (
        "read per decoded token, MB",
        _of(
            "decode",
            lambda run: run.phases["decode"].read_nbytes / run.phases["decode"].tokens / 1e6,
            "{:.1f}",
        ),
    ),
    ("disk in decode", _of("decode", _share("decode"), "{:.0%}")),
    ("of the bound, decode", _of_streamed("decode", _of_bound("decode"), "{:.0%}")),
    (
        "cores busy in decode",
        _of(
            "decode",
            lambda run: run.phases["decode"].cpu_seconds / run.phases["decode"].seconds,
            "{:.2f}",
        ),
    ),
    (
        "major faults per decoded token",
        _of(
            "decode",
            lambda run: run.phases["decode"].major / run.phases["decode"].tokens,
            "{:.0f}",
        ),
    ),
    (
        "different tokens in the answer",
        lambda runs: str(runs[-1].distinct) if runs and runs[-1].distinct else "",
    ),
    (
        "most held, GiB",
        lambda runs: (
            f"{max(run.peak_nbytes for run in runs) / GIB:.2f}"
            if any(run.peak_nbytes for run in runs)
            else ""
        ),
    ),
    ("same bits", _bits),
)
"""Row of a table, and its text for the runs of an engine; a row without any text is left out."""
