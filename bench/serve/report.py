"""The files of a report: serve.json and serve.md."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from bench.peers.host import Host
from bench.serve.figures import Spread
from bench.serve.rounds import Found, Measured, Plan, Row, title

NOTES = """\
## How to read this

- Each server runs alone, started anew for each table, with one model of random weights in the same
  shape, 4 bits, and the same tokenizer. Every prompt is new. Answers are greedy, and go on behind
  an end token, so that all generate the same number of tokens.
- "Total" is generated tokens by the time from the first request to the last token; "all streams
  running" only counts the time in which every answer has begun and none has ended.
- A token's time is when its event reaches the client. "Between tokens ±" is the standard deviation
  while all streams run.
- "While it is read" is the time between tokens of the running streams from the moment that the long
  prompt is sent to its own first token.
- Prompt lengths are spread evenly on a logarithmic scale.
- The bare engine is `LLM.stream` in a process without a server, on the same prompts.
- Processors: seconds of processor time per second, of the server and of this client."""

Cell = Callable[[Measured], str]


def save(out: Path, plan: Plan, found: Found, facts: Mapping[str, str]) -> None:
    """Writes what is there so far."""
    fields = {
        "host": asdict(Host.now()),
        "facts": dict(facts),
        "versions": found.versions,
        "rows": {
            case: {
                name: made if isinstance(made, str) else asdict(made) for name, made in row.items()
            }
            for case, row in found.rows.items()
        },
    }
    _write(out / "serve.json", json.dumps(fields, indent=1))
    _write(out / "serve.md", page(plan, found, facts))


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}")
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(path)


def page(plan: Plan, found: Found, facts: Mapping[str, str]) -> str:
    """In Markdown."""
    lines = ["# deepmnn serve beside llama-server", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {fact} |" for name, fact in facts.items()]
    lines += ["", "## Servers", ""]
    lines += [f"- {k.title} ({found.versions[k.name]}): {k.settings}" for k in plan.kinds]
    for case in plan.cases:
        row = found.rows.get(case.name)
        if row:
            lines += ["", f"## {case.name[0].upper()}{case.name[1:]}", "", about(case), ""]
            lines += table(row)
    return "\n".join(lines) + f"\n\n{NOTES}"


def about(case: object) -> str:
    """What a case asks for."""
    fields = asdict(case)  # type: ignore[call-overload]
    low, high = fields["low"], fields["high"]
    lengths = f"{low} tokens" if low == high else f"{low} to {high} tokens"
    count = fields.get("requests", fields["clients"])
    return f"{count} prompts of {lengths}, {fields['tokens']} tokens each in answer."


def table(row: Row) -> list[str]:
    """A column for each server that ran, and why the others did not."""
    ran = {name: made for name, made in row.items() if not isinstance(made, str)}
    lines = []
    if ran:
        cells = [["", *map(title, ran)], ["---"] * (1 + len(ran))]
        for name, cell in CELLS:
            texts = [cell(made) for made in ran.values()]
            if any(texts):
                cells.append([name, *texts])
        lines += ["| " + " | ".join(each) + " |" for each in cells]
    failed = {name: made for name, made in row.items() if isinstance(made, str)}
    lines += [""] if failed and ran else []
    lines += [f"- {title(name)}: {reason}" for name, reason in failed.items()]
    return lines


def _ms(value: float) -> str:
    return f"{1e3 * value:.1f}" if value < 1 else f"{1e3 * value:.0f}"


def _spread(spread: Spread | None) -> str:
    return "" if spread is None else f"{_ms(spread.p50)} / {_ms(spread.p99)} / {_ms(spread.most)}"


def _ttft(made: Measured) -> str:
    spread = made.figures.ttft
    return "" if spread is None else f"{spread.p50:.2f} / {spread.p99:.2f}"


def _deviation(made: Measured) -> str:
    spread = made.figures.steps
    return "" if spread is None else f"{_ms(spread.p50)} ± {_ms(spread.deviation)}"


CELLS: tuple[tuple[str, Cell], ...] = (
    ("total, tok/s", lambda made: f"{made.figures.total:.1f}"),
    ("prompts, tok/s", lambda made: f"{made.figures.read:.1f}"),
    (
        "all streams running, tok/s",
        lambda made: "" if made.figures.steady is None else f"{made.figures.steady:.1f}",
    ),
    ("first token p50 / p99, s", _ttft),
    ("between tokens p50 / p99 / max, ms", lambda made: _spread(made.figures.gaps)),
    ("between tokens ±, all streams running, ms", _deviation),
    (
        "before the long prompt p50 / p99 / max, ms",
        lambda made: "" if made.stall is None else _spread(made.stall.quiet),
    ),
    (
        "while it is read p50 / p99 / max, ms",
        lambda made: "" if made.stall is None else _spread(made.stall.during),
    ),
    ("p99 meanwhile / median before", lambda m: "" if m.stall is None else f"{m.stall.ratio:.1f}"),
    ("its first token, s", lambda made: "" if made.stall is None else f"{made.stall.first:.1f}"),
    ("events per token", lambda made: f"{made.events:.2f}" if made.memory else ""),
    (
        "processors: server, client",
        lambda made: f"{made.busy[0]:.2f}, {made.busy[1]:.3f}" if made.memory else "",
    ),
    (
        "memory (own), GB",
        lambda made: (
            f"{made.memory['peak'] / 1e9:.2f} ({made.memory['own'] / 1e9:.2f})"
            if made.memory
            else ""
        ),
    ),
    (
        "failed",
        lambda made: "; ".join(f"{count} × {why}" for why, count in made.failed.items()),
    ),
)
"""Row of a table, and its text for a server; a row without any text is left out."""
