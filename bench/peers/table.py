"""The report in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.peers.engine import Case, engine
from bench.peers.limits import Machine
from bench.peers.results import OURS, Column, Speed, best_peer, ratio

ABOUT = """\
Tokens per second: the median of the rounds, and in brackets the share of this machine's limit for
a 4-bit model; **bold** is the fastest. A step is one token of every sequence; ± is the standard
deviation of its time inside a round. Load is the time to the first logits, files being in the page
cache; memory is the process's peak, mapped files included, and what of it is its own.
"""


def report(
    title: str,
    columns: Mapping[str, Sequence[Column]],
    cases: Sequence[Case],
    limits: Mapping[str, Mapping[str, float]],
    versions: Mapping[str, str | None],
    machine: Machine,
) -> str:
    """The whole page: shape → its columns, shape → case → limit in tokens per second."""
    lines = [f"# {title}", "", ABOUT]
    lines += [
        f"This machine reads {machine.read_bandwidth / 1e9:.1f} GB/s and multiplies "
        f"{machine.int8_macs / 1e9:.0f} G int8 MAC/s.",
        "",
    ]
    for name, version in versions.items():
        runs = engine(name)
        about = f"({version}): {runs.SETTINGS}" if version else ": missing, see bench/README.md"
        lines.append(f"- {runs.TITLE} {about}".replace(" :", ":"))
    for shape, made in columns.items():
        lines += ["", f"## {shape}", "", *table(made, cases, limits[shape])]
        failed = [column for column in made if column.failure]
        lines += [""] if failed else []
        lines += [f"- {engine(column.engine).TITLE}: {column.failure}" for column in failed]
    return "\n".join(lines) + "\n"


def table(
    columns: Sequence[Column], cases: Sequence[Case], limits: Mapping[str, float]
) -> list[str]:
    """One shape's lines: a row for each case, a column for each engine that ran."""
    ran = [column for column in columns if column.speeds]
    if not ran:
        return ["Nothing ran."]
    titles = [engine(column.engine).TITLE for column in ran]
    rows = [["tok/s", *titles, "deepmnn / best peer", "limit"]]
    rows.append(["---"] * len(rows[0]))
    for case in cases:
        speeds = [c.speeds[case.name].median for c in ran if case.name in c.speeds]
        fastest = max(speeds, default=0.0)
        cells = [_speed(column, case, limits[case.name], fastest) for column in ran]
        rows.append([case.name, *cells, _ratio(ran, case), number(limits[case.name])])
    for case in (case for case in cases if case.steps):
        cells = [_step(column.speeds.get(case.name)) for column in ran]
        rows.append([f"step, {case.name}, ms", *cells, "", ""])
    rows.append(["load, s", *(_optional(column.load_seconds, 1) for column in ran), "", ""])
    rows.append(["memory (own), GB", *(_memory(column) for column in ran), "", ""])
    return ["| " + " | ".join(row) + " |" for row in rows]


def number(value: float) -> str:
    """Three digits or so."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _speed(column: Column, case: Case, limit: float, fastest: float) -> str:
    found = column.speeds.get(case.name)
    if found is None:
        return column.missing.get(case.name, "")
    text = number(found.median)
    if found.median == fastest:
        text = f"**{text}**"
    spread = f" {number(found.low)}–{number(found.high)}" if found.low < found.high else ""
    return f"{text}{spread} ({found.median / limit:.0%})"


def _ratio(columns: Sequence[Column], case: Case) -> str:
    found, best = ratio(columns, OURS, case), best_peer(columns, case)
    return f"{found:.2f} × {engine(best.engine).TITLE}" if found and best else ""


def _step(speed: Speed | None) -> str:
    if speed is None or speed.step_ms is None:
        return ""
    return f"{speed.step_ms:.1f} ± {speed.step_sd_ms:.1f}"


def _optional(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _memory(column: Column) -> str:
    if column.peak_nbytes is None or column.own_nbytes is None:
        return ""
    return f"{column.peak_nbytes / 1e9:.1f} ({column.own_nbytes / 1e9:.1f})"
