"""A profile as one page that needs nothing else: flame charts, roofline, tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files

from deepmnn.conversion.report import pieces
from deepmnn.conversion.report.svg import escaped
from deepmnn.inspect.profile import charts, words
from deepmnn.inspect.profile.result import Cost, Phase, Profile
from deepmnn.source.sizes import file_size

_NODES = 20
"""In a table of the busiest."""


def page(found: Profile) -> str:
    """The page, the same for the same profile."""
    from deepmnn import __version__

    title = f"{found.model}: where time and memory go"
    style = charts.styles(found.phases)
    body = _head(found, title) + _roofline(found, style)
    body += "".join(_phase(phase, style) for phase in found.phases)
    body += pieces.section("What is not told", "", _notes(found.notes))
    css = (files("deepmnn.inspect.profile") / "page.css").read_text(encoding="utf-8")
    return pieces.document(title, body, f"deepmnn {escaped(__version__)}", css)


def _head(found: Profile, title: str) -> str:
    figures = [
        (f"{words.three_digits(phase.tokens_per_second)}", f"tokens per second, {phase.name}")
        for phase in found.phases
    ]
    peak = max(phase.peak_rss for phase in found.phases)
    figures += [
        (pieces.count(found.parameters), f"parameters as {found.recipe}"),
        (f"{found.batch} × {found.prompt_tokens}", "prompts and their tokens"),
        (str(found.threads), "threads"),
    ]
    if peak:
        figures.append((file_size(peak), "of memory at most"))
    backend = {"cpu": "deepmnn's engine", "mnn": "MNN", "reference": "numpy"}[found.backend]
    said = f"{found.model_type} on {backend}, KV cache in {found.kv_dtype}; {words.machine(found)}."
    return pieces.head(title, said, figures)


def _roofline(found: Profile, style: Mapping[str, str]) -> str:
    if found.machine is None or not any(phase.kinds for phase in found.phases):
        return ""
    points = [point for phase in found.phases for point in charts.points(phase, style)]
    drawn = charts.roofline(points, found.machine)
    key = pieces.key((op, colour) for op, colour in _coloured(style))
    said = (
        "Full points are prefill, hollow ones decode. Under the slope memory binds, under a flat "
        "line the arithmetic does; a point above the slope reads what caches hold."
    )
    return pieces.section("Roofline", said, f'<div class="card roofline">{drawn}{key}</div>')


def _coloured(style: Mapping[str, str]) -> list[tuple[str, str]]:
    own = [(op, colour) for op, colour in style.items() if colour != f"c{charts.STYLES}"]
    return own + ([("other ops", f"c{charts.STYLES}")] if len(own) < len(style) else [])


def _phase(phase: Phase, style: Mapping[str, str]) -> str:
    drawn = charts.flame(charts.blocks(phase, style), f"Where the time of {phase.name} goes")
    body = f'<div class="card wide">{drawn}{pieces.key(_coloured(style))}</div>'
    columns = (*words.COST_COLUMNS, *words.THREAD_COLUMNS)
    if phase.kinds:
        rows = [_row(kind) for kind in (*phase.kinds, phase.whole)]
        body += _titled("By op", pieces.table(("op", *columns), rows, {len(rows) - 1: "total"}))
        nodes = [_row(node) for node in words.busiest(phase.nodes, _NODES)]
        body += _titled("The nodes that take longest", pieces.table(("node", *columns), nodes))
        layers = [_row(layer) for layer in phase.layers]
        body += _folded("By layer", pieces.table(("layer", *columns), layers))
    else:
        body += _titled("In all", pieces.table(("", *columns), [_row(phase.whole)]))
    body += _streaming(phase)
    said = [(f"{name}: {what}", *cells) for name, *cells, what in words.part_rows(phase)]
    parts = pieces.table(("part", "time", "a step"), said)
    body += _titled("Beside the ops", parts)
    if len(phase.threads) > 1:
        threads = pieces.table(("thread", *words.THREAD_COLUMNS), words.thread_rows(phase))
        body += _titled("Threads", threads)
    owners = [words.memory_cells(owner) for owner in phase.memory]
    memory = pieces.table(words.MEMORY_COLUMNS, owners)
    body += _titled("Memory by owner", memory)
    body += f"<p>{escaped(words.rss_words(phase))}; {escaped(words.system_words(phase))}.</p>"
    return pieces.section(phase.name.capitalize(), words.headline(phase), body)


def _streaming(phase: Phase) -> str:
    found = phase.streaming
    if found is None:
        return ""
    said = "".join(f"<p>{escaped(line)}</p>" for line in words.streaming_words(found))
    rows = [
        [words.layer_name(layer), *words.layer_cells(layer, found.steps)] for layer in found.layers
    ]
    layers = pieces.table(("layer", *words.LAYER_COLUMNS), rows)
    return _titled("Read from the disk", said) + _folded("Reads by layer", layers)


def _row(cost: Cost) -> list[str]:
    return [cost.name, *words.cost_cells(cost), *words.thread_cells(cost)]


def _titled(title: str, body: str) -> str:
    return f'<h3 class="above">{escaped(title)}</h3>{body}'


def _folded(title: str, body: str) -> str:
    return f"<details><summary>{escaped(title)}</summary>{body}</details>"


def _notes(notes: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escaped(note)}</li>' for note in notes)}</ul>" if notes else ""
