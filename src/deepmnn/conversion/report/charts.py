"""Charts as inline SVG. Colours are classes (page.css), so that they follow light and dark mode."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from deepmnn.conversion.report.scale import Scale
from deepmnn.conversion.report.svg import drawing, number, path, text, title

WIDTH, HEIGHT = 360.0, 200.0
WIDE = 760.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 8.0, 10.0, 30.0
_LETTER = 6.4
"""About so wide is a letter of a label."""

_NEXT_LABEL = 12.0
"""Between labels of an axis, at least."""

Shown = Callable[[float], str]
"""A figure for people."""


@dataclass(frozen=True)
class Bar:
    """A part of a bar: its class, its size, and what is said of it."""

    style: str
    size: float
    said: str


@dataclass(frozen=True)
class Line:
    """Points (x, y) joined by a line; x are whole numbers. Each point says something."""

    style: str
    points: Sequence[tuple[int, float]]
    said: Callable[[int, float], str]


@dataclass(frozen=True)
class Mark:
    """A line across a chart at some y, and its name."""

    at: float
    name: str


@dataclass(frozen=True)
class Distribution:
    """How many numbers lie in each of equal parts of a span: a class, the counts, what is said."""

    style: str
    counts: Sequence[float]
    said: str


def layer_bars(bars: Sequence[Sequence[Bar]], shown: Shown, label: str) -> str:
    """A stacked bar for each layer."""
    most = max((sum(part.size for part in bar) for bar in bars), default=0) or 1.0
    x = _layer_scale(len(bars), WIDTH)
    y = Scale(0, most, HEIGHT - _BOTTOM, _TOP)
    width = min((x.end - x.begin) / max(len(bars), 1) * 0.8, 24)
    parts = [_grid(x, y, shown, _layer_names(len(bars)))]
    for layer, bar in enumerate(bars):
        below = 0.0
        for part in bar:
            top, bottom = y(below + part.size), y(below)
            below += part.size
            parts.append(_rect(part, x(layer) - width / 2, top, width, bottom - top))
    return drawing(WIDTH, HEIGHT, label, parts)


def layer_lines(
    lines: Sequence[Line],
    layers: int | Sequence[str],
    label: str,
    shown: Shown,
    bound: float | None = None,
    width: float = WIDTH,
) -> str:
    """Figures of layers on a logarithmic axis, and a bound that they should stay below.

    A figure of 0 is at the lower end, an infinite one at the upper; those that are no number are
    left out. layers: how many there are, or what each place of the axis is called.
    """
    lines = [replace(line, points=_numbers(line.points)) for line in lines]
    y = _log_scale([value for line in lines for _, value in line.points], bound)
    count, names = _places(layers)
    x = _layer_scale(count, width)
    parts = [_grid(x, y, shown, names), _bound(x, y, bound)]
    for line in lines:
        parts += _line(line, x, y)
    return drawing(width, HEIGHT, label, parts)


def layer_groups(
    groups: Sequence[Sequence[Bar]],
    layers: int | Sequence[str],
    label: str,
    shown: Shown,
    bound: float | None = None,
    width: float = WIDTH,
) -> str:
    """Bars side by side for each layer, on a logarithmic axis; the other arguments and what is no
    number are as in `layer_lines`.
    """
    y = _log_scale([bar.size for group in groups for bar in group], bound)
    count, names = _places(layers)
    x = _layer_scale(count, width)
    parts = [_grid(x, y, shown, names)]
    for bar, left, thick in _side_by_side(groups, x, count):
        if not math.isnan(bar.size):
            top = y(max(bar.size, y.low))
            parts.append(_rect(bar, left, top, thick, y.begin - top))
    return drawing(width, HEIGHT, label, [*parts, _bound(x, y, bound)])


def signed_groups(
    groups: Sequence[Sequence[Bar]],
    layers: int | Sequence[str],
    label: str,
    shown: Shown,
    width: float = WIDTH,
) -> str:
    """Bars side by side for each layer, upwards or downwards from 0; what is no finite number is
    left out. The other arguments are as in `layer_lines`.
    """
    sizes = [bar.size for group in groups for bar in group if math.isfinite(bar.size)]
    low, high = min([0.0, *sizes]), max([0.0, *sizes])
    y = Scale(low, high if high > low else 1.0, HEIGHT - _BOTTOM, _TOP)
    count, names = _places(layers)
    x = _layer_scale(count, width)
    parts = [_grid(x, y, shown, names)]
    for bar, left, thick in _side_by_side(groups, x, count):
        if math.isfinite(bar.size):
            top, bottom = y(max(bar.size, 0.0)), y(min(bar.size, 0.0))
            parts.append(_rect(bar, left, top, thick, bottom - top))
    if low < 0:
        parts.append(f'<path class="axis" d="M{number(x.begin)} {number(y(0))}H{number(x.end)}"/>')
    return drawing(width, HEIGHT, label, parts)


def _side_by_side(
    groups: Sequence[Sequence[Bar]], x: Scale, count: int
) -> Iterator[tuple[Bar, float, float]]:
    """Each bar of each place of the axis, where it begins and how thick it is."""
    room = (x.end - x.begin) / max(count, 1)
    for layer, group in enumerate(groups):
        thick = min(room * 0.84 / max(len(group), 1), 16)
        for place, bar in enumerate(group):
            yield bar, x(layer) + (place - len(group) / 2) * thick, thick


def curve(
    points: Sequence[tuple[float, float, str, bool]],
    label: str,
    shown: tuple[Shown, Shown],
    names: tuple[str, str],
) -> str:
    """Points (x, y, what is said, whether it is the chosen one) from left to right; y logarithmic.

    shown, names: numbers as text, and what they are, of both axes.
    """
    across = [point[0] for point in points]
    positive = [point[1] for point in points if 0 < point[1] < math.inf]
    low, high = (min(positive), max(positive)) if positive else (0.1, 1.0)
    room = (max(across) - min(across)) * 0.04 or 0.5
    x = Scale(min(across) - room, max(across) + room, _LEFT, WIDTH - _RIGHT)
    y = Scale(low / 1.3, high * 1.3, HEIGHT - _BOTTOM, _TOP + 8, is_log=True)
    ticks = [(tick, shown[0](tick)) for tick in x.ticks()]
    parts = [_grid(x, y, shown[1], ticks)]
    places = [(x(point[0]), y(max(point[1], y.low))) for point in points]
    parts.append(f'<path class="line c0" d="{path(places)}"/>')
    for place, (*_, said, chosen) in zip(places, points, strict=True):
        parts.append(_dot(place, "chosen" if chosen else "c0", 5 if chosen else 2, said))
    return drawing(WIDTH, HEIGHT, label, [*parts, *_axis_names(x, names)])


def growth(
    lines: Sequence[Line],
    marks: Sequence[Mark],
    label: str,
    shown: tuple[Shown, Shown],
    names: tuple[str, str],
) -> str:
    """How figures grow with x, both above 0 and logarithmic, and lines across.

    shown, names: as in `curve`. The names of x are those of the first line's points.
    """
    across = [place for line in lines for place, _ in line.points] or [1]
    x = Scale(min(across), max(across), _LEFT, WIDE - _RIGHT - 10, is_log=True)
    values = [value for line in lines for _, value in line.points]
    y = replace(_log_scale([*values, *(mark.at for mark in marks)], None), end=_TOP + 8)
    ticks = [(float(place), shown[0](place)) for place, _ in (lines[0].points if lines else ())]
    parts = [_grid(x, y, shown[1], ticks)]
    for mark in marks:
        parts += [_bound(x, y, mark.at), text(x.begin + 4, y(mark.at) - 4, mark.name, "start")]
    for line in lines:
        parts += _line(line, x, y)
    return drawing(WIDE, HEIGHT, label, [*parts, *_axis_names(x, names)])


def row_bars(
    rows: Sequence[tuple[str, Sequence[Bar]]], shown: Shown, label: str, width: float = WIDTH
) -> str:
    """A stacked bar for each name, from left to right, and its sum."""
    step, left = 26.0, 14 + max((len(name) for name, _ in rows), default=0) * _LETTER * 1.1
    most = max((sum(part.size for part in bar) for _, bar in rows), default=0) or 1.0
    x = Scale(0, most, left, width - 62)
    parts = []
    for row, (name, bar) in enumerate(rows):
        top, before = row * step + 4, 0.0
        for part in bar:
            begin, end = x(before), x(before + part.size)
            before += part.size
            parts.append(_rect(part, begin, top, end - begin, step - 8))
        parts.append(text(left - 6, top + 13, name, "end"))
        parts.append(text(x(before) + 5, top + 13, shown(before), "start"))
    return drawing(width, max(len(rows), 1) * step + 4, label, parts)


def histogram(
    bars: Sequence[int], marks: Sequence[tuple[float, str, str]], ends: tuple[str, str], label: str
) -> str:
    """A small one whose heights are logarithmic; marks (share of the width, class, what is said)
    are lines across it; ends: what stands below its ends.
    """
    width, height, bottom = 150.0, 64.0, 50.0
    outline = _outline([math.log1p(bar) for bar in bars], Scale(0, 1, 0, width), bottom, 4)
    parts = [f'<path class="fill area" d="{outline}Z"/>']
    parts.append(f'<path class="axis" d="M0 {number(bottom)}H{number(width)}"/>')
    for share, style, said in marks:
        at = number(min(max(share, 0.0), 1.0) * (width - 1.2) + 0.6)
        parts.append(
            f'<path class="mark {style}" d="M{at} 2V{number(bottom)}">{title(said)}</path>'
        )
    parts.append(text(0, height - 3, ends[0], "start"))
    parts.append(text(width, height - 3, ends[1], "end"))
    return drawing(width, height, label, parts)


def distributions(
    found: Sequence[Distribution],
    low: float,
    high: float,
    shown: Shown,
    label: str,
    is_log: bool = True,
) -> str:
    """Distributions over one another, each over the same equal parts of low to high.

    Their areas are alike, however many numbers each has. is_log: heights are logarithmic, so that
    the tails are seen.
    """
    height, bottom = 150.0, 126.0
    x = Scale(low, high, 6, WIDTH - 6)
    rows = []
    for each in found:
        share = [count / (sum(each.counts) or 1.0) * len(each.counts) for count in each.counts]
        rows.append([math.log1p(1e4 * one) if is_log else one for one in share])
    most = max((max(row, default=0.0) for row in rows), default=0.0)
    parts = []
    for each, row in zip(found, rows, strict=True):
        outline = _outline(row, x, bottom, 6, most)
        parts.append(
            f'<path class="fill under {each.style}" d="{outline}Z">{title(each.said)}</path>'
        )
        parts.append(f'<path class="line {each.style}" d="{outline}"/>')
    parts.append(f'<path class="axis" d="M{number(x.begin)} {number(bottom)}H{number(x.end)}"/>')
    for tick in x.ticks():
        anchor = "start" if x(tick) < 20 else "end" if x(tick) > WIDTH - 20 else "middle"
        parts.append(text(x(tick), height - 6, shown(tick), anchor))
    return drawing(WIDTH, height, label, parts)


def level_bars(
    bars: Sequence[int], low: float, high: float, levels: Sequence[int], label: str
) -> str:
    """How often numbers lie where, and the levels that stand for them as ticks below."""
    height = 130.0
    x = Scale(low, high, 4, WIDTH - 4)
    bottom = height - 26
    parts = [f'<path class="fill area" d="{_outline(bars, x, bottom, 6)}Z"/>']
    ticks = "".join(f"M{number(x(level))} {number(bottom + 1)}v8" for level in levels)
    parts.append(f'<path class="tick" d="{ticks}"/>')
    for level in (levels[0], 0, levels[-1]):
        parts.append(text(x(level), height - 3, str(level), "middle"))
    return drawing(WIDTH, height, label, parts)


def _outline(
    heights: Sequence[float], x: Scale, bottom: float, top: float, most: float = 0.0
) -> str:
    """The "d" of steps from left to right, the highest of which, or `most`, reaches `top`."""
    most = most or max(heights, default=0) or 1.0
    step = number((x.end - x.begin) / max(len(heights), 1))
    steps = "".join(f"V{number(bottom - (bottom - top) * h / most)}h{step}" for h in heights)
    return f"M{number(x.begin)} {number(bottom)}{steps}V{number(bottom)}"


def _line(line: Line, x: Scale, y: Scale) -> list[str]:
    places = [(x(across), y(max(value, y.low))) for across, value in line.points]
    return [
        f'<path class="line {line.style}" d="{path(places)}"/>',
        *(
            _dot(place, line.style, 2.2, line.said(*point))
            for place, point in zip(places, line.points, strict=True)
        ),
    ]


def _dot(place: tuple[float, float], style: str, radius: float, said: str) -> str:
    across, down = map(number, place)
    circle = f'<circle class="fill {style}" cx="{across}" cy="{down}" r="{number(radius)}">'
    return f"{circle}{title(said)}</circle>"


def _rect(bar: Bar, left: float, top: float, width: float, height: float) -> str:
    return (
        f'<rect class="fill {bar.style}" x="{number(left)}" y="{number(top)}" '
        f'width="{number(width)}" height="{number(height)}">{title(bar.said)}</rect>'
    )


def _bound(x: Scale, y: Scale, bound: float | None) -> str:
    if not bound:
        return ""
    return f'<path class="bound" d="M{number(x.begin)} {number(y(bound))}H{number(x.end)}"/>'


def _axis_names(x: Scale, names: tuple[str, str]) -> list[str]:
    return [text(x.end, HEIGHT - 3, names[0], "end"), text(4, _TOP, names[1], "start")]


def _grid(x: Scale, y: Scale, shown: Shown, across: Sequence[tuple[float, str]]) -> str:
    """Lines across at round numbers, with their names, and names below."""
    parts = []
    for tick in y.ticks():
        if y.low <= tick <= y.high:
            at = number(y(tick))
            parts.append(f'<path class="grid" d="M{number(x.begin)} {at}H{number(x.end)}"/>')
            parts.append(text(x.begin - 4, y(tick) + 4, shown(tick), "end"))
    free = -math.inf
    for tick, name in across:
        half = len(name) * _LETTER / 2
        if x(tick) - half >= free:
            free = x(tick) + half + _NEXT_LABEL
            parts.append(text(x(tick), HEIGHT - _BOTTOM + 14, name, "middle"))
    parts.append(f'<path class="axis" d="M{number(x.begin)} {number(y.begin)}H{number(x.end)}"/>')
    return "".join(parts)


def _numbers(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    return [(across, value) for across, value in points if not math.isnan(value)]


def _log_scale(values: Sequence[float], bound: float | None) -> Scale:
    """A vertical axis that has room for all that can be drawn on it."""
    drawn = [value for value in values if 0 < value < math.inf] + ([bound] if bound else [])
    low, high = (min(drawn), max(drawn)) if drawn else (0.1, 1.0)
    return Scale(low / 1.5, high * 1.5, HEIGHT - _BOTTOM, _TOP, is_log=True)


def _layer_scale(count: int, width: float) -> Scale:
    return Scale(-0.5, max(count, 1) - 0.5, _LEFT, width - _RIGHT)


def _places(layers: int | Sequence[str]) -> tuple[int, list[tuple[float, str]]]:
    """How many places an axis of layers has, and what is written below."""
    if isinstance(layers, int):
        return layers, _layer_names(layers)
    return len(layers), [(place, name) for place, name in enumerate(layers) if name]


def _layer_names(layers: int) -> list[tuple[float, str]]:
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000, layers + 1) if layers / step <= 8)
    return [(layer, str(layer)) for layer in range(0, layers, step)]
