"""Charts as inline SVG. Colours are classes (page.css), so that they follow light and dark mode."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 360.0, 200.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 8.0, 10.0, 30.0
_LEAST_STEP = 34.0
"""Between labels of an axis."""
_DIGITS = (
    (1,),
    (1, 3),
    (1, 2, 5),
    (1, 1.5, 2, 3, 5, 7),
    (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9),
)


@dataclass(frozen=True)
class Scale:
    """Numbers → places on an axis.

    Attributes:
        low, high: the ends of the axis.
        begin, end: where they are, in pixels.
        is_log: equal ratios are equally far apart; both ends are above 0.
    """

    low: float
    high: float
    begin: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        """A number's place; one beyond an end is put there."""
        low, high, at = self.low, self.high, min(max(value, self.low), self.high)
        if self.is_log:
            low, high, at = math.log(low), math.log(high), math.log(at)
        share = (at - low) / (high - low) if high > low else 0.5
        return self.begin + share * (self.end - self.begin)

    def ticks(self) -> list[float]:
        """Round numbers between the ends."""
        return (_log_ticks if self.is_log else _ticks)(self.low, self.high)


@dataclass(frozen=True)
class Bar:
    """A part of a stacked bar: its class, its size, and what is said of it."""

    style: str
    size: float
    said: str


@dataclass(frozen=True)
class Line:
    """Points (x, y) joined by a line; x are whole numbers. Each point says something."""

    style: str
    points: Sequence[tuple[int, float]]
    said: Callable[[int, float], str]


def escaped(text: str) -> str:
    """Text as HTML and SVG show it: what cannot be printed is written out."""
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return escape("".join(shown), quote=True)


def layer_bars(bars: Sequence[Sequence[Bar]], shown: Callable[[float], str], label: str) -> str:
    """A stacked bar for each layer."""
    most = max((sum(part.size for part in bar) for bar in bars), default=0) or 1.0
    x = Scale(-0.5, max(len(bars), 1) - 0.5, _LEFT, WIDTH - _RIGHT)
    y = Scale(0, most, HEIGHT - _BOTTOM, _TOP)
    width = min((x.end - x.begin) / max(len(bars), 1) * 0.8, 24)
    parts = [_grid(x, y, shown, _layer_ticks(len(bars)))]
    for layer, bar in enumerate(bars):
        below = 0.0
        for part in bar:
            top, bottom = y(below + part.size), y(below)
            below += part.size
            parts.append(
                f'<rect class="fill {part.style}" x="{_n(x(layer) - width / 2)}" y="{_n(top)}" '
                f'width="{_n(width)}" height="{_n(bottom - top)}">{_title(part.said)}</rect>'
            )
    return _svg(WIDTH, HEIGHT, label, parts)


def layer_lines(
    lines: Sequence[Line],
    layers: int,
    label: str,
    shown: Callable[[float], str],
    bound: float | None = None,
) -> str:
    """Figures of layers on a logarithmic axis, and a bound that they should stay below."""
    values = [value for line in lines for _, value in line.points if 0 < value < math.inf]
    values += [bound] if bound else []
    low, high = (min(values), max(values)) if values else (0.1, 1.0)
    x = Scale(-0.5, max(layers, 1) - 0.5, _LEFT, WIDTH - _RIGHT)
    y = Scale(low / 1.5, high * 1.5, HEIGHT - _BOTTOM, _TOP, is_log=True)
    parts = [_grid(x, y, shown, _layer_ticks(layers))]
    if bound:
        at = _n(y(bound))
        parts.append(f'<path class="bound" d="M{_n(x.begin)} {at}H{_n(x.end)}"/>')
    for line in lines:
        places = [(x(layer), y(max(value, y.low))) for layer, value in line.points]
        parts.append(f'<path class="line {line.style}" d="{_path(places)}"/>')
        for (across, down), point in zip(places, line.points, strict=True):
            parts.append(
                f'<circle class="fill {line.style}" cx="{_n(across)}" cy="{_n(down)}" r="2.2">'
                f"{_title(line.said(*point))}</circle>"
            )
    return _svg(WIDTH, HEIGHT, label, parts)


