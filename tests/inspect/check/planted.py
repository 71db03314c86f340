"""Faults of a model builder, planted where the graph is written, and models that have them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deepmnn.conversion.convert import convert
from deepmnn.exporters.mnn.export import export
from deepmnn.graph.builder import GraphBuilder
from deepmnn.inspect.check.checks import check
from deepmnn.inspect.check.line import Line
from deepmnn.models.mla import MlaConfig
from tiny_models import CONFIGS, LLAMA, YARN, checkpoint_of

Plant = Callable[[pytest.MonkeyPatch], None]

YARN_MLA = {"rope_parameters": YARN | {"rope_theta": 1e4, "mscale": 1.0, "mscale_all_dim": 0.5}}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", LLAMA | {"rms_norm_eps": 1e-5}),
    "llama yarn": ("llama", CONFIGS["llama"][4] | {"rms_norm_eps": 1e-5}),
    "qwen3": ("qwen3", CONFIGS["qwen3"][1] | {"rms_norm_eps": 1e-5}),
    "deepseek_v2": ("deepseek_v2", CONFIGS["deepseek_v2"][2] | {"rms_norm_eps": 1e-5} | YARN_MLA),
    "deepseek_v3": ("deepseek_v3", CONFIGS["deepseek_v3"][0] | {"rms_norm_eps": 1e-5}),
}


def _replace(patch: pytest.MonkeyPatch, method: str, **changes: Callable[[Any], Any]) -> None:
    """Calls a method of the builder with some arguments changed."""
    plain = getattr(GraphBuilder, method)
    names = plain.__code__.co_varnames

    def changed(self: GraphBuilder, *args: Any, **kwargs: Any) -> Any:
        given = dict(zip(names[1:], args, strict=False)) | kwargs
        for name, change in changes.items():
            given[name] = change(given[name])
        return plain(self, **given)

    patch.setattr(GraphBuilder, method, changed)


def wrong_pairs(patch: pytest.MonkeyPatch) -> None:
    """Half rotation for interleaved pairs, and the other way round."""
    _replace(patch, "rope", interleaved=lambda value: not value)


def no_mscale(patch: pytest.MonkeyPatch) -> None:
    """YaRN's factor of cos and sin is left out."""
    _replace(patch, "rope", rope_scale=lambda value: 1.0)


def no_softmax_mscale(patch: pytest.MonkeyPatch) -> None:
    """YaRN's factor of DeepSeek's softmax scale is left out."""
    plain = property(lambda c: float(c.qk_nope_head_dim + c.qk_rope_head_dim) ** -0.5)
    patch.setattr(MlaConfig, "softmax_scale", plain)


def other_base(patch: pytest.MonkeyPatch) -> None:
    """rope_theta is 10 % less."""
    power = math.log(0.9e4) / math.log(1e4)
    _replace(patch, "rope", inv_freq=lambda values: tuple(f**power for f in values))


def small_eps(patch: pytest.MonkeyPatch) -> None:
    """1e-6 for 1e-5."""
    _replace(patch, "rms_norm", eps=lambda value: 1e-6)


def biased_weights(patch: pytest.MonkeyPatch) -> None:
    """The correction bias counts in the weights, too."""
    bias_add, gather = GraphBuilder.bias_add, GraphBuilder.gather
    seen = {}

    def add(self: GraphBuilder, x: str, name: str) -> str:
        seen[id(self)] = bias_add(self, x, name)
        return seen[id(self)]

    def take(self: GraphBuilder, x: str, indices: str, name: str) -> str:
        return gather(self, seen[id(self)], indices, name)

    patch.setattr(GraphBuilder, "bias_add", add)
    patch.setattr(GraphBuilder, "gather", take)


def other_groups(patch: pytest.MonkeyPatch) -> None:
    """The best score of a group for the sum of its two best, and the other way round."""
    other = {"max": "top2_sum", "top2_sum": "max"}
    _replace(patch, "group_limit", group_score=other.__getitem__)


def no_factor(patch: pytest.MonkeyPatch) -> None:
    """routed_scaling_factor is left out."""
    patch.setattr(GraphBuilder, "scale", lambda self, x, name, factor: x)


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
