"""Qwen2 and Qwen2.5 (arXiv:2412.15115): R1-Distill-Qwen. Biases on q, k and v only."""

from __future__ import annotations

from dataclasses import dataclass

from deepmnn.graph.builder import GraphBuilder
from deepmnn.graph.ir import Graph
from deepmnn.models.config import ModelConfig
from deepmnn.models.decoder import decoder, mlp
from deepmnn.models.gqa import GroupedQueryAttention, check_heads


@dataclass(frozen=True)
class Qwen2Config(ModelConfig):
    """transformers' Qwen2Config."""

    vocab_size: int = 151936
    intermediate_size: int = 22016
    num_key_value_heads: int | None = 32
    max_position_embeddings: int = 32768
    head_dim: int | None = None

    def check(self) -> None:
        """Raises ConfigError when the fields contradict one another."""
        super().check()
        check_heads(self, self.head_dim)


CONFIG = Qwen2Config


def build(c: Qwen2Config) -> Graph:
    """The graph of a config."""
    head_dim = check_heads(c, c.head_dim)
    attention = GroupedQueryAttention(
        c.num_attention_heads, c.kv_heads, head_dim, c.rope_parameters, qkv_bias=True
    )

    def feed_forward(b: GraphBuilder, x: str, layer: int) -> str:
        return mlp(b, x, f"layers.{layer}.mlp", c.intermediate_size)

    return decoder("qwen2", c, attention, feed_forward).graph
