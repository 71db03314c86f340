"""A flame chart of a phase, and the machine's roofline with a point for each op."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from deepmnn.conversion.report.scale import Scale
from deepmnn.conversion.report.svg import drawing, escaped, number, text, title
from deepmnn.inspect.profile import words
from deepmnn.inspect.profile.result import Cost, Phase
from deepmnn.measure.benchmark import Machine

STYLES = 7
"""Colours for ops; what is left has the next one."""

_WIDTH, _ROW, _LETTER = 1000.0, 26.0, 6.6
_ROOF_WIDTH, _ROOF_HEIGHT = 560.0, 330.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 64.0, 12.0, 14.0, 42.0


@dataclass(frozen=True)
class Block:
    """A span of a flame chart: its name, seconds, class, what is said, and what is inside.

    short: a name for where the whole one has no room.
    """

    name: str
    seconds: float
    style: str
    said: str
    inside: tuple[Block, ...] = ()
    short: str = ""


def styles(phases: Sequence[Phase]) -> dict[str, str]:
    """Op → class of its colour: the most costly ops of any phase have one of their own."""
    most: dict[str, float] = {}
    for phase in phases:
        for kind in phase.kinds:
            most[kind.op] = max(most.get(kind.op, 0.0), kind.share)
    ranked = sorted(most, key=lambda op: -most[op])
    return {op: f"c{min(place, STYLES)}" for place, op in enumerate(ranked)}


def blocks(phase: Phase, style: Mapping[str, str]) -> Block:
    """A phase: the core's ops by layer and its other parts, then Python's."""
    core = [_layer(phase, layer, style) for layer in phase.layers]
    parts: dict[str, list[Block]] = {}
    for part in phase.parts:
        said = f"{part.name}: {words.share(part.share)}"
        block = Block(part.name, max(0.0, part.seconds), "vector", said)
        parts.setdefault(part.where or "python", []).append(block)
    core += parts.pop("core", [])
    groups = [("C++ core", core), *parts.items()]
    inside = tuple(
        Block(name, spent, "f32", f"{name}: {words.share(spent / phase.seconds)}", tuple(found))
        for name, found in groups
        if (spent := sum(block.seconds for block in found))
    )
    said = f"{phase.name}: {words.seconds(phase.seconds)}"
    return Block(phase.name, phase.seconds, "f32", said, inside)


def _layer(phase: Phase, layer: Cost, style: Mapping[str, str]) -> Block:
    nodes = tuple(
        Block(
            node.name.removeprefix(f"layers.{node.layer}."),
            node.seconds,
            style[node.op],
            f"{node.name} ({node.op}): {words.share(node.share)}, "
            f"{words.seconds(node.seconds / max(1, node.calls))} a call",
        )
        for node in phase.nodes
        if node.layer == layer.layer
    )
    said = f"{layer.name}: {words.share(layer.share)}"
    short = "" if layer.layer is None else str(layer.layer)
    return Block(layer.name, layer.seconds, "f32", said, nodes, short)


def flame(root: Block, label: str) -> str:
    """Time from left to right, what is inside something below it."""
    depth = max(level for level, *_ in _placed(root)) + 1
    parts = []
    for level, begin, block in _placed(root):
        left, wide = begin / root.seconds * _WIDTH, block.seconds / root.seconds * _WIDTH
        if wide < 0.4:
            continue
        top = level * _ROW
        shape = (
            f'<rect class="fill {block.style} block" x="{_fine(left)}" y="{number(top)}" '
            f'width="{_fine(max(wide - 0.6, 0.4))}" height="{number(_ROW - 2)}">'
            f"{title(block.said)}</rect>"
        )
        parts.append(shape)
        if name := _fitting(block, int((wide - 6) / _LETTER)):
            place = f'x="{_fine(left + 3)}" y="{number(top + 16)}"'
            parts.append(f'<text class="on" {place}>{escaped(name)}</text>')
    return drawing(_WIDTH, depth * _ROW, label, parts)


def _fitting(block: Block, letters: int) -> str:
    """As much of a block's name as there is room for."""
    for name in (block.name, block.short):
        if name and len(name) <= letters:
            return name
    return f"{block.name[: letters - 1]}…" if letters > 4 and not block.short else ""


