"""What a comparison says, in a few figures and words: the terminal and the page show the same."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from deepmnn.graph.stages import LAYER
from deepmnn.inspect.compare.compare import LOGITS, Compared
from deepmnn.inspect.compare.comparison import Comparison
from deepmnn.inspect.compare.difference import percent
from deepmnn.inspect.compare.effects import CALM_SHARE, Calm, Effect
from deepmnn.inspect.compare.findings import Finding

BOUND = 0.01
"""Relative error from which on a value is named, unless it is said."""

NOTHING = 1e-6
"""KL divergence, in nats, that roundings of float32 explain."""

MUCH = 0.5
"""KL divergence, in nats, from which on further errors change little."""

LEAST_SHARE, MOST_SHARE = 0.7, 1.3
"""Of the whole KL divergence: between them the sum of the layers' effects explains it."""


@dataclass(frozen=True)
class LayerSummary:
    """A decoder layer, or what comes before the first, or after the last.

    Attributes:
        name: "embeddings", "layer 3", "predictions".
        stream: the last value of it: the residual stream behind a layer; the logits.
        worst: the value with the largest error of its own; None where no node ran alone.
        effect: on the predictions; None where it was not measured.
    """

    name: str
    stream: Compared
    worst: Compared | None
    effect: Effect | None


def by_layer(found: Comparison) -> list[LayerSummary]:
    """Of each place of which both models tell a value, in order."""
    groups: dict[int, list[Compared]] = {}
    for each in found.values:
        groups.setdefault(each.layer, []).append(each)
    effects = {effect.layer: effect for effect in found.effects}
    made = []
    for layer, values in groups.items():
        alone = [(own.error, value) for value in values if (own := value.alone) is not None]
        worst = max(alone, key=lambda pair: pair[0], default=(0.0, None))[1]
        name = _layer_name(layer, found.layers)
        made.append(LayerSummary(name, values[-1], worst, effects.get(layer)))
    return made


def first_past(found: Comparison, bound: float) -> Compared | None:
    """The first value whose error is not within a bound."""
    return next((each for each in found.values if not each.difference.error <= bound), None)


def past_words(found: Comparison, value: Compared) -> list[str]:
    """What grew there: its own error, and that of what it reads."""
    origin = value.origin
    formats = f" in {', '.join(origin.formats)}" if origin.formats else ""
    words = [f"{value.name} ({origin.op}{formats}) is off by {percent(value.difference.error)}"]
    if value.alone is not None:
        explained = percent(origin.bound)
        words.append(
            f"{percent(value.alone.error)} of its own; rounding explains up to {explained}"
        )
    errors = {each.name: each.difference.error for each in found.values}
    words += [f"it reads {name}, off by {percent(errors[name])}" for name in origin.reads]
    return words


def alike(findings: Sequence[Finding]) -> list[tuple[Finding, str]]:
    """Findings that say the same of several layers once, each with words for its place."""
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for each in findings:
        groups.setdefault((each.kind, kind_of(each.place), each.text), []).append(each)
    return [(group[0], _place_words(group)) for group in groups.values()]


def _place_words(group: Sequence[Finding]) -> str:
    more = f" and in {len(group) - 1} more layers" if len(group) > 1 else ""
    return group[0].place + more.removesuffix("s" if len(group) == 2 else "")


def logits_error(found: Comparison) -> float | None:
    """Relative; None where a model does not tell them."""
    return next((each.difference.error for each in found.values if each.name == LOGITS), None)


def is_past(found: Comparison, bound: float) -> bool:
    """Whether the logits, or the last value that both tell, are not within a bound."""
    error = logits_error(found)
    if error is None and found.values:
        error = found.values[-1].difference.error
    return error is not None and not error <= bound


def sum_of_effects(found: Comparison) -> float:
    """Of each layer alone, in nats."""
    return math.fsum(effect.alone for effect in found.effects)


def effect_words(found: Comparison) -> list[str]:
    """What the sum of the layers' effects means beside the whole; nothing where it is not known."""
    if not found.effects or found.divergence is None or found.calm is None:
        return []
    whole, total, calm = found.divergence.mean, sum_of_effects(found), found.calm
    if max(whole, total) < NOTHING:
        return ["The predictions are the same but for rounding of float32."]
    worst = max(found.effects, key=lambda effect: effect.alone)
    where = "What follows the last layer" if worst.layer >= found.layers else f"Layer {worst.layer}"
    return [
        f"Alone, the layers' effects sum to {total:.3g}; the whole is {whole:.3g}.",
        f"Of the {CALM_SHARE:.0%} of tokens that change least they sum to {calm.alone:.3g}; the "
        f"whole is {calm.whole:.3g}.",
        _meaning(total / whole if whole else math.inf, calm, whole),
        f"{where} does most, {percent(worst.alone / total)} of the sum.",
    ]


def _meaning(share: float, calm: Calm, whole: float) -> str:
    most = calm.alone / calm.whole if calm.whole > 0 else 1.0
    if LEAST_SHARE <= share <= MOST_SHARE:
        return "They add up to the whole, so a layer's own effect counts."
    if LEAST_SHARE <= most <= MOST_SHARE:
        return (
            "They add up but for a few tokens, where a choice flips (of experts, say): one flip "
            "does as much harm as two."
        )
    if whole > MUCH:
        return "The predictions are too far off for effects to add up."
    if most > MOST_SHARE:
        return (
            "Together they do less harm than alone: later layers correct earlier ones, as "
            "calibration makes them, or the same tokens flip in several layers."
        )
    return "Together they do more harm than alone: their errors amplify one another."


def kind_of(name: str) -> str:
    """What a value is in any layer: "self_attn.q_proj"; experts are one kind."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", LAYER.sub("", name).lstrip("."))


def kinds(values: Sequence[Compared]) -> dict[str, list[Compared]]:
    """Values of layers by what they are, in the order of the first layer that has one."""
    found: dict[str, list[Compared]] = {}
    for each in values:
        if LAYER.match(each.name):
            found.setdefault(kind_of(each.name), []).append(each)
    return found


def read_words(found: Comparison) -> str:
    """How much of what was compared."""
    samples = "1 sample" if found.samples == 1 else f"{found.samples} samples"
    layers = "1 layer" if found.layers == 1 else f"{found.layers} layers"
    return f"{found.tokens:,} tokens in {samples}, {layers}, {len(found.values):,} values"


def _layer_name(layer: int, count: int) -> str:
    if layer < 0:
        return "embeddings"
    return "predictions" if layer >= count else f"layer {layer}"
