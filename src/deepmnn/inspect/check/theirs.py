"""Rotary frequencies against transformers' own code, where it is installed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from deepmnn.inspect.check.line import Line, judged, skipped
from deepmnn.inspect.check.probe import Attention, Sizes
from deepmnn.inspect.check.rope import rope_type

NAME = "RoPE frequencies against transformers"
TOLERANCE = 1e-5
"""Relative: transformers computes them in float32."""


def check_rotary(config: Mapping[str, Any], attentions: Sequence[Attention]) -> Line:
    """inv_freq of every attention's nodes, and of the function that transformers has for it."""
    if find_spec("transformers") is None or find_spec("torch") is None:
        return skipped(NAME, "transformers is not installed")
    try:
        theirs = _frequencies(config, rope_type(config))
    except Exception as fault:  # whatever a library of another version says of a config
        return skipped(NAME, f"transformers does not compute them: {fault!s:.100}")
    if theirs is None:
        return skipped(NAME, f"transformers has no model_type {config['model_type']}")
    worst = 0.0
    for attention in attentions:
        ours = np.asarray(attention.attrs.get("inv_freq", ()), np.float64)
        if ours.shape != theirs.shape:
            said = f"{ours.size} of them"
            return judged(NAME, False, said, f"{theirs.size}", "The model file is wrong.")
        worst = max(worst, float(np.abs(ours / theirs - 1).max()))
    said, expected = f"off by {worst:.1e}, relative", f"at most {TOLERANCE:g}"
    return judged(NAME, worst <= TOLERANCE, said, expected, "The model file is wrong.", worst)


def _frequencies(config: Mapping[str, Any], kind: str) -> Any:
    """As transformers computes them; None for a model that it does not know."""
    import transformers
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    if config["model_type"] not in transformers.CONFIG_MAPPING:
        return None
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        made: Any = transformers.AutoConfig.for_model(
            **{**config, "head_dim": Sizes.of(config).rotary}
        )
        if kind == "default":
            rope = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding
            found, _ = rope.compute_default_rope_parameters(made)
        else:
            found, _ = ROPE_INIT_FUNCTIONS[kind](made, "cpu")
        return np.asarray(found.double().numpy())
    finally:
        logger.setLevel(level)
