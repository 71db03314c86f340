"""Faults that tests plant, in the model files and in checkpoints."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from deepmnn.graph.builder import GraphBuilder
from deepmnn.models.mla import MlaConfig
from tiny_models import CONFIGS, checkpoint_of

V2, V3, GQA = "deepseek_v2", "deepseek_v3", "qwen2"
SMALL_EPS = {"rms_norm_eps": 1e-5}
YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "mscale": 1.0,
    "mscale_all_dim": 0.7,
}
Plant = Callable[[pytest.MonkeyPatch], None]


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


def source_of(path: Path, model_type: str, **fields: Any) -> Path:
    config = CONFIGS[model_type][0] | {"num_hidden_layers": 3} | fields
    checkpoint_of(model_type, config, path)
    if (
        fields == SMALL_EPS
    ):  # an embedding so small that eps matters, as those of trained models are
        return changed(
            path, path.with_name("small"), {"model.embed_tokens.weight": lambda w: w / 9}
        )
    return path


def shaken(w: np.ndarray) -> np.ndarray:
    w = w.copy()
    w[16:32] += np.random.default_rng(0).normal(0, w.std(), w[16:32].shape).astype(w.dtype)
    return w


def changed(source: Path, target: Path, how: dict[str, Callable[[Any], Any]]) -> Path:
    """A copy of a checkpoint with some tensors changed."""
    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    save_file(
        {n: how.get(n, np.asarray)(w) for n, w in tensors.items()}, target / "model.safetensors"
    )
    return target
