"""DeepSeek-MoE-16B (arXiv:2401.06066), as the hub's modeling_deepseek.py has it."""

from __future__ import annotations

from dataclasses import dataclass

from deepmnn.graph.ir import Graph
from deepmnn.models.config import MAX_LAYERS, bounded
from deepmnn.models.decoder import decoder
from deepmnn.models.fields import supported
from deepmnn.models.gqa import GroupedQueryAttention, check_heads
from deepmnn.models.moe import FeedForward, MoeConfig, Routing


@dataclass(frozen=True)
class DeepseekConfig(MoeConfig):
    """The hub's DeepseekConfig."""

    vocab_size: int = 102400
    num_hidden_layers: int = bounded(30, 1, MAX_LAYERS)
    num_key_value_heads: int | None = 32
    attention_bias: bool = False

    def check(self) -> None:
        """Raises ConfigError when the fields contradict one another."""
        super().check()
        supported("scoring_func", self.scoring_func, "softmax")
        check_heads(self, None)


CONFIG = DeepseekConfig


def build(c: DeepseekConfig) -> Graph:
    """The graph of a config."""
    attention = GroupedQueryAttention(
        c.num_attention_heads,
        c.kv_heads,
        check_heads(c, None),
        c.rope_parameters,
        qkv_bias=c.attention_bias,
        o_bias=c.attention_bias,
    )
    routing = Routing("softmax", c.top_k, c.normalize)
    return decoder("deepseek", c, attention, FeedForward(c, routing)).graph
