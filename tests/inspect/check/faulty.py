"""Models with faults that a converter had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deepmnn.conversion.convert import convert
from deepmnn.exporters.mnn.export import export
from deepmnn.inspect.check.checks import check
from deepmnn.inspect.check.line import Line
from planted import Plant
from tiny_models import CONFIGS, LLAMA, YARN, checkpoint_of

YARN_MLA = {"rope_parameters": YARN | {"rope_theta": 1e4, "mscale": 1.0, "mscale_all_dim": 0.5}}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", LLAMA | {"rms_norm_eps": 1e-5}),
    "llama yarn": ("llama", CONFIGS["llama"][4] | {"rms_norm_eps": 1e-5}),
    "qwen3": ("qwen3", CONFIGS["qwen3"][1] | {"rms_norm_eps": 1e-5}),
    "deepseek_v2": ("deepseek_v2", CONFIGS["deepseek_v2"][2] | {"rms_norm_eps": 1e-5} | YARN_MLA),
    "deepseek_v3": ("deepseek_v3", CONFIGS["deepseek_v3"][0] | {"rms_norm_eps": 1e-5}),
}


def artifact(name: str, folder: Path, plant: Plant | None = None, **options: Any) -> Path:
    """One of MODELS, converted by a builder with the fault."""
    model_type, fields = MODELS[name]
    checkpoint_of(model_type, fields, folder / "checkpoint")
    return built(folder / "checkpoint", folder / "model", plant, **options)


def built(checkpoint: Path, out: Path, plant: Plant | None, **options: Any) -> Path:
    """A checkpoint, converted by a builder with the fault."""
    with pytest.MonkeyPatch.context() as patch:
        if plant is not None:
            plant(patch)
        convert(checkpoint, out, **{"quant": "w8", **options})
    return out


def exported(model: Path, out: Path) -> Path:
    """For MNN."""
    export(model, out)
    return out


def wrong(path: Path) -> dict[str, Line]:
    """The lines that are wrong, by name."""
    return {line.name: line for line in check(path) if line.verdict == "wrong"}
