"""The shares of the machine's limit as a picture; needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.peers.engine import Case, engine
from bench.peers.results import Column
from bench.peers.table import number

COLOURS = ("#1f5fbf", "#c76a00", "#2a8a3e", "#8a3fa0", "#a02c2c", "#6b6b6b")


def is_installed() -> bool:
    """Whether matplotlib is installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def plot(
    path: Path,
    columns: Mapping[str, Sequence[Column]],
    cases: Sequence[Case],
    limits: Mapping[str, Mapping[str, float]],
) -> None:
    """Bars of each engine's share of the limit, labelled in tok/s; one chart for each shape."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 + 1.6 * len(cases), 3.6 * len(columns)), layout="constrained")
    charts = figure.subplots(len(columns), 1, squeeze=False)[:, 0]
    colours = dict[str, str]()
    for chart, (shape, made) in zip(charts, columns.items(), strict=True):
        ran = [column for column in made if column.speeds]
        width = 0.85 / max(1, len(ran))
        for index, column in enumerate(ran):
            title = engine(column.engine).TITLE
            label = "" if title in colours else title  # one entry in the legend
            colour = colours.setdefault(title, COLOURS[len(colours) % len(COLOURS)])
            shown = [(x, case.name) for x, case in enumerate(cases) if case.name in column.speeds]
            places = [x + (index - (len(ran) - 1) / 2) * width for x, _ in shown]
            speeds = [column.speeds[name].median for _, name in shown]
            shares = [
                100 * speed / limits[shape][name]
                for speed, (_, name) in zip(speeds, shown, strict=True)
            ]
            bars = chart.bar(places, shares, width, label=label, color=colour)
            texts = [number(speed) for speed in speeds]
            chart.bar_label(bars, texts, fontsize=6, rotation=90, padding=2)
        chart.set_title(shape, loc="left", fontsize=10)
        chart.set_ylabel("% of the machine's limit")
        chart.set_xticks(range(len(cases)), [case.name for case in cases], fontsize=8)
        chart.spines[["top", "right"]].set_visible(False)
        chart.margins(y=0.15)
    figure.legend(loc="outside upper center", fontsize=8, ncols=len(colours), frameon=False)
    figure.savefig(path)
