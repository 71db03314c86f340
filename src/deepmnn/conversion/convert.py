"""Checkpoint → artifact in one call: open, plan, calibrate, write."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepmnn import models
from deepmnn.conversion.calibrate import Calibration
from deepmnn.conversion.carry_out import carry_out, choose
from deepmnn.conversion.plan import Plan, plan
from deepmnn.conversion.report.recorder import HTML, Recorder
from deepmnn.conversion.write import Progress
from deepmnn.graph.levels import MAX_LEVEL, PassResult
from deepmnn.graph.tensors import tensor_shapes
from deepmnn.quant.recipe import DEFAULT, Recipe, recipe_of
from deepmnn.source.hub import fetched
from deepmnn.source.open import open_source
from deepmnn.source.random import RandomWeights, Shapes
from deepmnn.text.samples import COUNT


@dataclass(frozen=True)
class ConvertReport:
    """What a conversion did.

    Attributes:
        path: the artifact.
        quant: the recipe's name.
        source_nbytes: bytes of the checkpoint's tensors (0 for random weights).
        nbytes: bytes of the artifact's weights.
        nodes_level_0, nodes: nodes of the graph as the model file builds it, and as converted.
        passes: what each pass did.
        dropped: weights that config.json promises and the checkpoint lacks (unused MTP layers).
        unused: tensors that the checkpoint has and the model does not read.
        calibration: what the weights were rounded by; None: each to the nearest number.
        report: the page that shows all this and more (docs/report.md); None: it was not wanted.
        seconds: time taken.
    """

    path: Path
    model_type: str
    quant: str
    optimize_level: int
    parameters: int
    source_nbytes: int
    nbytes: int
    nodes_level_0: int
    nodes: int
    passes: tuple[PassResult, ...]
    dropped: tuple[str, ...]
    unused: tuple[str, ...]
    calibration: Calibration | None
    report: Path | None
    seconds: float


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    quant: str | Recipe = DEFAULT,
    optimize_level: int = MAX_LEVEL,
    *,
    config: str | os.PathLike[str] | None = None,
    calibration: str | os.PathLike[str] | bool | None = None,
    samples: int = COUNT,
    random_weights: bool = False,
    seed: int = 0,
    overwrite: bool = False,
    report: bool = True,
    progress: Progress | None = None,
) -> ConvertReport:
    """Converts a checkpoint to an artifact that `deepmnn.load` runs.

    Needs memory for one weight at a time. Written to a temporary directory and renamed when
    complete: interrupted at any moment it leaves nothing that loads.

    Args:
        source: a checkpoint directory, a PyTorch file (.pt, .pth, .bin, .ckpt), or the hub's
            OWNER/NAME or OWNER/NAME@REVISION, which is downloaded; with random_weights a directory
            with config.json, or that file itself, is enough.
        out: the directory to create.
        quant: "w8", "w6", "w5", "w4", "w3", "bf16" or "fp32", or a recipe of your own
            (quant/recipe.py).
        optimize_level: 0 (the graph as the paper writes it) to 3.
        config: a config.json, or its directory, to use instead of the one beside the weights.
        calibration: what to round the weights by: a file of texts or conversations
            (docs/calibration.md), True for the set that comes with deepmnn, False for rounding
            each to the nearest number. None: the set where codes have fewer than 8 bits and the
            checkpoint has a tokenizer.
        samples: of the calibration, at most.
        random_weights: weights drawn at random, for benchmarks; quantised, most of them are drawn
            in their stored form, so another optimisation level is another model.
        seed: of the random weights.
        overwrite: replaces an artifact at `out`.
        report: writes report.html and report.json with the artifact.
        progress: called with (bytes done, bytes in all, what) while a checkpoint is downloaded,
            and after each weight that is converted.

    Raises CheckpointError, ConfigError, RequestError (quant, level or seed) or
    StorageError.
    """
    began = time.monotonic()
    made = plan_conversion(
        source,
        quant,
        optimize_level,
        config=config,
        random_weights=random_weights,
        seed=seed,
        progress=progress,
    )
    chosen = choose(made, calibration, samples)
    recorder = Recorder(made.source) if report else None
    path, calibrated = carry_out(made, out, chosen, overwrite, progress, recorder)
    return ConvertReport(
        path=path,
        model_type=made.model_type,
        quant=made.recipe.name,
        optimize_level=optimize_level,
        parameters=made.parameters,
        source_nbytes=made.source.nbytes(),
        nbytes=made.nbytes,
        nodes_level_0=made.nodes_level_0,
        nodes=made.nodes,
        passes=made.passes,
        dropped=made.dropped,
        unused=made.unused,
        calibration=calibrated,
        report=path / HTML if report else None,
        seconds=time.monotonic() - began,
    )


def plan_conversion(
    source: str | os.PathLike[str],
    quant: str | Recipe = DEFAULT,
    optimize_level: int = MAX_LEVEL,
    *,
    config: str | os.PathLike[str] | None = None,
    random_weights: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Plan:
    """What `convert` with these arguments would write; it raises the same errors.

    progress: called while a checkpoint of the hub is downloaded.
    """
    recipe = recipe_of(quant)
    random = RandomWeights(_shapes, seed)  # a wrong seed is refused even where nothing is drawn
    path = fetched(source, only_config=random_weights, progress=progress)
    opened = open_source(path, config, random if random_weights else None)
    return plan(opened, recipe, optimize_level)


def _shapes(config: Mapping[str, Any]) -> Shapes:
    return tensor_shapes(models.build(config))
