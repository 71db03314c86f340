"""What a full quantisation is checked for: the ranges of its activations, and its loss."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deepmnn.api.loading import load
from deepmnn.conversion.activations import histograms
from deepmnn.conversion.calibration_set import CalibrationSet
from deepmnn.conversion.plan import Plan
from deepmnn.conversion.write import Progress
from deepmnn.measure.judge import Judgement, judge
from deepmnn.measure.predictions import predictions
from deepmnn.measure.texts import DEFAULT_TOKENS, built_in_texts, cut
from deepmnn.quant.observers import StaticRange, static_range

PIECES = 4
"""Of each held-out text."""


@dataclass(frozen=True)
class Ranges:
    """Of every activation that a matrix multiplies, by KL divergence.

    Attributes:
        samples, tokens: what they are of.
        found: by the activation's name in the graph.
    """

    samples: int
    tokens: int
    found: Mapping[str, StaticRange]


def ranges_of(
    plan: Plan, calibration: CalibrationSet, directory: Path, progress: Progress | None = None
) -> Ranges:
    """Of the model that a plan writes.

    Args:
        directory: where there is room for what goes from layer to layer.
        progress: called after every sample.

    Raises RequestError for text or activations that cannot be used, TokenizerError without a
    tokenizer.
    """
    samples = calibration.ids(plan.source)
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        found = histograms(plan, samples, Path(folder), progress)
    ranges = {name: static_range(histogram) for name, histogram in found.items()}
    return Ranges(len(samples), sum(map(len, samples)), ranges)


def judged(reference: Path, exported: Path, progress: Progress | None = None) -> Judgement:
    """What MNN runs beside an artifact of the checkpoint, on the texts of `deepmnn eval`: they are
    in no calibration set of ours.
    """
    model, exact = load(exported), load(reference)
    size = min(DEFAULT_TOKENS, model.context_length)
    texts = built_in_texts()
    pieces = [piece for text in texts for piece in cut(model.tokenizer, text, size, PIECES)]
    return judge(predictions(model), pieces, predictions(exact), progress)
