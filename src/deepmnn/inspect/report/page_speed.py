"""Speed beside this machine's limits, and memory by the length of the context."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from deepmnn.conversion.report import charts, pieces
from deepmnn.conversion.report.charts import Bar, Line, Mark
from deepmnn.inspect.report.findings import Findings
from deepmnn.inspect.report.memory import Need, by_context
from deepmnn.inspect.report.subject import Subject
from deepmnn.measure.benchmark import Machine, Row, Speed
from deepmnn.source.sizes import file_size


def figures(found: Findings) -> list[tuple[str, str]]:
    """For the head of the page."""
    if found.speeds is None or not found.speeds.rows:
        return []
    row = found.speeds.rows[0]
    return [
        (f"{speed.mean:,.{0 if speed.mean >= 100 else 1}f}", f"tokens per second, {phase}")
        for phase, speed in (("prefill", row.prefill), ("decode", row.decode))
    ]


def speed(found: Findings) -> str:
    """Prefill and decode."""
    if found.speeds is None:
        words = "Not measured: it was left out, or there are no weights to run."
        return pieces.section("Speed", words, "")
    rows = found.speeds.rows
    columns = ("prompts", "prefill tok/s", "of int8", "decode tok/s", "of memory", "of int8")
    cells = [
        (
            f"{row.batch} × {row.prompt_tokens}",
            _speed(row.prefill),
            _share(row.prefill_macs_share),
            _speed(row.decode),
            _share(row.decode_bandwidth_share),
            _share(row.decode_macs_share),
        )
        for row in rows
    ]
    machine = found.speeds.machine
    words = (
        f"Random prompts, then {rows[0].new_tokens} new tokens each; mean ± standard deviation. "
        + (_limits(machine) if machine else "The limits of this machine are not known here.")
    )
    body = pieces.table(columns, cells)
    return pieces.section("Speed", words, (_shares(rows) if machine else "") + body)


def _limits(machine: Machine) -> str:
    return (
        f"This machine, with {machine.threads} threads and {machine.isa}, reads "
        f"{machine.read_bandwidth / 1e9:.1f} GB/s and multiplies {machine.int8_macs / 1e9:.0f} G "
        "int8 MAC/s; shares are of these."
    )


def _shares(rows: Sequence[Row]) -> str:
    """What share of its limit each phase reaches; decode has two, and the higher one binds."""
    bars = []
    for row in rows:
        name = f"{row.batch} × {row.prompt_tokens}"
        for phase, share, limit, style in (
            ("prefill", row.prefill_macs_share, "int8 multiplications", "c0"),
            ("decode", row.decode_bandwidth_share, "memory", "c1"),
            ("decode", row.decode_macs_share, "int8 multiplications", "c0"),
        ):
            if share is not None:
                said = f"{name}: {phase} reaches {share:.1%} of what {limit} allow"
                bars.append((f"{phase} {name}", [Bar(style, share, said)]))
    drawn = charts.row_bars(bars, pieces.percent, "Shares of this machine's limits", charts.WIDE)
    key = pieces.key([("of int8 multiplications", "c0"), ("of memory bandwidth", "c1")])
    return f'<div class="wide">{pieces.card("Shares of the limits", drawn, "", key)}</div>'


def _speed(found: Speed) -> str:
    digits = 0 if found.mean >= 100 else 1
    return f"{found.mean:,.{digits}f} ± {found.sd:,.{digits}f}"


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def memory(subject: Subject, found: Findings) -> str:
    """What one sequence takes."""
    needs = by_context(subject)
    kinds = list(needs[0].caches)
    parts = {f"KV cache in {name}": [need.caches[name] for need in needs] for name in kinds}
    if needs[0].activations is not None:
        parts["activations"] = [need.activations or 0 for need in needs]
    parts["weights"] = [need.weights for need in needs]
    parts[f"all, KV cache in {kinds[0]}"] = [need.total(kinds[0]) for need in needs]
    lines = [
        Line(f"c{index}", _points(needs, sizes), _at_context(name))
        for index, (name, sizes) in enumerate(parts.items())
    ]
    size = found.memory
    marks = [Mark(float(size), f"this machine, {file_size(size)}")] if size else []
    drawn = charts.growth(
        lines,
        marks,
        "Memory by context length",
        (lambda context: pieces.tokens(int(context)), pieces.short_size),
        ("tokens of context", ""),
    )
    key = pieces.key((name, f"c{index}") for index, name in enumerate(parts))
    body = f'<div class="wide">{pieces.card("", drawn, "", key)}</div>{_table(needs, kinds)}'
    return pieces.section("Memory by context length", _words(needs[0]), body)


def _points(needs: Sequence[Need], sizes: Sequence[int]) -> list[tuple[int, float]]:
    return [(need.context, float(size)) for need, size in zip(needs, sizes, strict=True)]


def _at_context(name: str) -> Callable[[int, float], str]:
    return lambda context, size: f"{name}, {context:,} tokens: {file_size(size)}"


def _words(need: Need) -> str:
    words = "One sequence: weights, its KV cache, and the activations of a step of 512 tokens."
    if need.activations is None:
        words = "One sequence: weights and its KV cache. MNN plans its activations itself."
    return f"{words} Weights are mapped: those that are not read need not be in memory."


def _table(needs: Sequence[Need], kinds: Sequence[str]) -> str:
    known = needs[0].activations is not None
    columns = (
        "context",
        "weights",
        *(f"cache, {name}" for name in kinds),
        *(["activations"] if known else []),
        f"all, {kinds[0]}",
    )
    rows = [
        (
            f"{need.context:,}",
            file_size(need.weights),
            *(file_size(need.caches[name]) for name in kinds),
            *([file_size(need.activations)] if need.activations is not None else []),
            file_size(need.total(kinds[0])),
        )
        for need in needs
    ]
    return pieces.table(columns, rows)
