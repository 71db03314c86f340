"""The report in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.peers.engine import Case, engine
from bench.peers.host import Host
from bench.peers.limits import Machine
from bench.peers.results import OURS, Column, Speed, best_peer, cost_ratio, leanest_peer, ratio

NOTES = """\
## How to read this

- Every model has random weights of 4 bits, in the shape that its section is named after.
- Prefill and decode are in tokens per second: the median of the rounds, then the slowest and the
  fastest round where they differ, and in brackets the share of this machine's limit. **Bold** marks
  the fastest engine. "Decode at 128" continues a prompt of 128 tokens; "batch 4" runs 4 sequences
  together.
- The limit follows from the longer of two times: reading the 4-bit weights and the cache that a
  step needs at the machine's read bandwidth, and its multiply-accumulates at the int8 peak.
- A step is one token of every sequence; ± is the standard deviation of its time within a round.
- "Load" is the time to the first logits, with the files in the page cache. "Cold first token" is
  the time to the logits of a prompt of 8 tokens, with none of them there; "disk" is the time to
  read the files once without any engine. The host of a virtual machine may still hold them in its
  memory.
- Memory is the peak of the process, mapped files included; in brackets, the part that is its own.
- deepmnn / best peer: above 1 is better for speeds, below 1 for seconds and bytes."""


def report(
    title: str,
    facts: Mapping[str, str],
    columns: Mapping[str, Sequence[Column]],
    cases: Sequence[Case],
    limits: Mapping[str, Mapping[str, float]],
    versions: Mapping[str, str | None],
) -> str:
    """The whole page. limits: shape → case → tokens per second."""
    lines = [f"# {title}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {fact} |" for name, fact in facts.items()]
    lines += ["", "## Engines", ""]
    for name, version in versions.items():
        runs = engine(name)
        about = f"({version}): {runs.SETTINGS}" if version else ": missing, see bench/README.md"
        lines.append(f"- {runs.TITLE} {about}".replace(" :", ":"))
    for shape, made in columns.items():
        lines += ["", f"## {shape}", "", *table(made, cases, limits[shape])]
        failed = [column for column in made if column.failure]
        lines += [""] if failed else []
        lines += [f"- {engine(column.engine).TITLE}: {column.failure}" for column in failed]
    return "\n".join(lines) + f"\n\n{NOTES}"


def machine_facts(host: Host, machine: Machine) -> dict[str, str]:
    """What a reader must know about the machine."""
    peaks = f"{machine.int8_macs / 1e9:.0f} G int8"
    if machine.f32_macs:
        peaks += f" and {machine.f32_macs / 1e9:.0f} G f32"
    features = f" ({', '.join(host.features)})" if host.features else ""
    return {
        "date": host.date,
        "processor": f"{host.processor}{features}",
        "cores": f"{host.cores}, hardware threads: {host.hardware_threads}",
        "memory": f"{host.memory_nbytes / 1e9:.1f} GB",
        "system": host.system,
        "limits": f"reads {machine.read_bandwidth / 1e9:.1f} GB/s, {peaks} multiply-accumulates/s",
    }


def table(
    columns: Sequence[Column], cases: Sequence[Case], limits: Mapping[str, float]
) -> list[str]:
    """The table of one shape: a row for each case, a column for each engine that ran."""
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
    for title, figure, cell in COST_ROWS:
        cells = [cell(column) for column in ran]
        rows.append([title, *cells, _cost_ratio(ran, figure), ""])
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


def _cost_ratio(columns: Sequence[Column], figure: str) -> str:
    found, best = cost_ratio(columns, OURS, figure), leanest_peer(columns, figure)
    return f"{found:.2f} × {engine(best.engine).TITLE}" if found is not None and best else ""


def _load(column: Column) -> str:
    return "" if column.load_seconds is None else _seconds(column.load_seconds)


def _cold(column: Column) -> str:
    if column.cold_seconds is None:
        return column.cold_missing
    disk = "" if column.disk_seconds is None else f" (disk {_seconds(column.disk_seconds)})"
    return f"{_seconds(column.cold_seconds)}{disk}"


def _seconds(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _memory(column: Column) -> str:
    if column.peak_nbytes is None or column.own_nbytes is None:
        return ""
    return f"{column.peak_nbytes / 1e9:.1f} ({column.own_nbytes / 1e9:.1f})"


COST_ROWS = (
    ("load, s", "load_seconds", _load),
    ("cold first token, s", "cold_seconds", _cold),
    ("memory (own), GB", "peak_nbytes", _memory),
)
"""Title, figure of COSTS, and how to print it for an engine."""
