"""The values of a model whose own weights were changed, as the model itself has them.

Rounding for MNN rotates a model's weights (quant/rotated_source.py), and scales rows of its
up-projections (smoothed_source.py). Both leave the logits as they are. What a rotation did to a
value is undone here. What norms give is lost: their weights went into the matrices that read it;
and so are the factors of a smoothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from deepmnn.backends.base import F32
from deepmnn.formats import PART_COLS
from deepmnn.graph.ir import Graph
from deepmnn.models.config import ModelConfig
from deepmnn.quant.rotated_source import ROTATED
from deepmnn.quant.rotation import unrotate
from deepmnn.quant.smoothed_source import SMOOTHED

_STREAM = ("embed_tokens", ".attention_residual", ".mlp_residual", ".o_proj", ".down_proj")
_TURNED = (*_STREAM, ".experts.combine", ".mlp.add", ".q_a_proj")
_TURNED_HEADS = (".v_proj", ".self_attn.attention")
_SCALED = (".up_proj", ".mul")
_ROUTER = tuple(
    f".mlp.gate{step}" for step in ("", ".scores", ".top_k", ".gather", ".normalize", ".scale")
)
_PROJECTED = (".q_proj", ".k_proj", ".q_b_proj", ".q_rope", ".k_rope", ".gate_proj", ".silu")
_KNOWN = (*_TURNED, *_TURNED_HEADS, *_SCALED, *_ROUTER, *_PROJECTED, "logits")
"""Endings of names."""


class Original:
    """Takes back what was done to the model that computed a value.

    Args:
        changes: those of `Source.changes`.
        graph: of the model, level 0.
        config: the model's.
    """

    def __init__(self, changes: Sequence[str], graph: Graph, config: ModelConfig) -> None:
        self._rotated, self._smoothed = ROTATED in changes, SMOOTHED in changes
        attention = graph.values["layers.0.self_attn.attention"]
        self._head = attention.width // config.num_attention_heads

    def tells(self, name: str) -> bool:
        """Whether a value of that name can be had."""
        if self._smoothed and name.endswith(_SCALED):
            return False
        return not self._rotated or name.endswith(_KNOWN)

    def value(self, name: str, value: F32) -> F32:
        """One that can, [tokens, width]."""
        in_heads = name.endswith(_TURNED_HEADS)
        width = self._head if in_heads else value.shape[1]
        if not self._rotated or not (in_heads or name.endswith(_TURNED)) or width % PART_COLS:
            return value
        return unrotate(value.reshape(-1, width)).reshape(value.shape)
