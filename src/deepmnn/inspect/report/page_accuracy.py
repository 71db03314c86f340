"""What rounding did to the weights, and to what the model expects of texts."""

from __future__ import annotations

from collections.abc import Sequence

from deepmnn.conversion.report import charts, pieces
from deepmnn.conversion.report.charts import Line
from deepmnn.conversion.report.facts import Judged as HeldOut
from deepmnn.conversion.report.facts import WeightFacts
from deepmnn.conversion.report.page import worst
from deepmnn.inspect.report import errors
from deepmnn.inspect.report.findings import Findings, Judged
from deepmnn.inspect.report.subject import Subject
from deepmnn.measure.judge import Perplexity

_COLOURS = 8


def figures(found: Findings) -> list[tuple[str, str]]:
    """For the head of the page."""
    if found.judged is not None and found.judged.judgement.divergence is not None:
        divergence = found.judged.judgement.divergence
        return [(f"{divergence.mean:.3g}", f"KL divergence from {found.judged.reference}")]
    held = found.recorded.judged if found.recorded else None
    return [] if held is None else [(f"{held.kl:.3g}", "KL divergence on held-out text")]


def rounding(subject: Subject, found: Findings) -> str:
    """The errors of the weights by layer and role."""
    weights = found.errors or (found.recorded.weights if found.recorded else ())
    roles = errors.by_role(weights)
    if not roles:
        if not subject.weights:
            return ""
        words = (
            "Not known: nothing is converted yet, or the conversion kept no report. Give the "
            "checkpoint as the reference, and the stored numbers are compared with its."
        )
        return pieces.section("Rounding", words, "")
    words = (
        "Root mean square of what rounding changed, over that of the numbers, "
        + (
            f"measured against {found.errors_from}."
            if found.errors
            else "as the conversion saw it."
        )
        + " Several matrices together count by how many numbers they have. A calibration makes "
        "outputs better and this error larger."
    )
    total = errors.together("all", weights)
    rows = [
        (one.name, _formats(weights, one.name), f"{one.count:,}", pieces.percent(one.error))
        for one in [*roles, *([total] if total else [])]
    ]
    columns = ("weights", "stored as", "measured", "error")
    table = pieces.table(columns, rows, {len(roles): "total"})
    drawn = _by_layer(weights, [one.name for one in roles])
    return pieces.section("Rounding", words, drawn + table) + worst(weights)


def _by_layer(weights: Sequence[WeightFacts], roles: Sequence[str]) -> str:
    layers = 1 + max((weight.layer for weight in weights if weight.layer is not None), default=-1)
    lines, key = [], []
    for index, role in enumerate(roles):
        points = [point for point in errors.by_layer(weights, role) if point[1] > 0]
        if points:
            style = f"c{index % _COLOURS}"
            lines.append(Line(style, points, pieces.at_layer(f"{role} ", pieces.percent)))
            key.append((role, style))
    if not lines:
        return ""
    label = "Error of the weights by layer"
    drawn = charts.layer_lines(lines, layers, label, pieces.percent, None, charts.WIDE)
    return f'<div class="wide">{pieces.card("By layer", drawn, "", pieces.key(key))}</div>'


def _formats(weights: Sequence[WeightFacts], role: str) -> str:
    used = {w.format: None for w in weights if w.role == role and w.error is not None}
    return ", ".join(used)


def accuracy(found: Findings) -> str:
    """Perplexity and divergence."""
    held = found.recorded.judged if found.recorded else None
    if found.judged is not None:
        return _judged(found.judged)
    if held is not None:
        return _held_out(held)
    words = (
        "Not measured. Give a text, and the page has the model's perplexity on it; give the "
        "checkpoint as the reference, and it has the KL divergence from it as well."
    )
    return pieces.section("Accuracy", words, "")


def _judged(found: Judged) -> str:
    judgement = found.judgement
    words = (
        f"{judgement.tokens:,} tokens of {found.texts}, in {judgement.pieces:,} pieces, each in a "
        "context of its own."
    )
    rows = []
    if found.is_language:
        rows.append(_perplexity("perplexity", judgement.model))
        if judgement.reference is not None:
            rows.append(_perplexity(f"perplexity of {found.reference}", judgement.reference))
        if judgement.perplexity_ratio is not None:
            rows.append(("the first over the second", f"{judgement.perplexity_ratio:.4f}", ""))
    divergence = judgement.divergence
    if divergence is not None:
        words += f" KL divergence is that from {found.reference}, in nats for each token."
        mean_error = f"± {divergence.mean_error:.2g}"
        rows.append(("KL divergence, mean", f"{divergence.mean:.4g}", mean_error))
        rows.append(("99 % of the tokens are below", f"{divergence.percentile_99:.4g}", ""))
        rows.append(("largest", f"{divergence.largest:.4g}", ""))
        same = pieces.percent(divergence.same_first_choice)
        rows.append(("tokens with the same first choice", same, ""))
    return pieces.section("Accuracy", words, pieces.table(("", "", ""), rows))


def _perplexity(name: str, found: Perplexity) -> tuple[str, str, str]:
    return name, f"{found.perplexity:.4g}", f"± {found.perplexity_error:.2g}"


def _held_out(found: HeldOut) -> str:
    words = (
        f"From the checkpoint, on {found.tokens:,} tokens of text that no weight was rounded by, "
        "as the conversion measured it."
    )
    rows = [
        ("KL divergence, mean, in nats", f"{found.kl:.4g}"),
        ("99 % of the tokens are below", f"{found.kl_99:.4g}"),
        ("tokens with the same first choice", pieces.percent(found.same_first_choice)),
    ]
    return pieces.section("Accuracy", words, pieces.table(("", ""), rows))
