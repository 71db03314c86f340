"""Checkpoint → artifact in one call: open, plan, calibrate, write."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepmnn import models
from deepmnn.conversion.budget import Budget
from deepmnn.conversion.bundled import NAME, bundled_checkpoint
from deepmnn.conversion.calibrate import Calibration
from deepmnn.conversion.carry_out import carry_out, choose
from deepmnn.conversion.plan import Plan, plan
from deepmnn.conversion.report.facts import Search
from deepmnn.conversion.report.recorder import HTML, Recorder
from deepmnn.conversion.write import Progress
from deepmnn.errors import RequestError, Words
from deepmnn.graph.levels import MAX_LEVEL, OnPass, PassResult
from deepmnn.quant.divergence import Divergence
from deepmnn.quant.recipe import DEFAULT, Recipe, recipe_of
from deepmnn.quant.recipe_file import SUFFIXES
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
        dropped: weights that config.json promises and the checkpoint lacks (of a draft part).
        unused: tensors that the checkpoint has and the model does not read.
        calibration: what the weights were rounded by; None: each to the nearest number, or none
            was rounded, as where a checkpoint's own codes are kept.
        held_out: how far its predictions are from the checkpoint's, on samples of the calibration
            that nothing was rounded by.
        search: what a budget weighed.
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
    held_out: Divergence | None
    search: Search | None
    report: Path | None
    seconds: float


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    quant: str | Recipe | None = None,
    optimize_level: int = MAX_LEVEL,
    *,
    config: str | os.PathLike[str] | None = None,
    target_kl: float | None = None,
    target_bpw: float | None = None,
    max_bytes: int | None = None,
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
        source: a checkpoint directory, a PyTorch file (.pt, .pth, .bin, .ckpt), "tiny-r1", or the
            hub's OWNER/NAME or OWNER/NAME@REVISION, which is downloaded; with random_weights a
            directory with config.json, or that file itself, is enough.
        out: the directory to create.
        quant: "w8" (the default), "w6", "w5", "w4", "w3", "bf16" or "fp32", or a recipe of your
            own (quant/recipe.py). Instead, one of
        target_kl: the fewest bytes whose predictions diverge so much on held-out text, at most: a
            mean in nats, 0.02 say.
        target_bpw: the least divergence in so many bits for each number of the model.
        max_bytes: the least divergence in so many bytes of weights.
        optimize_level: 0 (the graph as the paper writes it) to 3.
        config: a config.json, or its directory, to use instead of the one beside the weights.
        calibration: what to round the weights by: a file of texts or conversations
            (docs/calibration.md), True for the set that comes with deepmnn, False for rounding
            each to the nearest number. None: the set where codes have fewer than 8 bits and the
            checkpoint has a tokenizer.
        samples: of the calibration, at most.
        random_weights: weights drawn at random, for benchmarks; quantised, most of them are drawn
            in their stored form, so another optimisation level is another model.
        seed: of the random weights; of which samples are taken, in which order, and held out.
        overwrite: replaces an artifact at `out`.
        report: writes report.html and report.json with the artifact.
        progress: called with (bytes done, bytes in all, what) while a checkpoint is downloaded,
            and after each weight that is converted.

    Raises CheckpointError, ConfigError, RequestError (quant, level or seed) or
    StorageError.
    """
    began = time.monotonic()
    budget = chosen_budget(quant, target_kl, target_bpw, max_bytes)
    made = plan_conversion(
        source,
        quant or DEFAULT,
        optimize_level,
        config=config,
        random_weights=random_weights,
        seed=seed,
        progress=progress,
    )
    chosen = choose(made, calibration, samples, budget, seed)
    recorder = Recorder(made.source) if report else None
    done = carry_out(made, out, chosen, budget, overwrite, progress, recorder)
    made = done.plan
    return ConvertReport(
        path=done.path,
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
        calibration=done.calibration,
        held_out=done.held_out,
        search=done.search,
        report=done.path / HTML if report else None,
        seconds=time.monotonic() - began,
    )


def chosen_budget(
    quant: str | Recipe | None,
    target_kl: float | None,
    target_bpw: float | None,
    max_bytes: int | None,
) -> Budget | None:
    """What was asked for, None for a recipe. Raises RequestError for more than one wish."""
    given = {"target_kl": target_kl, "target_bpw": target_bpw, "max_bytes": max_bytes}
    wishes = [name for name, value in given.items() if value is not None]
    if not wishes:
        return None
    if quant is not None or len(wishes) > 1:
        if quant is not None:
            is_file = isinstance(quant, str) and quant.endswith(SUFFIXES)
            wishes.insert(0, "recipe" if is_file else "quant")
        flags = ["--" + wish.replace("_", "-") for wish in wishes]
        raise RequestError(
            Words(" and ".join(wishes), " and ".join(flags)),
            "one of them: the formats follow from it",
        )
    return Budget(target_kl, target_bpw, max_bytes)


def plan_conversion(
    source: str | os.PathLike[str],
    quant: str | Recipe = DEFAULT,
    optimize_level: int = MAX_LEVEL,
    *,
    config: str | os.PathLike[str] | None = None,
    random_weights: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
    on_pass: OnPass | None = None,
) -> Plan:
    """What `convert` with these arguments would write; it raises the same errors.

    progress: called while a checkpoint of the hub is downloaded. on_pass: as for `optimize`.
    """
    recipe = recipe_of(quant)
    random = RandomWeights(_shapes, seed)  # a wrong seed is refused even where nothing is drawn
    bundled = source == NAME and not os.path.lexists(source)
    path = bundled_checkpoint() if bundled else fetched(source, random_weights, progress)
    opened = open_source(path, config, random if random_weights else None)
    return plan(opened, recipe, optimize_level, on_pass=on_pass)


def _shapes(config: Mapping[str, Any]) -> Shapes:
    return models.build_parts(config).shapes
