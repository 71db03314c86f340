"""Frequencies against transformers; DeepSeek's own factors against its published formulas."""

import math
from typing import Any

import numpy as np
import pytest
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from deepmnn.errors import ConfigError
from deepmnn.models import deepseek_v3
from deepmnn.models.mla import rope_scale
from deepmnn.models.rope import RopeParameters
from tiny_models import LLAMA, MLA

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}
SCALINGS: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 4.0},
    LLAMA3,
    LLAMA3 | {"factor": 32.0, "low_freq_factor": 0.5, "original_max_position_embeddings": 100},
    YARN,
    {"rope_type": "yarn", "factor": 4.0},  # the original length: max_position_embeddings
    {name: value for name, value in LLAMA3.items() if name != "original_max_position_embeddings"},
    YARN | {"factor": None},  # the ratio of the lengths
    YARN | {"beta_fast": None, "beta_slow": None, "mscale": None, "attention_factor": None},
    YARN | {"factor": 1.0},
    YARN | {"beta_fast": 4, "beta_slow": 2, "original_max_position_embeddings": 64},
    YARN | {"truncate": False, "factor": 2.5},
    YARN | {"attention_factor": 0.7},
    YARN | {"mscale": 1.0, "mscale_all_dim": 0.5},
]


@pytest.mark.parametrize("head_dim", [2, 6, 10, 64, 128])
@pytest.mark.parametrize("theta", [1e4, 5e5])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_frequencies_are_those_of_transformers(
    scaling: dict[str, Any], theta: float, head_dim: int
) -> None:
    parameters = scaling | {"rope_theta": theta}
    config = transformers.LlamaConfig(
        **LLAMA | {"head_dim": head_dim, "max_position_embeddings": 1 << 18},
        rope_parameters=dict(parameters),
    )
    inv_freq, scale = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config)
    rope = RopeParameters.from_dict({"rope_parameters": parameters}, 1 << 18)
    np.testing.assert_allclose(rope.inv_freq(head_dim), inv_freq.numpy(), rtol=2e-6)
    assert rope.rope_scale() == pytest.approx(scale)


def test_attn_factor_multiplies_the_temperature() -> None:
    """YaRN's own code (jquesnelle/yarn): mscale = (0.1 ln factor + 1) · attn_factor.

    DeepSeek-R1-0528-Qwen3-8B gives the factor that makes it 1; transformers does not read it.
    """
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}

    def scale(**fields: Any) -> float:
        return RopeParameters.from_dict({"rope_scaling": yarn | fields}, 32768).rope_scale()

    assert scale(attn_factor=0.8782488562869419) == pytest.approx(1.0)
    assert scale(attn_factor=0.5) == pytest.approx(0.5 * (0.1 * math.log(4) + 1))
    assert scale(attn_factor=None) == scale(attn_factor=1) == scale()
    assert scale(attn_factor=0.5, attention_factor=0.7) == 0.7  # transformers' field says it all
    with pytest.raises(ConfigError, match="attn_factor is 'x'"):
        scale(attn_factor="x")


def test_default_frequencies() -> None:
    rope = RopeParameters.from_dict({"rope_theta": 10000}, 4096)
    assert rope.inv_freq(4) == pytest.approx((1.0, 0.01))
    assert rope.rope_scale() == 1.0


@pytest.mark.parametrize(
    ("mscale", "all_dim"), [(None, None), (1.0, 1.0), (0.707, 0.707), (0.5, None), (None, 0.8)]
)
def test_deepseek_factors(mscale: float | None, all_dim: float | None) -> None:
    """modeling_deepseek.py: mscale defaults to 1 and mscale_all_dim to 0, each on its own.

    transformers uses them only together: with mscale 0.5 alone it scales cos and sin by
    0.1 ln 40 + 1 where DeepSeek scales by 0.05 ln 40 + 1.
    """
    given = {"mscale": mscale, "mscale_all_dim": all_dim}
    scaling = YARN | {name: value for name, value in given.items() if value is not None}
    config = deepseek_v3.DeepseekV3Config.from_dict(
        MLA | {"n_group": 1, "topk_group": 1, "rope_scaling": scaling}
    )
    log = 0.1 * math.log(40)
    numerator = log * (1.0 if mscale is None else mscale) + 1
    denominator = log * (all_dim or 0.0) + 1
    assert rope_scale(config.rope_parameters) == pytest.approx(numerator / denominator)
    softmax_scale = (10 + 6) ** -0.5 * (denominator**2 if all_dim else 1.0)
    assert config.softmax_scale == pytest.approx(softmax_scale)
