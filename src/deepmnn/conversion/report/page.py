"""report.html: the facts of a conversion as one page that needs nothing else.

No scripts and no network: charts are inline SVG, and a policy in the page forbids everything else,
whatever a stranger's tensor may be called.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib.resources import files

from deepmnn.conversion.report import charts
from deepmnn.conversion.report.charts import Bar, Line, escaped
from deepmnn.conversion.report.facts import ActivationFacts, Facts, LayerFacts, WeightFacts
from deepmnn.formats import named
from deepmnn.quant.observers import MAX_DIVERGENCE
from deepmnn.source.sizes import file_size

_SHOWN = 12
"""Of long lists; report.json has all."""

_COLOURS = 8
_FEW = 100_000
"""Values: with fewer, chance alone can exceed the bound."""

_METHODS = {"kl": "c1", "mse": "c2", "percentile": "c3"}
"""Ranges that are drawn; the largest value is where a histogram ends."""


def page(facts: Facts) -> str:
    """The page, the same for the same facts."""
    title = f"{facts.model_type} as {facts.quant}"
    sections = (
        _search(facts),
        _layers(facts),
        _sizes(facts),
        _worst(facts.weights),
        _calibration(facts),
        _activations(facts.activations),
        _levels(facts),
        _graph(facts),
        _times(facts),
    )
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escaped(title)}</title><style>\n{_style()}</style></head>\n<body><main>\n"
        f"{_head(facts, title)}\n{''.join(sections)}"
        f"<footer>deepmnn {escaped(facts.deepmnn_version)}; report.json beside this page has the "
        "same facts in full.</footer>\n</main></body></html>\n"
    )


def _head(facts: Facts, title: str) -> str:
    figures = [
        (file_size(facts.nbytes), "of weights"),
        (f"{facts.bits_per_weight:.2f}", "bits per weight"),
        (_count(facts.parameters), "parameters"),
    ]
    if facts.source_nbytes:
        ratio = facts.source_nbytes / facts.nbytes
        said = f"{max(ratio, 1 / ratio):.2f} ×"
        figures.insert(1, (said, f"{'smaller' if ratio > 1 else 'larger'} than the checkpoint"))
    errors = [layer.weight_error for layer in facts.layers if layer.weight_error is not None]
    if errors:
        figures.append((_percent(max(errors)), "largest weight error of a layer"))
    if facts.calibration:
        figures.append((_count(facts.calibration.tokens), "tokens of calibration"))
    cards = "".join(f"<div><b>{escaped(b)}</b><span>{escaped(s)}</span></div>" for b, s in figures)
    origin = f"<p>Converted from {escaped(facts.source)}.</p>" if facts.source else ""
    return f'<h1>{escaped(title)}</h1>{origin}<div class="figures">{cards}</div>'


def _search(facts: Facts) -> str:
    if not facts.search:
        return ""
    points = [
        (
            point.bits_per_weight,
            point.kl,
            f"{point.bits_per_weight:.3f} bits, {file_size(point.nbytes)}, KL {point.kl:.4g}",
            point.chosen,
        )
        for point in facts.search
    ]
    drawn = charts.curve(
        points,
        "Predicted KL divergence by bits per weight",
        (lambda bits: f"{bits:g}", lambda kl: f"{kl:g}"),
        ("bits per weight", "predicted KL"),
    )
    rows = [
        (
            f"{point.bits_per_weight:.3f}",
            file_size(point.nbytes),
            f"{point.kl:.4g}",
            "" if point.measured is None else f"{point.measured:.4g}",
        )
        for point in facts.search
    ]
    shown = _spread(len(rows), [i for i, point in enumerate(facts.search) if point.chosen])
    table = _table(
        ("bits per weight", "size", "predicted KL", "measured KL"),
        [rows[i] for i in shown],
        {n: "chosen" for n, i in enumerate(shown) if facts.search[i].chosen},
    )
    words = "Each point is the best choice of formats for its size; the marked one was taken."
    return _section(
        "Size against accuracy", words, f'<div class="pair">{_card("", drawn)}{table}</div>'
    )


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
            shown = _percent if field != "kl" else _plain
            line = Line(f"c{index}", points, _at_layer("", shown))
            drawn = charts.layer_lines([line], len(layers), f"{title} by layer", shown)
            cards.append(_card(title, drawn, words))
    return _section("By layer", "", f'<div class="charts">{"".join(cards)}</div>')


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
    return _card("Size", drawn, "stored bytes of each layer", _key((n, n) for n in used))


def _sizes(facts: Facts) -> str:
    groups: dict[tuple[str, str], list[WeightFacts]] = defaultdict(list)
    for weight in facts.weights:
        groups[weight.role, weight.format].append(weight)
    rows = []
    for (role, format), weights in groups.items():
        nbytes = sum(weight.nbytes for weight in weights)
        share = _percent(nbytes / max(facts.nbytes, 1))
        rows.append((nbytes, (role, format, f"{len(weights):,}", file_size(nbytes), share)))
    rows.sort(key=lambda row: (-row[0], row[1]))
    total = ("all", "", f"{len(facts.weights):,}", file_size(facts.nbytes), "")
    table = _table(
        ("weights", "stored as", "count", "size", "share"),
        [*(row for _, row in rows), total],
        {len(rows): "total"},
    )
    rules = [(rule["pattern"], rule["format"]) for rule in facts.recipe["rules"]]
    recipe = (
        f"<details><summary>The recipe <small>{len(rules)} rules, the first that matches "
        f"decides</small></summary>{_table(('pattern', 'format'), rules)}</details>"
    )
    return _section("Sizes", "", table + recipe)


def _worst(weights: Sequence[WeightFacts]) -> str:
    known = [weight for weight in weights if weight.kl is not None]
    measured = [weight for weight in weights if weight.error is not None]
    if not measured and not known:
        return ""
    if known:
        order = sorted(known, key=lambda weight: (-(weight.kl or 0), weight.name))
    else:
        order = sorted(measured, key=lambda weight: (-(weight.error or 0), weight.name))
    rows = [
        (
            weight.name,
            weight.format,
            file_size(weight.nbytes),
            "" if weight.error is None else _percent(weight.error),
            *([f"{weight.kl:.3g}"] if known and weight.kl is not None else []),
        )
        for weight in order[:_SHOWN]
    ]
    columns = ("weight", "stored as", "size", "error", *(["KL"] if known else []))
    words = (
        "The error is the root mean square of what rounding changed, over that of the numbers. "
        "A calibration makes it larger where that makes outputs better."
    )
    return _section("Weights that lose most", words, _table(columns, rows))


def _calibration(facts: Facts) -> str:
    calibration = facts.calibration
    if calibration is None:
        return ""
    words = (
        f"{calibration.samples:,} samples, {calibration.tokens:,} tokens: "
        f"{calibration.tensors:,} matrices were rounded by what they do to this text."
    )
    body = ""
    if calibration.scarce:
        found = calibration.scarce
        body += (
            f'<details><summary class="warn">{len(found):,} matrices of experts that hardly a '
            f"token reached are rounded to nearest</summary>{_list(found)}</details>"
        )
    if facts.experts:
        body += f'<div class="charts">{_expert_load(facts)}</div>'
    return _section("Calibration", words, body)


def _expert_load(facts: Facts) -> str:
    styles = (("c2", "most", max), ("c0", "mean", _mean), ("c4", "fewest", min))
    lines = []
    for style, name, figure in styles:
        points = [(e.layer or 0, float(figure(e.tokens))) for e in facts.experts]
        lines.append(Line(style, points, _at_layer(f"{name} ", _count)))
    layers = 1 + max(expert.layer or 0 for expert in facts.experts)
    drawn = charts.layer_lines(lines, layers, "Tokens of an expert by layer", _count)
    return _card("Tokens that chose an expert", drawn, "", _key((n, s) for s, n, _ in styles))


def _activations(activations: Sequence[ActivationFacts]) -> str:
    if not activations:
        return ""
    groups: dict[str, list[ActivationFacts]] = defaultdict(list)
    for activation in activations:
        groups[_reader(activation)].append(activation)
    beyond = [activation for activation in activations if activation.is_beyond]
    words = (
        "What matrices multiply, and where one int8 scale for all tokens would clip it. The engine "
        "needs none of these ranges: it scales each token and panel by itself. An exported model "
        "with static ranges does. The KL divergence of each should stay below "
        f"{MAX_DIVERGENCE:g}; {len(beyond)} of {len(activations)} do not."
    )
    if any(activation.count < _FEW for activation in beyond):
        words += f" Some hold fewer than {_FEW:,} values, where chance alone can exceed it."
    drawn = f'<div class="charts">{_range_costs(groups)}</div>' if len(activations) > 1 else ""
    marks = [("least KL", "c1"), ("least squared error", "c2"), ("99.99 %", "c3")]
    worst = sorted(beyond, key=lambda activation: -activation.ranges["kl"].divergence)
    body = drawn + _key(marks)
    if worst:
        body += _figures("Beyond the bound", worst[:_SHOWN], named=True)
    body += "".join(_figures(name, found) for name, found in groups.items())
    return _section("Activations", words, body)


def _range_costs(groups: dict[str, list[ActivationFacts]]) -> str:
    names = [name for name, found in groups.items() if any(a.layer is not None for a in found)]
    lines = []
    for index, name in enumerate(names):
        points = [(a.layer, a.ranges["kl"].divergence) for a in groups[name] if a.layer is not None]
        lines.append(
            Line(
                f"c{index % _COLOURS}",
                points,
                _at_layer(f"{name} ", _plain),
            )
        )
    layers = 1 + max((layer for line in lines for layer, _ in line.points), default=0)
    label = "KL divergence of a static range by layer"
    drawn = charts.layer_lines(lines, layers, label, _plain, MAX_DIVERGENCE)
    key = _key((name, f"c{index % _COLOURS}") for index, name in enumerate(names))
    return _card("KL divergence of a static range", drawn, "the dashed line is the bound", key)


def _figures(title: str, found: Sequence[ActivationFacts], named: bool = False) -> str:
    """Histograms behind a title; named: of several kinds, and to be seen at once."""
    drawn = "".join(_figure(activation, named) for activation in found)
    return (
        f"<details{' open' if named else ''}><summary>{escaped(title)} <small>{len(found)}</small>"
        f'</summary><div class="small">{drawn}</div></details>'
    )


def _figure(activation: ActivationFacts, named: bool) -> str:
    largest = activation.largest or 1.0
    marks = [
        (
            activation.ranges[method].threshold / largest,
            style,
            f"{method}: {activation.ranges[method].threshold:.4g}, "
            f"KL {activation.ranges[method].divergence:.4g}",
        )
        for method, style in _METHODS.items()
    ]
    place = "" if activation.layer is None else f"layer {activation.layer}, "
    label = f"Histogram of {activation.name}"
    drawn = charts.histogram(activation.bars, marks, ("0", _plain(activation.largest)), label)
    beyond = ' class="beyond"' if activation.is_beyond else ""
    reader = f"{_reader(activation)}, " if named else ""
    kl = f"{reader}{place}KL {activation.ranges['kl'].divergence:.2g}"
    return f"<figure{beyond}>{drawn}<figcaption>{escaped(kl)}</figcaption></figure>"


def _levels(facts: Facts) -> str:
    cards = [
        _card(
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
    return _section("Weights and levels", words, drawn)


def _graph(facts: Facts) -> str:
    rows = [
        (result.name, str(result.rewrites), f"{result.nodes_before} → {result.nodes_after}")
        for result in facts.passes
    ]
    words = (
        f"Optimisation level {facts.optimize_level}: {facts.nodes_level_0} → {facts.nodes} nodes."
    )
    body = _table(("pass", "rewrites", "nodes"), rows) if rows else ""
    for names, said in (
        (facts.dropped, "weights that config.json promises are not in the checkpoint"),
        (facts.unused, "tensors of the checkpoint are not read"),
    ):
        if names:
            body += (
                f'<details><summary class="warn">{len(names):,} {said}</summary>'
                f"{_list(names)}</details>"
            )
    return _section("Graph", words, body)


def _times(facts: Facts) -> str:
    rows = [(what, f"{seconds:.1f} s") for what, seconds in facts.seconds.items()]
    return _section("Times", "", _table(("", "time"), rows)) if rows else ""


def _section(title: str, words: str, body: str) -> str:
    if not body and not words:
        return ""
    said = f"<p>{escaped(words)}</p>" if words else ""
    return f"<section><h2>{escaped(title)}</h2>{said}{body}</section>\n"


def _card(title: str, drawn: str, words: str = "", below: str = "") -> str:
    head = f"<h3>{escaped(title)}</h3>" if title else ""
    said = f"<p>{escaped(words)}</p>" if words else ""
    return f'<div class="card">{head}{said}{drawn}{below}</div>'


def _key(entries: Iterable[tuple[str, str]]) -> str:
    parts = (f'<span><i class="{style}"></i>{escaped(name)}</span>' for name, style in entries)
    return f'<div class="key">{"".join(parts)}</div>'


def _table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], styles: dict[int, str] | None = None
) -> str:
    head = "".join(f"<th>{escaped(column)}</th>" for column in columns)
    body = []
    for number, row in enumerate(rows):
        style = (styles or {}).get(number)
        cells = "".join(f"<td>{escaped(cell)}</td>" for cell in row)
        body.append(f'<tr class="{style}">{cells}</tr>' if style else f"<tr>{cells}</tr>")
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(body)}</table></div>'


def _list(names: Sequence[str]) -> str:
    items = "".join(f"<li>{escaped(name)}</li>" for name in names[:_SHOWN])
    rest = f"<li>and {len(names) - _SHOWN:,} more</li>" if len(names) > _SHOWN else ""
    return f"<ul>{items}{rest}</ul>"


def _reader(activation: ActivationFacts) -> str:
    """What reads a value, the same for all layers and experts: "self_attn.q_proj, k_proj"."""
    short = (re.sub(r"^.*?layers\.\d+\.|^model\.|\.weight$", "", n) for n in activation.readers)
    named: dict[str, dict[str, None]] = {}
    for name in sorted(re.sub(r"\.\d+\.", ".*.", each) for each in short):
        parent, _, last = name.rpartition(".")
        named.setdefault(parent, {})[last] = None
    return "; ".join(
        f"{parent}.{', '.join(last)}".lstrip(".") for parent, last in sorted(named.items())
    )


def _spread(count: int, wanted: Sequence[int]) -> list[int]:
    """Some of many rows, evenly spread, the wanted ones among them."""
    step = max(1, -(-count // _SHOWN))
    return sorted({*range(0, count, step), count - 1, *wanted})


def _at_layer(what: str, shown: Callable[[float], str]) -> Callable[[int, float], str]:
    """What is said of a layer's figure."""
    return lambda layer, value: f"layer {layer}: {what}{shown(value)}"


def _mean(values: Sequence[int]) -> float:
    return sum(values) / max(len(values), 1)


def _count(number: float) -> str:
    for unit in ("", " k", " M", " B"):
        if number < 1000:
            return f"{number:.0f}" if not unit else f"{number:.1f}{unit}"
        number /= 1000
    return f"{number:.1f} T"


def _percent(share: float) -> str:
    return f"{share * 100:.3g} %"


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def _short_size(nbytes: float) -> str:
    return file_size(nbytes).replace(".0 ", " ")


@cache
def _style() -> str:
    return files(__package__).joinpath("page.css").read_text()
