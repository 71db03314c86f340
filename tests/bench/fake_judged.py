"""A judged engine whose models are one table of logits, more or less disturbed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bench.accuracy.judged import Pieces, Stored, Task

TITLE, TIMED, NOTE = "fake", "", "for tests"
RECIPES = ("near", "far", "broken", "nan")
VOCAB = 40
NOISE = {"near": 0.1, "far": 1.0, "nan": np.nan}
NBYTES = {"near": 300, "far": 100, "nan": 50}


def exact(ids: Sequence[int]) -> np.ndarray:
    """The logits of the undisturbed model: what follows depends on the last token alone."""
    table = np.random.default_rng(0).normal(size=(VOCAB, VOCAB)).astype(np.float32)
    return table[list(ids)]


def version(source: Path | None) -> str | None:
    return "1"


def refuses(config: Mapping[str, Any], recipe: str) -> str:
    return config.get("refused", {}).get(recipe, "")


def needs(recipe: str) -> Sequence[str]:
    return () if recipe == "base" else (f"{__name__} base",)


def build(recipe: str, out: Path, task: Task) -> str:
    with (task.checkpoint / "builds.log").open("a") as log:
        log.write(f"{recipe}\n")
    if recipe == "broken":
        raise RuntimeError("no such format")
    made_from = [path.name for path in task.needed.values()]
    about = {"recipe": recipe, "needed": made_from, "calibration": task.calibration}
    (out / "model.json").write_text(json.dumps(about))
    return "model.json"


def stored(model: Path, source: Path | None) -> Stored:
    recipe = json.loads(model.read_text())["recipe"]
    return Stored(NBYTES[recipe], 10, {"embedding": "table"})


def logits(model: Path, pieces: Pieces, threads: int, source: Path | None) -> Iterator[np.ndarray]:
    recipe = json.loads(model.read_text())["recipe"]
    rng = np.random.default_rng(1)
    for ids in pieces:
        yield exact(ids) + NOISE[recipe] * rng.normal(size=(len(ids), VOCAB))
