"""A part of a graph as a picture: a box for each node, a line for each value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from deepmnn.conversion.report.svg import drawing, escaped, number, title
from deepmnn.graph.ir import Graph, Node, Weight
from deepmnn.inspect.report.blocks import AFTER, BEFORE, Block
from deepmnn.inspect.report.kinds import kind
from deepmnn.inspect.report.layered import Edge, arrange
from deepmnn.inspect.report.trace import Snapshot
from deepmnn.source.sizes import file_size

_HEIGHT, _STEP, _MARGIN = 36.0, 60.0, 8.0
_PILL = 20.0
_LETTER, _SMALL = 6.5, 5.7
"""Widths of a letter in the first line of a box, and in the second."""

_LONGEST = 30
_PORT = 12.0
"""Between lines that end at one box."""


@dataclass
class _Item:
    """A box, or a value from or for elsewhere.

    said: what is shown where one points at it, in lines.
    """

    style: str
    lines: list[str]
    said: list[str]
    is_marked: bool = False

    @property
    def width(self) -> float:
        sizes = [len(t) * w for t, w in zip(self.lines, (_LETTER, _SMALL), strict=False)]
        return max(44.0, max(sizes) + 18)


@dataclass
class _Parts:
    """What is drawn: items, and lines between them, each with what is said of it."""

    items: list[_Item] = field(default_factory=list)
    edges: dict[Edge, list[str]] = field(default_factory=dict)

    def add(self, item: _Item) -> int:
        self.items.append(item)
        return len(self.items) - 1

    def join(self, upper: int, lower: int, said: str) -> None:
        self.edges.setdefault((upper, lower), []).append(said)


def picture(
    shot: Snapshot,
    block: Block,
    nodes: Sequence[Node] | None = None,
    marked: Sequence[Node] = (),
    style: str = "",
) -> str:
    """A block as it is in the place of it that is shown.

    nodes: those to draw; None: all. Only what all, or marked ones, have to do with other places is
    drawn. marked: those of the class `style`.
    """
    drawn = shot.places.get(block.shown, []) if nodes is None else nodes
    marks = {id(node) for node in marked}
    parts = _parts(shot, block, drawn, marks, {id(n) for n in drawn} if nodes is None else marks)
    for item in parts.items:
        item.style += f" {style}" if item.is_marked else ""
    found = arrange([item.width for item in parts.items], list(parts.edges))
    width = found.width + 2 * _MARGIN
    height = max(found.ranks - 1, 0) * _STEP + _HEIGHT + 2 * _MARGIN
    places = [(x + _MARGIN, rank * _STEP + _MARGIN) for x, rank in found.places]
    lines = _lines(parts, places, found.routes)
    boxes = [_box(item, *place) for item, place in zip(parts.items, places, strict=True)]
    return drawing(width, height, f"Graph, {block.title}", [*lines, *boxes], natural=True)


def _parts(
    shot: Snapshot, block: Block, nodes: Sequence[Node], marked: set[int], open: set[int]
) -> _Parts:
    """open: nodes whose values from and for other places are drawn."""
    graph, parts = shot.graph, _Parts()
    own = f"layers.{block.shown}."
    made = {name: node for node in nodes for name in node.outputs}
    outside = _Outside(shot, block.shown)
    for node in nodes:  # items come in an order in which lines go down
        for name in node.inputs:
            if id(node) in open and name not in made:
                outside.enter(parts, name, node)
    at: dict[int, int] = {}
    twins = _twins(shot, block)
    for node in nodes:
        lines, said = _lines_of(graph, node, own), _said(graph, node, twins[id(node)])
        at[id(node)] = parts.add(_Item(kind(graph, node), lines, said, id(node) in marked))
        for name in node.inputs:
            maker = made.get(name)
            upper = outside.entry(name, node) if maker is None else at[id(maker)]
            if upper is not None:
                parts.join(upper, at[id(node)], _value(graph, name))
    for node in nodes:
        for name in node.outputs:
            if id(node) in open:
                outside.leave(parts, name, at[id(node)])
    return parts


class _Outside:
    """Values that come from other places or the caller, and those that go there."""

    def __init__(self, shot: Snapshot, place: int) -> None:
        self._graph, self._place = shot.graph, place
        self._makers = shot.makers
        self._readers = shot.readers
        self._entries: dict[tuple[str, int], int] = {}

    def enter(self, parts: _Parts, name: str, reader: Node) -> None:
        """A value from elsewhere; one that the caller gives has an item for each reader."""
        key = self._key(name, reader)
        if key not in self._entries:
            place = self._makers.get(name)
            said = f"from {self._where(place)}" if place is not None else "given to the model"
            short = _short(name, self._place if place is None else place)
            item = _Item("outside", [short], [_value(self._graph, name), said])
            self._entries[key] = parts.add(item)

    def entry(self, name: str, reader: Node) -> int | None:
        """Its item."""
        return self._entries.get(self._key(name, reader))

    def leave(self, parts: _Parts, name: str, maker: int) -> None:
        """A value that is read elsewhere, or is what the model gives."""
        places = sorted(self._readers.get(name, set()) - {self._place})
        said = [f"to {self._where(place)}" for place in places]
        if name in self._graph.outputs:
            said.append("an output of the model")
        if said:
            item = _Item("outside", [_short(name, self._place)], [_value(self._graph, name), *said])
            parts.join(maker, parts.add(item), _value(self._graph, name))

    def _key(self, name: str, reader: Node) -> tuple[str, int]:
        return name, 0 if name in self._makers else id(reader)

    def _where(self, place: int) -> str:
        if place in (BEFORE, AFTER):
            return "the embedding" if place == BEFORE else "what follows the layers"
        return {self._place - 1: "the layer before", self._place + 1: "the next layer"}.get(
            place, f"layer {place}"
        )


def _lines_of(graph: Graph, node: Node, own: str) -> list[str]:
    """What stands in a box."""
    widths = " + ".join(str(graph.values[name].width) for name in node.outputs)
    return [_cut(node.name.replace(own, "")), _cut(f"{node.op} → {widths}")]


def _said(graph: Graph, node: Node, twins: Sequence[Node]) -> list[str]:
    """All there is to know of a node. twins: those like it, itself among them."""
    lines = [f"{node.name}: {node.op}"]
    shapes = [_shape(graph, names) for names in (node.inputs, node.outputs)]
    lines.append(" → ".join(shapes))
    lines += _weights(graph, twins)
    for name, value in node.attrs.items():
        long = isinstance(value, tuple) and len(value) > 4
        lines.append(f"{name}: {f'{len(value)} numbers' if long else value}")  # type: ignore[arg-type]
    return lines


def _weights(graph: Graph, twins: Iterable[Node]) -> list[str]:
    """The weights of a node, and of the same node in places that are alike."""
    counts: Counter[tuple[tuple[int, ...], str]] = Counter()
    first: dict[tuple[tuple[int, ...], str], Weight] = {}
    for node in twins:
        for name in node.weights:
            weight = graph.weights[name]
            at = weight.shape, weight.format
            counts[at] += 1
            first.setdefault(at, weight)
    return [
        f"{f'{count} weights' if count > 1 else 'weight'} {list(shape)} in {format}, "
        f"{file_size(count * first[shape, format].nbytes)}: {first[shape, format].name}"
        f"{', …' if count > 1 else ''}"
        for (shape, format), count in counts.items()
    ]


def _twins(shot: Snapshot, block: Block) -> dict[int, list[Node]]:
    """Node of the place that is shown → it and its like in each place of the block."""
    places = [shot.places.get(place, []) for place in block.places]
    shown = block.places.index(block.shown)
    return {id(same[shown]): list(same) for same in zip(*places, strict=True)}


def _shape(graph: Graph, names: Sequence[str]) -> str:
    return ", ".join(f"[{', '.join(map(str, graph.values[name].shape))}]" for name in names)


def _value(graph: Graph, name: str) -> str:
    return f"{name} {_shape(graph, [name])}"


def _short(name: str, place: int) -> str:
    return _cut(name.replace(f"layers.{place}.", ""))


def _cut(text: str) -> str:
    """The ends of a long text."""
    half = _LONGEST // 2
    return text if len(text) <= _LONGEST else f"{text[: half - 1]}…{text[-half:]}"


def _lines(
    parts: _Parts,
    places: Sequence[tuple[float, float]],
    routes: Sequence[Sequence[tuple[float, int]]],
) -> list[str]:
    """The lines, which leave a box and end at one beside one another."""
    edges = list(parts.edges)
    shift = {edge: [0.0, 0.0] for edge in edges}
    for end in (0, 1):
        groups: dict[int, list[tuple[float, Edge]]] = {}
        for edge, route in zip(edges, routes, strict=True):
            near = (route[0] if end == 0 else route[-1])[0] + _MARGIN if route else None
            across = places[edge[1 - end]][0] if near is None else near
            groups.setdefault(edge[end], []).append((across, edge))
        for item, found in groups.items():
            room = min(_PORT, (parts.items[item].width - 16) / max(len(found), 1))
            for index, (_, edge) in enumerate(sorted(found)):
                shift[edge][end] = (index - (len(found) - 1) / 2) * room
    drawn = []
    for edge, route in zip(edges, routes, strict=True):
        (x, y), (to, end_y) = places[edge[0]], places[edge[1]]
        upper, lower = (_half(parts.items[item]) for item in edge)
        middle = _HEIGHT / 2
        d = [f"M{number(x + shift[edge][0])} {number(y + middle + upper)}"]
        last = x + shift[edge][0], y + middle + upper
        for across, rank in route:
            top = rank * _STEP + _MARGIN
            last = _bend(d, last, (across + _MARGIN, top))
            d.append(f"V{number(top + _HEIGHT)}")
            last = last[0], top + _HEIGHT
        _bend(d, last, (to + shift[edge][1], end_y + middle - lower))
        said = title(*parts.edges[edge])
        drawn.append(f'<path class="value" d="{"".join(d)}">{said}</path>')
    return drawn


def _bend(
    d: list[str], start: tuple[float, float], end: tuple[float, float]
) -> tuple[float, float]:
    """Adds a curve that begins and ends upright."""
    middle = number((start[1] + end[1]) / 2)
    (x, _), (to, down) = start, end
    curve = f"C{number(x)} {middle} {number(to)} {middle} {number(to)} {number(down)}"
    d.append(f"V{number(down)}" if abs(x - to) < 0.5 else curve)
    return end


def _half(item: _Item) -> float:
    return (_PILL if len(item.lines) == 1 else _HEIGHT) / 2


def _box(item: _Item, x: float, y: float) -> str:
    """An item whose middle is at x, in the row that begins at y."""
    half, middle = _half(item), y + _HEIGHT / 2
    rounded = 10 if len(item.lines) == 1 else 5
    rect = (
        f'<rect x="{number(x - item.width / 2)}" y="{number(middle - half)}" '
        f'width="{number(item.width)}" height="{number(2 * half)}" rx="{rounded}"/>'
    )
    offsets = (4.0,) if len(item.lines) == 1 else (-3.0, 11.0)
    styles = ("", ' class="op"')
    texts = "".join(
        f'<text{style} x="{number(x)}" y="{number(middle + offset)}">{escaped(line)}</text>'
        for line, offset, style in zip(item.lines, offsets, styles, strict=False)
    )
    return f'<g class="node {item.style}">{title(*item.said)}{rect}{texts}</g>'