def curve(
    points: Sequence[tuple[float, float, str, bool]],
    label: str,
    shown: tuple[Callable[[float], str], Callable[[float], str]],
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
    parts.append(f'<path class="line c0" d="{_path(places)}"/>')
    for (right, down), (*_, said, chosen) in zip(places, points, strict=True):
        style, radius = ("fill chosen", 5) if chosen else ("fill c0", 2)
        parts.append(
            f'<circle class="{style}" cx="{_n(right)}" cy="{_n(down)}" r="{radius}">'
            f"{_title(said)}</circle>"
        )
    parts.append(_text(x.end, HEIGHT - 3, names[0], "end"))
    parts.append(_text(4, _TOP, names[1], "start"))
    return _svg(WIDTH, HEIGHT, label, parts)


def histogram(
    bars: Sequence[int], marks: Sequence[tuple[float, str, str]], ends: tuple[str, str], label: str
) -> str:
    """A small one whose heights are logarithmic; marks (share of the width, class, what is said)
    are lines across it; ends: what stands below its ends.
    """
    width, height, top = 150.0, 64.0, 50.0
    most = math.log1p(max(bars, default=0)) or 1.0
    step = width / max(len(bars), 1)
    heights = [(top - 4) * math.log1p(bar) / most for bar in bars]
    outline = "".join(f"V{_n(top - high)}h{_n(step)}" for high in heights)
    parts = [f'<path class="fill area" d="M0 {_n(top)}{outline}V{_n(top)}Z"/>']
    parts.append(f'<path class="axis" d="M0 {_n(top)}H{_n(width)}"/>')
    for share, style, said in marks:
        at = _n(min(max(share, 0.0), 1.0) * (width - 1.2) + 0.6)
        parts.append(f'<path class="mark {style}" d="M{at} 2V{_n(top)}">{_title(said)}</path>')
    parts += [_text(0, height - 3, ends[0], "start"), _text(width, height - 3, ends[1], "end")]
    return _svg(width, height, label, parts)


def level_bars(
    bars: Sequence[int], low: float, high: float, levels: Sequence[int], label: str
) -> str:
    """How often numbers lie where, and the levels that stand for them as ticks below."""
    height = 130.0
    x = Scale(low, high, 4, WIDTH - 4)
    bottom = height - 26
    most = max(bars, default=0) or 1
    step = (x.end - x.begin) / max(len(bars), 1)
    outline = "".join(f"V{_n(bottom - (bottom - 6) * bar / most)}h{_n(step)}" for bar in bars)
    parts = [f'<path class="fill area" d="M{_n(x.begin)} {_n(bottom)}{outline}V{_n(bottom)}Z"/>']
    ticks = "".join(f"M{_n(x(level))} {_n(bottom + 1)}v8" for level in levels)
    parts.append(f'<path class="tick" d="{ticks}"/>')
    for level in (levels[0], 0, levels[-1]):
        parts.append(_text(x(level), height - 3, str(level), "middle"))
    return _svg(WIDTH, height, label, parts)


def _grid(
    x: Scale, y: Scale, shown: Callable[[float], str], across: Sequence[tuple[float, str]]
) -> str:
    """Lines across at round numbers, with their names, and names below."""
    parts = []
    for tick in y.ticks():
        if y.low <= tick <= y.high:
            at = _n(y(tick))
            parts.append(f'<path class="grid" d="M{_n(x.begin)} {at}H{_n(x.end)}"/>')
            parts.append(_text(x.begin - 4, y(tick) + 4, shown(tick), "end"))
    last = -_LEAST_STEP
    for tick, name in across:
        if x(tick) - last >= _LEAST_STEP:
            last = x(tick)
            parts.append(_text(x(tick), HEIGHT - _BOTTOM + 14, name, "middle"))
    parts.append(f'<path class="axis" d="M{_n(x.begin)} {_n(y.begin)}H{_n(x.end)}"/>')
    return "".join(parts)


def _ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / 5
    if rough <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * (1 - 1e-9))
    return [step * n for n in range(math.ceil(low / step), int(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten; in a narrow range, other round numbers too."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in _DIGITS:
        found = [m * 10.0**n for n in powers for m in digits if low <= m * 10.0**n <= high]
        if len(found) > 2:
            break
    return found[:: max(1, -(-len(found) // 6))]


def _layer_ticks(layers: int) -> list[tuple[float, str]]:
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000, layers + 1) if layers / step <= 8)
    return [(layer, str(layer)) for layer in range(0, layers, step)]


def _path(places: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{_n(across)} {_n(down)}" for across, down in places) if places else ""


def _text(x: float, y: float, said: str, anchor: str) -> str:
    return f'<text x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}">{escaped(said)}</text>'


def _title(said: str) -> str:
    return f"<title>{escaped(said)}</title>"


def _n(value: float) -> str:
    """A coordinate."""
    return f"{value:.1f}".removesuffix(".0")


def _svg(width: float, height: float, label: str, parts: Sequence[str]) -> str:
    size = f"{_n(width)} {_n(height)}"
    head = f'<svg viewBox="0 0 {size}" role="img" aria-label="{escaped(label)}">'
    return head + "".join(parts) + "</svg>"
