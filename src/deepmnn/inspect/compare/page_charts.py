"""The charts of a comparison's page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from deepmnn.conversion.report import charts, pieces
from deepmnn.conversion.report.charts import WIDE, Bar, Distribution, Line
from deepmnn.graph.stages import LAYER
from deepmnn.inspect.compare.compare import Compared
from deepmnn.inspect.compare.comparison import Comparison
from deepmnn.inspect.compare.difference import percent
from deepmnn.inspect.compare.findings import SHARP_BOUND
from deepmnn.inspect.compare.summary import (
    by_layer,
    effect_words,
    kind_of,
    kinds,
)

COLORS = 8
"""Kinds that a chart has lines for: as many colours as there are."""

_LABELS = 16
"""Below the axis of a chart, at most about."""

_STREAMS = 6
"""Layers whose residual stream is shown."""

_FOUND = 6
"""Values with findings that are shown."""

_BOTH = (("model", "c0"), ("reference", "c1"), ("difference", "c4"))


def depth(found: Comparison, bound: float) -> str:
    """The running error, and each kind of node's own."""
    layers = by_layer(found)
    names = _places([layer.name for layer in layers])
    points = [(at, layer.stream.difference.error) for at, layer in enumerate(layers)]

    def said(at: int, error: float) -> str:
        return f"{layers[at].stream.name}: off by {percent(error)}"

    drawn = charts.layer_lines(
        [Line("c0", points, said)], names, "Error by depth", percent, bound, WIDE
    )
    running = pieces.card(
        "As both run",
        drawn,
        "Relative error of the residual stream behind each layer, and of the logits; the dashed "
        "line is the bound. It holds what all nodes before have done.",
    )
    own = _own(found.values, names, layers[0].stream.layer)
    return f'<div class="wide">{running}</div>' + own


def _own(values: Sequence[Compared], names: Sequence[str], first: int) -> str:
    """names: of the places of the axis; the first one is of the layer `first`."""
    table = {
        kind: [
            (each.layer - first, each.alone.error, each.name)
            for each in group
            if each.alone is not None
        ]
        for kind, group in kinds(values).items()
    }
    shown = _largest({kind: points for kind, points in table.items() if points}, SHARP_BOUND)
    if not shown:
        return ""
    drawn = _kind_lines(shown, names, "Own errors by layer")
    card = pieces.card(
        "Of their own",
        drawn,
        "Each node on the reference's own inputs, so no error of others is in it. Shown are the "
        "kinds of nodes with the largest errors; the table at the end has all.",
        pieces.key((kind, f"c{at}") for at, kind in enumerate(shown)),
    )
    return f'<div class="wide">{card}</div>'


Points = Sequence[tuple[int, float, str]]
"""(place, error, name), of one kind."""


def _largest(table: Mapping[str, Points], least: float) -> dict[str, Points]:
    """The kinds with the largest errors, as many as there are colours, in their own order; where
    some are above `least`, only such.
    """
    tops = {kind: max(error for _, error, _ in points) for kind, points in table.items()}
    above = [kind for kind in tops if not tops[kind] <= least] or list(tops)
    kept = sorted(above, key=lambda kind: -tops[kind])[:COLORS]
    return {kind: points for kind, points in table.items() if kind in kept}


def _kind_lines(table: Mapping[str, Points], layers: int | Sequence[str], label: str) -> str:
    lines = []
    for at, points in enumerate(table.values()):
        names = {place: name for place, _, name in points}
        lines.append(Line(f"c{at}", [point[:2] for point in points], _said(names)))
    return charts.layer_lines(lines, layers, label, percent, width=WIDE)


def _said(names: Mapping[int, str]) -> Callable[[int, float], str]:
    return lambda layer, error: f"{names[layer]}: {percent(error)}"


def effects(found: Comparison) -> str:
    """What each layer does to the predictions."""
    if not found.effects or found.divergence is None:
        return ""
    groups, places = [], []
    for effect in found.effects:
        name = f"layer {effect.layer}" if effect.layer < found.layers else "predictions"
        places.append(name)
        groups.append(
            [
                Bar("c0", effect.alone, f"{name} alone: {effect.alone:.3g} nats"),
                Bar("c1", effect.added, f"{name} added to those before: {effect.added:.3g} nats"),
            ]
        )
    drawn = charts.signed_groups(
        groups, _places(places), "Effect on the predictions by layer", pieces.plain, WIDE
    )
    words = (
        "KL divergence from the exact model, in nats. Alone: only this layer is the model's, all "
        "others are exact. Added: what it adds to those before it. Layer 0 has the embeddings, "
        "too."
    )
    below = pieces.key((("alone", "c0"), ("added", "c1")))
    card = pieces.card("", drawn, words, below)
    said = " ".join(effect_words(found))
    return pieces.section("Effect on the predictions", said, f'<div class="wide">{card}</div>')


