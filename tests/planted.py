"""Faults that tests plant, in the model files and in checkpoints."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from deepmnn.graph.builder import GraphBuilder
from deepmnn.models import deepseek_v2, deepseek_v3, mla, rope
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


def half_rotation(patch: pytest.MonkeyPatch) -> None:
    for module in (deepseek_v2, deepseek_v3):
        patch.setattr(module, "LatentAttention", lambda c, *rest: mla.LatentAttention(c, False))


def no_mscale(patch: pytest.MonkeyPatch) -> None:
    plain = property(lambda c: float((c.qk_nope_head_dim + c.qk_rope_head_dim) ** -0.5))
    patch.setattr(mla.MlaConfig, "softmax_scale", plain)


def other_base(patch: pytest.MonkeyPatch) -> None:
    inv_freq = rope.RopeParameters.inv_freq

    def wrong(self: rope.RopeParameters, dim: int) -> tuple[float, ...]:
        return tuple(f * 1.1 ** (-2 * i / dim) for i, f in enumerate(inv_freq(self, dim)))

    patch.setattr(rope.RopeParameters, "inv_freq", wrong)


def small_eps(patch: pytest.MonkeyPatch) -> None:
    rms_norm = GraphBuilder.rms_norm

    def wrong(b: GraphBuilder, x: str, name: str, eps: float, *rest: Any) -> str:
        eps = 1e-6 if name.endswith("input_layernorm") else eps
        return rms_norm(b, x, name, eps, *rest)

    patch.setattr(GraphBuilder, "rms_norm", wrong)


def bias_in_the_weights(patch: pytest.MonkeyPatch) -> None:
    gather = GraphBuilder.gather

    def wrong(b: GraphBuilder, scores: str, indices: str, name: str) -> str:
        biased = name.replace(".gather", ".e_score_correction_bias")
        return gather(b, biased, indices, name)

    patch.setattr(GraphBuilder, "gather", wrong)


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
