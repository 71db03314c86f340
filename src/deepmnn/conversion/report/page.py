"""report.html: the facts of a conversion as one page that needs nothing else. Charts are inline
SVG, and a policy in the page forbids scripts and the network.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from deepmnn.conversion.report import charts, page_calibration, pieces
from deepmnn.conversion.report.charts import Bar, Line
from deepmnn.conversion.report.facts import Facts, LayerFacts, Search, StoredFacts, WeightFacts
from deepmnn.conversion.report.stored import as_stored, by_format
from deepmnn.conversion.report.svg import escaped
from deepmnn.formats import named
from deepmnn.source.sizes import file_size


def page(facts: Facts) -> str:
    """The page, the same for the same facts."""
    title = f"{facts.model_type} as {as_stored(facts.quant, by_format(facts.stored))}"
    sections = (
        _search(facts),
        _layers(facts),
        _kinds(facts),
        _sizes(facts),
        _worst(facts.weights),
        page_calibration.calibration(facts),
        page_calibration.activations(facts.activations),
        _levels(facts),
        _graph(facts),
        _times(facts),
    )
    footer = (
        f"deepmnn {escaped(facts.deepmnn_version)}; report.json beside this page has the same "
        "facts in full."
    )
    return pieces.document(title, _head(facts, title) + "".join(sections), footer)


def _head(facts: Facts, title: str) -> str:
    figures = [
        (file_size(facts.nbytes), "of weights"),
        (f"{facts.bits_per_weight(facts.nbytes):.2f}", "bits per weight"),
        (pieces.count(facts.parameters), "parameters"),
    ]
    if facts.source_nbytes:
        ratio = facts.source_nbytes / facts.nbytes
        said = f"{max(ratio, 1 / ratio):.2f} ×"
        figures.insert(1, (said, f"{'smaller' if ratio > 1 else 'larger'} than the checkpoint"))
    errors = [layer.weight_error for layer in facts.layers if layer.weight_error is not None]
    if errors:
        figures.append((pieces.percent(max(errors)), "largest weight error of a layer"))
    if facts.judged:
        same = pieces.percent(facts.judged.same_first_choice)
        figures.append((f"{facts.judged.kl:.3g}", "KL divergence on held-out text"))
        figures.append((same, "of its tokens have the same first choice"))
    if facts.calibration:
        figures.append((pieces.count(facts.calibration.tokens), "tokens of calibration"))
    return pieces.head(title, f"Converted from {facts.source}." if facts.source else "", figures)


def _search(facts: Facts) -> str:
    if facts.search is None or not facts.search.points:
        return ""
    search, points = facts.search, facts.search.points
    bits = [facts.bits_per_weight(point.nbytes) for point in points]
    drawn = charts.curve(
        [
            (
                each,
                point.kl,
                f"{each:.3f} bits, {file_size(point.nbytes)}, KL {point.kl:.4g}",
                point == search.chosen,
            )
            for each, point in zip(bits, points, strict=True)
        ],
        "Predicted KL divergence by bits per weight",
        (lambda bits: f"{bits:g}", lambda kl: f"{kl:g}"),
        ("bits per weight", "predicted KL"),
    )
    chosen = [index for index, point in enumerate(points) if point == search.chosen]
    shown = _spread(len(points), chosen)
    rows = [
        (f"{bits[index]:.3f}", file_size(points[index].nbytes), f"{points[index].kl:.4g}")
        for index in shown
    ]
    styles = {number: "chosen" for number, index in enumerate(shown) if index in chosen}
    table = pieces.table(("bits per weight", "size", "predicted KL"), rows, styles)
    words = "Each point is the best choice of formats for its size; the marked one was taken."
    body = f'<div class="pair">{pieces.card("", drawn)}{table}</div>{_parts(search)}'
    return pieces.section("Size against accuracy", words, body)


def _parts(search: Search) -> str:
    order = sorted(search.parts.items(), key=lambda part: (-part[1], part[0]))
    rows = [(pattern, f"{kl:.3g}") for pattern, kl in order[: pieces.SHOWN]]
    if not rows:
        return ""
    table = pieces.table(("part of the recipe", "predicted KL"), rows)
    return f"<details><summary>What adds most, as chosen</summary>{table}</details>"


def _layers(facts: Facts) -> str:
    layers = [layer for layer in facts.layers if layer.layer is not None]
    if not layers:
        return ""
    cards = [_layer_sizes(layers)]
    figures = (
        ("weight_error", "Error of the weights", "rounding error over size, root mean square"),
        ("output_error", "Error of the layer's output", "of the residual stream, root mean square"),
        ("kl", "KL divergence", "what rounding each layer adds, as predicted"),
    )
    for index, (field, title, words) in enumerate(figures):
        values = [(layer.layer or 0, getattr(layer, field)) for layer in layers]
        points = [(layer, value) for layer, value in values if value is not None]
        if points:
            shown = pieces.percent if field != "kl" else pieces.plain
            line = Line(f"c{index}", points, pieces.at_layer("", shown))
            drawn = charts.layer_lines([line], len(layers), f"{title} by layer", shown)
            cards.append(pieces.card(title, drawn, words))
    return pieces.section("By layer", "", f'<div class="charts">{"".join(cards)}</div>')


def _layer_sizes(layers: Sequence[LayerFacts]) -> str:
    names = {name for layer in layers for name in layer.nbytes}
    used = sorted(names, key=lambda name: (named(name).bits, name))
    bars = [
        [
            Bar(name, size, f"layer {layer.layer}: {file_size(size)} in {name}")
            for name, size in sorted(layer.nbytes.items(), key=lambda item: used.index(item[0]))
        ]
        for layer in layers
    ]
    drawn = charts.layer_bars(bars, _short_size, "Bytes of each layer by format")
    return pieces.card(
        "Size", drawn, "stored bytes of each layer", pieces.key((n, n) for n in used)
    )


def _kinds(facts: Facts) -> str:
    if not any(kind.origin for kind in facts.stored):
        return ""
    rows = [
        (
            kind.origin,
            f"{kind.format}, kept" if kind.is_kept else kind.format,
            f"{kind.count:,}",
            pieces.count(kind.numbers),
            file_size(kind.nbytes),
            _error(kind),
        )
        for kind in facts.stored
    ]
    words = (
        "Codes are kept where a format of the engine holds them: nothing is rounded a second time. "
        "The error of the others is what rounding changed, root mean square, over the numbers that "
        "the checkpoint stands for."
    )
    columns = ("in the checkpoint", "stored as", "weights", "numbers", "size", "error")
    return pieces.section("Kept and rounded", words, pieces.table(columns, rows))


def _error(kind: StoredFacts) -> str:
    return "" if kind.error is None else pieces.percent(kind.error)


def _sizes(facts: Facts) -> str:
    groups: dict[tuple[str, str], list[WeightFacts]] = defaultdict(list)
    for weight in facts.weights:
        groups[weight.role, weight.format].append(weight)
    rows = []
    for (role, format), weights in groups.items():
        nbytes = sum(weight.nbytes for weight in weights)
        share = pieces.percent(nbytes / max(facts.nbytes, 1))
        rows.append((nbytes, (role, format, f"{len(weights):,}", file_size(nbytes), share)))
    rows.sort(key=lambda row: (-row[0], row[1]))
    total = ("all", "", f"{len(facts.weights):,}", file_size(facts.nbytes), "")
    table = pieces.table(
        ("weights", "stored as", "count", "size", "share"),
        [*(row for _, row in rows), total],
        {len(rows): "total"},
    )
    rules = [(rule["pattern"], rule["format"]) for rule in facts.recipe["rules"]]
    recipe = (
        f"<details><summary>The recipe <small>{len(rules)} rules, the first that matches "
        f"decides</small></summary>{pieces.table(('pattern', 'format'), rules)}</details>"
    )
    return pieces.section("Sizes", "", table + recipe)


def _worst(weights: Sequence[WeightFacts]) -> str:
    measured = [(weight.error, weight) for weight in weights if weight.error is not None]
    if not measured:
        return ""
    measured.sort(key=lambda pair: (-pair[0], pair[1].name))
    rows = [
        (weight.name, weight.origin, weight.format, file_size(weight.nbytes), pieces.percent(error))
        for error, weight in measured[: pieces.SHOWN]
    ]
    words = (
        "The error is the root mean square of what rounding changed, over that of the numbers. "
        "A calibration makes it larger where that makes outputs better."
    )
    columns = ("weight", "in the checkpoint", "stored as", "size", "error")
    table = pieces.table(columns, rows)
    return pieces.section("Weights that lose most", words, table)


def _levels(facts: Facts) -> str:
    cards = [
        pieces.card(
            found.format,
            charts.level_bars(
                found.bars, found.low, found.high, found.levels, f"Numbers in {found.format}"
            ),
            f"{len(found.levels)} levels",
        )
        for found in facts.levels
    ]
    if not cards:
        return ""
    words = (
        "Numbers of the weights, rotated and divided by their panel's scale. The ticks below are "
        "the levels that they are rounded to."
    )
    drawn = f'<div class="charts">{"".join(cards)}</div>'
    return pieces.section("Weights and levels", words, drawn)


def _graph(facts: Facts) -> str:
    rows = [
        (result.name, str(result.rewrites), f"{result.nodes_before} → {result.nodes_after}")
        for result in facts.passes
    ]
    words = (
        f"Optimisation level {facts.optimize_level}: {facts.nodes_level_0} → {facts.nodes} nodes."
    )
    body = pieces.table(("pass", "rewrites", "nodes"), rows) if rows else ""
    for names, said in (
        (facts.dropped, "weights that config.json promises are not in the checkpoint"),
        (facts.unused, "tensors of the checkpoint are not read"),
    ):
        if names:
            body += (
                f'<details><summary class="warn">{len(names):,} {said}</summary>'
                f"{pieces.names(names)}</details>"
            )
    return pieces.section("Graph", words, body)


def _times(facts: Facts) -> str:
    rows = [(what, f"{seconds:.1f} s") for what, seconds in facts.seconds.items()]
    return pieces.section("Times", "", pieces.table(("", "time"), rows)) if rows else ""


def _spread(count: int, wanted: Sequence[int]) -> list[int]:
    """Some of many rows, evenly spread, the wanted ones among them."""
    step = max(1, -(-count // pieces.SHOWN))
    return sorted({*range(0, count, step), count - 1, *wanted})


def _short_size(nbytes: float) -> str:
    return file_size(nbytes).replace(".0 ", " ")
