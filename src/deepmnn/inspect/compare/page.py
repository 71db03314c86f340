"""A comparison as one page that needs nothing else: findings first, then where and how much."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from importlib.resources import files

from deepmnn.conversion.report import pieces
from deepmnn.conversion.report.svg import escaped
from deepmnn.inspect.compare import page_charts as charts
from deepmnn.inspect.compare.compare import Compared
from deepmnn.inspect.compare.comparison import Comparison
from deepmnn.inspect.compare.difference import percent
from deepmnn.inspect.compare.summary import (
    alike,
    by_layer,
    first_past,
    kind_of,
    logits_error,
    past_words,
    read_words,
    sum_of_effects,
)

_FOOTER = "Made by deepmnn."


def page(found: Comparison, names: tuple[str, str], bound: float) -> str:
    """The page, the same for the same comparison.

    Args:
        names: of the model and the reference, as people call them.
        bound: the relative error from which on a value is named.
    """
    title = f"{names[0]} against {names[1]}"
    sections = (
        _findings(found),
        _depth(found, bound),
        charts.effects(found),
        charts.distributions(found),
        charts.weights(found),
        _values(found),
        _left_out(found),
    )
    style = (files(__package__) / "page.css").read_text()
    return pieces.document(title, _head(title, found) + "".join(sections), _FOOTER, style)


def _head(title: str, found: Comparison) -> str:
    words = f"Model: {found.model}. Reference: {found.reference}. {read_words(found)}."
    figures = [(f"{len(found.findings):,}", "differences that rounding does not explain")]
    error = logits_error(found)
    if error is not None:
        figures.append((percent(error), "relative error of the logits"))
    if found.divergence is not None:
        judged = found.divergence
        said = f"nats of KL divergence, mean; {judged.percentile_99:.3g} at 99 %"
        figures.append((f"{judged.mean:.3g}", said))
        figures.append((f"{judged.same_first_choice:.1%}", "of tokens have the same first choice"))
    if found.effects:
        figures.append((f"{sum_of_effects(found):.3g}", "nats, effects of layers alone, summed"))
    worst = max((each.error for each in found.weights), default=None)
    if worst is not None:
        figures.append((percent(worst), "largest error of a tensor"))
    return pieces.head(title, words, figures)


def _findings(found: Comparison) -> str:
    if not found.findings:
        words = "Every difference is one that the storage formats and float32 explain."
        body = f'<div class="plain sound"><p>{escaped(words)}</p></div>'
        return pieces.section("Findings", "", body)
    items = "".join(
        f"<li><b>{escaped(place)}</b> <small>{escaped(each.kind)}</small>"
        f"<br>{escaped(each.text)}</li>"
        for each, place in alike(found.findings)
    )
    body = f'<div class="plain found"><ol>{items}</ol></div>'
    words = (
        "These differences are larger than rounding explains: each is a fault to look into, the "
        "first one first."
    )
    return pieces.section("Findings", words, body)


def _depth(found: Comparison, bound: float) -> str:
    past = first_past(found, bound)
    if past is None:
        words = f"No value is off by more than {percent(bound)}."
        said = f'<div class="plain sound"><p>{escaped(words)}</p></div>'
    else:
        first, *rest = past_words(found, past)
        items = "".join(f"<li>{escaped(each)}</li>" for each in rest)
        said = (
            f'<div class="plain past"><p>The first value past {escaped(percent(bound))}: '
            f"{escaped(first)}.</p><ul>{items}</ul></div>"
        )
    return pieces.section("Error by depth", "", said + charts.depth(found, bound))


def _values(found: Comparison) -> str:
    wrong = {each.place for each in found.findings}
    tables = [("All that both tell", found.values)]
    if found.inside:
        tables.append(("Inside fused nodes, by the graph as it is written", found.inside))
    folded = "".join(
        f"<details><summary>{escaped(what)} <small>{len(values):,} values</small></summary>"
        f"{_table(values, wrong)}</details>"
        for what, values in tables
    )
    layers = (
        f"<details><summary>By layer <small>{found.layers:,} decoder layers</small></summary>"
        f"{_by_layer(found)}</details>"
    )
    return pieces.section("Values", "", layers + folded)


def _table(values: Sequence[Compared], wrong: Collection[str]) -> str:
    """wrong: names of those with findings."""
    styles = {at: "chosen" for at, each in enumerate(values) if each.name in wrong}
    columns = (
        "value",
        "op",
        "format",
        "error",
        "of its own",
        "rounding explains",
        "cosine",
        "largest difference",
        "at row, column",
    )
    return pieces.table(columns, [_row(each) for each in values], styles)


def _row(each: Compared) -> Sequence[str]:
    apart = each.difference
    own = "" if each.alone is None else percent(each.alone.error)
    largest, place = "", ""
    if apart.largest:
        largest = f"{apart.largest:.3g}: {apart.found:.4g} for {apart.wanted:.4g}"
        place = f"{apart.row:,}, {apart.column:,}"
    return (
        each.name,
        each.origin.op,
        ", ".join(each.origin.formats),
        percent(apart.error),
        own,
        percent(each.origin.bound),
        f"{apart.cosine:.6f}" if math.isfinite(apart.cosine) else "none",
        largest,
        place,
    )


def _by_layer(found: Comparison) -> str:
    rows = []
    for layer in by_layer(found):
        own, effect = layer.worst, layer.effect
        alone = None if own is None else own.alone
        rows.append(
            (
                layer.name,
                percent(layer.stream.difference.error),
                "" if own is None else kind_of(own.name),
                "" if alone is None else percent(alone.error),
                "" if effect is None else f"{effect.alone:.3g}",
                "" if effect is None else f"{effect.added:.3g}",
            )
        )
    columns = ("", "error behind it", "largest of its own", "", "KL alone", "KL added")
    return pieces.table(columns, rows)


def _left_out(found: Comparison) -> str:
    parts = [(f"by {name}", names) for name, names in found.vanished.items()]
    if found.hidden:
        parts.append(("values that one of the two does not tell", found.hidden))
    body = "".join(
        f"<details><summary>{escaped(what)} <small>{len(names):,}</small></summary>"
        f"<ul>{''.join(f'<li>{escaped(name)}</li>' for name in names)}</ul></details>"
        for what, names in parts
    )
    words = "Values of the graph as it is written that cannot be compared one by one."
    return pieces.section("Left out", words, body) if body else ""
