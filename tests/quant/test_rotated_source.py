"""Rotated models: transformers' logits, from weights that round better."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deepmnn
from deepmnn.conversion.convert import plan_conversion
from deepmnn.conversion.plan import Plan, plan
from deepmnn.conversion.write import write
from deepmnn.models import build
from deepmnn.quant.recipe import recipe_of
from deepmnn.quant.rotated_source import RotatedSource, is_rotatable
from deepmnn.quant.rotation import rotate
from tiny_models import CONFIGS, TinyModel, checkpoint_of

IDS = [3, 5, 90, 17, 41, 8, 8, 60]
WHOLE: dict[str, Any] = {"hidden_size": 96, "head_dim": 32, "tie_word_embeddings": False}
LATENT = {key: WHOLE[key] for key in ("hidden_size", "tie_word_embeddings")}
LATENT |= {"q_lora_rank": 64, "kv_lora_rank": 32, "v_head_dim": 32}
CASES = [
    *(("llama", 0, WHOLE), ("llama", 2, WHOLE), ("qwen2", 0, WHOLE), ("qwen3", 0, WHOLE)),
    *(("deepseek", index, WHOLE) for index in (0, 1, 3)),
    *(("deepseek_v2", index, LATENT) for index in range(4)),
    ("deepseek_v2", 1, LATENT | {"q_lora_rank": None}),
    *(("deepseek_v3", index, LATENT) for index in range(4)),
    ("deepseek_v3", 0, {"hidden_size": 64, "tie_word_embeddings": False}),  # latents of 18
    ("deepseek_v3", 0, LATENT | {"hidden_size": 36}),  # only inside of attention
]


def made(name: str, index: int, fields: dict[str, Any], folder: Path) -> tuple[TinyModel, Plan]:
    """A checkpoint, and its rotated model."""
    tiny = checkpoint_of(name, CONFIGS[name][index] | fields, folder / "hf")
    exact = plan_conversion(tiny.path, "fp32")
    assert is_rotatable(exact.naive)
    return tiny, plan(RotatedSource(exact.source), recipe_of("fp32"))


@pytest.mark.parametrize(("name", "index", "fields"), CASES)
def test_the_logits_are_those_of_transformers(
    name: str, index: int, fields: dict[str, Any], tmp_path: Path
) -> None:
    tiny, rotated = made(name, index, fields, tmp_path)
    found = deepmnn.load(write(rotated, tmp_path / "model")).logits(IDS)
    want = tiny.logits(IDS)
    np.testing.assert_allclose(found, want, atol=2e-5 * float(np.abs(want).max()))


def test_weights_have_other_numbers(tmp_path: Path) -> None:
    """Else the logits would prove nothing."""
    tiny, rotated = made("deepseek_v3", 0, LATENT, tmp_path)
    source = rotated.source
    same = [name for name in source.names() if np.array_equal(source.read(name), tiny.read(name))]
    left = ("q_norm", "k_norm", "e_score_correction_bias", "model.layers.2.")
    assert [name for name in same if not any(part in name for part in left)] == []
    for name in ("model.norm.weight", "model.layers.1.self_attn.kv_a_layernorm.weight"):
        np.testing.assert_array_equal(source.read(name), 1)
    table = "model.embed_tokens.weight"
    np.testing.assert_allclose(source.read(table), rotate(tiny.read(table)), atol=1e-6)


def test_no_column_is_larger_than_others(tmp_path: Path) -> None:
    """What a column of large numbers costs when it is rounded, a rotated matrix does not pay."""
    tiny, _ = made("llama", 0, WHOLE, tmp_path)
    source = plan_conversion(tiny.path, "fp32").source
    name = "model.layers.0.self_attn.q_proj.weight"
    w = source.read(name).copy()
    w[:, 7] *= 50

    class Outlier(type(source)):  # type: ignore[misc]
        def __init__(self) -> None:
            self.__dict__.update(source.__dict__)

        def read(self, asked: str) -> np.ndarray:
            return w if asked == name else source.read(asked)

    turned = RotatedSource(Outlier()).read(name)
    assert np.abs(w).max() / w.std() > 3 * np.abs(turned).max() / turned.std()


def test_a_tied_head_is_not_rotatable() -> None:
    config = CONFIGS["llama"][1] | {"model_type": "llama"}
    assert config["tie_word_embeddings"]
    assert not is_rotatable(build(config))
