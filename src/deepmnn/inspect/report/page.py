"""The page about a model, one file that needs nothing else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from importlib.resources import files

from deepmnn import __version__
from deepmnn.conversion.report import charts, pieces
from deepmnn.conversion.report.charts import Bar
from deepmnn.conversion.report.facts import WeightFacts
from deepmnn.conversion.report.page import recipe, sizes
from deepmnn.conversion.report.stored import as_stored, by_format
from deepmnn.conversion.report.svg import escaped
from deepmnn.formats import named
from deepmnn.inspect.report import page_accuracy, page_graph, page_speed
from deepmnn.inspect.report.findings import Findings
from deepmnn.inspect.report.subject import Subject
from deepmnn.source.sizes import file_size


def page(name: str, subject: Subject, found: Findings) -> str:
    """The page, the same for the same facts.

    name: what the model is called by whoever asks.
    """
    title = f"{subject.model_type} as {_stored(subject)}"
    style = (files(__package__) / "graph.css").read_text()
    sections = (
        page_graph.graph(subject),
        _sizes(subject),
        page_accuracy.rounding(subject, found),
        page_accuracy.accuracy(found),
        page_speed.speed(found),
        page_speed.memory(subject, found),
        _recipe(subject, found),
    )
    footer = f"deepmnn {escaped(__version__)}"
    return pieces.document(
        title, _head(name, title, subject, found) + "".join(sections), footer, style
    )


def _stored(subject: Subject) -> str:
    return as_stored(subject.quant, by_format(subject.weights))


def _head(name: str, title: str, subject: Subject, found: Findings) -> str:
    before, after = (len(shot.nodes) for shot in (subject.begin.graph, subject.graph))
    own = subject.draft_parameters
    drafts = f", {pieces.count(own)} of them in a draft part" if own else ""
    figures = [(pieces.count(subject.parameters), f"parameters{drafts}")]
    if subject.active < 0.9 * subject.parameters:
        figures.append((pieces.count(subject.active), "multiplied with each token"))
    bits = f"{8 * subject.nbytes / max(subject.parameters, 1):.2f} bits per parameter"
    figures.append((file_size(subject.nbytes), f"of weights, {bits}"))
    if before:
        fewer = pieces.percent(1 - after / before)
        figures.append((f"{before:,} → {after:,}", f"nodes, {fewer} fewer"))
    figures.append((f"{subject.context_length:,}", "tokens of context"))
    figures.append((file_size(4 * subject.cache_width), "of KV cache per token, in f32"))
    figures += page_accuracy.figures(found) + page_speed.figures(found)
    return pieces.head(title, f"{name}. {subject.form}", figures)


def _sizes(subject: Subject) -> str:
    if not subject.weights:
        rows = sorted(subject.files.items(), key=lambda item: (-item[1], item[0]))
        table = pieces.table(("file", "size"), [(file, file_size(n)) for file, n in rows])
        return pieces.section("Sizes", "Files of the model.", table)
    layers = _layers(subject.weights, subject.draft_layers)
    body = f'<div class="pair">{_roles(subject.weights)}{layers}</div>'
    return pieces.section("Sizes", "", f"{body}{sizes(subject.weights)}")


def _roles(weights: Sequence[WeightFacts]) -> str:
    """Bytes of each role, by format."""
    nbytes: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for weight in weights:
        nbytes[weight.role][weight.format] += weight.nbytes
    rows = [
        (
            role,
            [
                Bar(format, size, f"{role}: {file_size(size)} in {format}")
                for format, size in sorted(found.items(), key=lambda item: -item[1])
            ],
        )
        for role, found in sorted(nbytes.items(), key=lambda item: -sum(item[1].values()))
    ]
    drawn = charts.row_bars(rows, lambda size: file_size(int(size)), "Bytes of each role by format")
    return pieces.card("By role", drawn, "stored bytes", _key(weights))


def _layers(weights: Sequence[WeightFacts], drafts: str) -> str:
    """Bytes of each layer, by format. drafts: layers of the draft part."""
    layers = 1 + max((weight.layer for weight in weights if weight.layer is not None), default=-1)
    nbytes: list[dict[str, int]] = [defaultdict(int) for _ in range(layers)]
    for weight in weights:
        if weight.layer is not None:
            nbytes[weight.layer][weight.format] += weight.nbytes
    order = _formats(weights)
    bars = [
        [
            Bar(format, size, f"layer {layer}: {file_size(size)} in {format}")
            for format, size in sorted(found.items(), key=lambda item: order.index(item[0]))
        ]
        for layer, found in enumerate(nbytes)
    ]
    drawn = charts.layer_bars(bars, pieces.short_size, "Bytes of each layer by format")
    words = "stored bytes" + (f"; {drafts} is the draft part" if drafts else "")
    return pieces.card("By layer", drawn, words, _key(weights))


def _formats(weights: Sequence[WeightFacts]) -> list[str]:
    return sorted({w.format for w in weights}, key=lambda name: (named(name).bits, name))


def _key(weights: Sequence[WeightFacts]) -> str:
    return pieces.key((name, name) for name in _formats(weights))


def _recipe(subject: Subject, found: Findings) -> str:
    recorded = found.recorded
    words = f"Recipe {subject.quant}, optimisation level {subject.optimize_level}."
    if recorded is not None and recorded.source:
        words += f" Converted from {recorded.source}."
    calibration = recorded.calibration if recorded else None
    body = "" if subject.recipe is None else recipe(subject.recipe)
    if calibration is not None:
        words += (
            f" {calibration.tensors:,} matrices were rounded by what they do to "
            f"{calibration.samples:,} samples, {calibration.tokens:,} tokens."
        )
        if calibration.scarce:
            said = f"{len(calibration.scarce):,} matrices that hardly a token reached"
            body += (
                f'<details><summary class="warn">{said} are rounded to nearest</summary>'
                f"{pieces.names(calibration.scarce)}</details>"
            )
    kept = [name for name in _formats(subject.weights) if named(name).is_kept]
    if kept:
        words += f" Codes of the checkpoint are kept in {', '.join(kept)}."
    return pieces.section("Recipe and calibration", words, body)