def _placed(root: Block) -> Iterator[tuple[int, float, Block]]:
    """(level, where it begins in seconds, block), the root first."""
    stack = [(0, 0.0, root)]
    while stack:
        level, begin, block = stack.pop()
        yield level, begin, block
        for inner in block.inside:
            stack.append((level + 1, begin, inner))
            begin += inner.seconds


@dataclass(frozen=True)
class Point:
    """Of a roofline: multiply-accumulates per byte and second, class, what is said of it."""

    intensity: float
    speed: float
    style: str
    said: str
    is_hollow: bool = False


def points(phase: Phase, style: Mapping[str, str]) -> list[Point]:
    """The ops of a phase that both read and multiply; decode's are hollow."""
    return [
        Point(
            kind.macs / kind.nbytes,
            kind.macs / kind.seconds,
            style[kind.op],
            f"{kind.op}, {phase.name}: {kind.macs / kind.nbytes:.3g} MAC per byte, "
            f"{words.three_digits(kind.macs / kind.seconds / 1e9)} G MAC/s, "
            f"{words.share(kind.share)} of the time",
            phase.name == "decode",
        )
        for kind in phase.kinds
        if kind.macs and kind.nbytes and kind.seconds
    ]


def roofline(found: Sequence[Point], machine: Machine) -> str:
    """Both axes logarithmic: the slope is the read bandwidth, the flat lines are the peaks."""
    peaks = {"int8": machine.int8_macs, "float": machine.f32_macs}
    corners = [peak / machine.read_bandwidth for peak in peaks.values()]
    across = [*(point.intensity for point in found), *corners]
    up = [*(point.speed for point in found), *peaks.values()]
    x = Scale(min(across) / 3, max(across) * 3, _LEFT, _ROOF_WIDTH - _RIGHT, is_log=True)
    y = Scale(min(up) / 3, max(up) * 2, _ROOF_HEIGHT - _BOTTOM, _TOP, is_log=True)
    parts = _axes(x, y)
    for name, peak in peaks.items():
        corner = peak / machine.read_bandwidth
        begin = max(x.low, y.low / machine.read_bandwidth)
        parts.append(
            f'<path class="roof" d="M{number(x(begin))} {number(y(begin * machine.read_bandwidth))}'
            f'L{number(x(corner))} {number(y(peak))}H{number(x.end)}">'
            f"{title(f'{name}: {peak / 1e9:.0f} G MAC/s, {corner:.3g} MAC per byte')}</path>"
        )
        said = f"{name}: {peak / 1e9:.0f} G MAC/s"
        parts.append(text(x.end - 2, y(peak) - 5, said, "end"))
    for point in found:
        style = f"mark {point.style}" if point.is_hollow else f"fill {point.style}"
        parts.append(
            f'<circle class="{style}" cx="{number(x(point.intensity))}" '
            f'cy="{number(y(point.speed))}" r="5">{title(point.said)}</circle>'
        )
    label = "Multiply-accumulates per second by multiply-accumulates per byte read"
    return drawing(_ROOF_WIDTH, _ROOF_HEIGHT, label, parts)


def _axes(x: Scale, y: Scale) -> list[str]:
    parts = []
    for tick in y.ticks():
        at = number(y(tick))
        parts.append(f'<path class="grid" d="M{number(x.begin)} {at}H{number(x.end)}"/>')
        parts.append(text(x.begin - 5, y(tick) + 4, f"{tick / 1e9:g}", "end"))
    for tick in x.ticks():
        at = number(x(tick))
        parts.append(f'<path class="grid" d="M{at} {number(y.begin)}V{number(y.end)}"/>')
        parts.append(text(x(tick), y.begin + 16, f"{tick:g}", "middle"))
    parts.append(text(x.end, y.begin + 34, "MAC per byte read", "end"))
    parts.append(text(4, 12, "G MAC/s", "start"))
    return parts


def _fine(value: float) -> str:
    """A coordinate of a narrow block."""
    return f"{value:.2f}" if math.isfinite(value) else "0"