def distributions(found: Comparison) -> str:
    """Of the residual stream here and there, and of values with findings."""
    layers = by_layer(found)
    places = {round(at * (len(layers) - 1) / (_STREAMS - 1)) for at in range(_STREAMS)}
    wrong = {finding.place for finding in found.findings}
    values = [*found.inside, *found.values]
    picked = [each for each in values if each.name in wrong][:_FOUND]
    picked += [layers[at].stream for at in sorted(places)]
    cards = {each.name: _distribution(each) for each in picked}
    if not any(cards.values()):
        return ""
    words = (
        "How often numbers lie where, heights logarithmic. Numbers beyond an end of the axis are "
        "counted at it. The narrower the difference, the better."
    )
    body = f'<div class="charts">{"".join(cards.values())}</div>{pieces.key(_BOTH)}'
    return pieces.section("Distributions", words, body)


def _distribution(each: Compared) -> str:
    sketch = each.sketch
    if sketch is None:
        return ""
    found = [
        Distribution("c1", sketch.reference, _ends("reference", sketch.reference_ends)),
        Distribution("c0", sketch.model, _ends("model", sketch.model_ends)),
        Distribution("c4", sketch.difference, "the difference of the two"),
    ]
    drawn = charts.distributions(found, sketch.low, sketch.high, _figure, each.name)
    words = f"off by {percent(each.difference.error)}; {_ends('reference', sketch.reference_ends)}"
    return pieces.card(each.name, drawn, words)


def _ends(whose: str, ends: tuple[float, float]) -> str:
    return f"{whose} from {_figure(ends[0])} to {_figure(ends[1])}"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def weights(found: Comparison) -> str:
    """The tensors' errors by layer, and the largest."""
    if not found.weights:
        return ""
    table: dict[str, dict[int, tuple[int, float, str]]] = {}
    for each in found.weights:
        name = each.name.removeprefix("model.")
        numbered = LAYER.match(name)
        if numbered is None or int(numbered[1]) >= found.layers:  # layers of token prediction
            continue
        by_number = table.setdefault(kind_of(name.removesuffix(".weight")), {})
        layer = int(numbered[1])
        best = by_number.get(layer)
        if best is None or each.error > best[1]:
            by_number[layer] = layer, each.error, each.name
    shown = _largest({kind: list(points.values()) for kind, points in table.items()}, 0.0)
    drawn = ""
    if shown:
        below = pieces.key((kind, f"c{at}") for at, kind in enumerate(shown))
        lines = _kind_lines(shown, found.layers, "Errors of tensors by layer")
        drawn = f'<div class="wide">{pieces.card("", lines, "", below)}</div>'
    order = sorted(found.weights, key=lambda each: -each.error)
    rows = [
        [
            each.name,
            percent(each.error),
            percent(each.usual_error),
            percent(each.rows_error),
            f"{each.rows:,}",
            each.instead,
        ]
        for each in order
    ]
    columns = ["tensor", "error", "usual 16 rows", "worst 16 rows", "from row", "it is instead"]
    if not any(each.instead for each in order):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    most = pieces.table(columns, rows[: pieces.SHOWN])
    rest = (
        f"<details><summary>All tensors <small>{len(rows):,}</small></summary>"
        f"{pieces.table(columns, rows)}</details>"
    )
    words = (
        "Root mean square of the difference over that of the reference's numbers. Of experts, the "
        "largest of a layer. A calibration makes it larger where that makes outputs better."
    )
    return pieces.section("Weights", words, drawn + most + rest)


def _places(names: Sequence[str]) -> list[str]:
    """What is written below places: of many layers every second, fifth, ... one."""
    step = next(step for step in (1, 2, 5, 10, 20, len(names)) if len(names) / step <= _LABELS)
    found = []
    for name in names:
        number = name.removeprefix("layer ")
        if number.isdigit():
            found.append(number if int(number) % step == 0 else "")
        else:
            found.append({"embeddings": "emb", "predictions": "logits"}[name])
    return found
