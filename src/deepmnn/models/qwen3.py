"""Qwen3 (arXiv:2505.09388): R1-0528-Qwen3. Queries and keys are normed per head."""

from __future__ import annotations

from dataclasses import dataclass

from deepmnn.graph.builder import GraphBuilder
from deepmnn.graph.ir import Graph
from deepmnn.models.config import ModelConfig
from deepmnn.models.decoder import decoder, mlp
from deepmnn.models.gqa import GroupedQueryAttention, check_heads


@dataclass(frozen=True)
class Qwen3Config(ModelConfig):
    """transformers' Qwen3Config."""

    vocab_size: int = 151936
    intermediate_size: int = 22016
    num_key_value_heads: int | None = 32
    max_position_embeddings: int = 32768
    head_dim: int = 128
    attention_bias: bool = False

    def check(self) -> None:
        """Raises ConfigError when the fields contradict one another."""
        super().check()
        check_heads(self, self.head_dim)


CONFIG = Qwen3Config


def build(c: Qwen3Config) -> Graph:
    """The graph of a config."""
    attention = GroupedQueryAttention(
        c.num_attention_heads,
        c.kv_heads,
        c.head_dim,
        c.rope_parameters,
        qkv_bias=c.attention_bias,
        o_bias=c.attention_bias,
        qk_norm_eps=c.rms_norm_eps,
    )

    def feed_forward(b: GraphBuilder, x: str, layer: int) -> str:
        return mlp(b, x, f"layers.{layer}.mlp", c.intermediate_size)

    return decoder("qwen3", c, attention, feed_forward).graph
