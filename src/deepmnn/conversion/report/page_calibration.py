"""The sections of a calibration: its text, its experts, activations and their static ranges."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from deepmnn.conversion.report import charts, pieces
from deepmnn.conversion.report.charts import Line
from deepmnn.conversion.report.facts import ActivationFacts, Facts
from deepmnn.conversion.report.svg import escaped
from deepmnn.quant.observers import MAX_DIVERGENCE

_COLOURS = 8
_FEW = 100_000
"""Values: with fewer, chance alone can exceed the bound."""

_METHODS = {"kl": "c1", "mse": "c2", "percentile": "c3"}
"""Ranges that are drawn; the largest value is where a histogram ends."""


def calibration(facts: Facts) -> str:
    """What weights were rounded by."""
    found = facts.calibration
    if found is None:
        return ""
    words = (
        f"{found.samples:,} samples, {found.tokens:,} tokens: "
        f"{found.tensors:,} matrices were rounded by what they do to this text."
    )
    body = ""
    if found.scarce:
        said = f"{len(found.scarce):,} matrices of experts that hardly a token reached"
        body += (
            f'<details><summary class="warn">{said} are rounded to nearest</summary>'
            f"{pieces.names(found.scarce)}</details>"
        )
    if facts.experts:
        body += f'<div class="charts">{_expert_load(facts)}</div>'
    return pieces.section("Calibration", words, body)


def _expert_load(facts: Facts) -> str:
    styles = (("c2", "most", max), ("c0", "mean", _mean), ("c4", "fewest", min))
    lines = []
    for style, name, figure in styles:
        points = [(e.layer or 0, float(figure(e.tokens))) for e in facts.experts]
        lines.append(Line(style, points, pieces.at_layer(f"{name} ", pieces.count)))
    layers = 1 + max(expert.layer or 0 for expert in facts.experts)
    drawn = charts.layer_lines(lines, layers, "Tokens of an expert by layer", pieces.count)
    return pieces.card(
        "Tokens that chose an expert", drawn, "", pieces.key((n, s) for s, n, _ in styles)
    )


def _mean(values: Sequence[int]) -> float:
    return sum(values) / max(len(values), 1)


def activations(found: Sequence[ActivationFacts]) -> str:
    """What matrices multiply."""
    if not found:
        return ""
    groups: dict[str, list[ActivationFacts]] = defaultdict(list)
    for activation in found:
        groups[_reader(activation)].append(activation)
    beyond = [activation for activation in found if activation.is_beyond]
    words = (
        "What matrices multiply, and where one int8 scale for all tokens would clip it. The engine "
        "needs none of these ranges: it scales each token and panel by itself. An exported model "
        "with static ranges does. The KL divergence of each should stay below "
        f"{MAX_DIVERGENCE:g}; {len(beyond)} of {len(found)} do not."
    )
    if any(activation.count < _FEW for activation in beyond):
        words += f" Some hold fewer than {_FEW:,} values, where chance alone can exceed it."
    drawn = f'<div class="charts">{_range_costs(groups)}</div>' if len(found) > 1 else ""
    marks = [("least KL", "c1"), ("least squared error", "c2"), ("99.99 %", "c3")]
    worst = sorted(beyond, key=lambda activation: -activation.ranges["kl"].divergence)
    body = drawn + pieces.key(marks)
    if worst:
        body += _figures("Beyond the bound", worst[: pieces.SHOWN], named=True)
    body += "".join(_figures(name, group) for name, group in groups.items())
    return pieces.section("Activations", words, body)


def _range_costs(groups: dict[str, list[ActivationFacts]]) -> str:
    names = [name for name, found in groups.items() if any(a.layer is not None for a in found)]
    lines = []
    for index, name in enumerate(names):
        points = [(a.layer, a.ranges["kl"].divergence) for a in groups[name] if a.layer is not None]
        lines.append(
            Line(
                f"c{index % _COLOURS}",
                points,
                pieces.at_layer(f"{name} ", pieces.plain),
            )
        )
    layers = 1 + max((layer for line in lines for layer, _ in line.points), default=0)
    label = "KL divergence of a static range by layer"
    drawn = charts.layer_lines(lines, layers, label, pieces.plain, MAX_DIVERGENCE)
    key = pieces.key((name, f"c{index % _COLOURS}") for index, name in enumerate(names))
    return pieces.card(
        "KL divergence of a static range", drawn, "the dashed line is the bound", key
    )


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
    drawn = charts.histogram(activation.bars, marks, ("0", pieces.plain(activation.largest)), label)
    beyond = ' class="beyond"' if activation.is_beyond else ""
    reader = f"{_reader(activation)}, " if named else ""
    kl = f"{reader}{place}KL {activation.ranges['kl'].divergence:.2g}"
    return f"<figure{beyond}>{drawn}<figcaption>{escaped(kl)}</figcaption></figure>"


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
