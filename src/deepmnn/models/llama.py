"""Llama (arXiv:2302.13971): DeepSeek-LLM, DeepSeek-Coder, R1-Distill-Llama."""

from __future__ import annotations

from dataclasses import dataclass

from deepmnn.graph.builder import GraphBuilder
from deepmnn.graph.ir import Graph
from deepmnn.models.config import ModelConfig
from deepmnn.models.decoder import decoder, mlp
from deepmnn.models.gqa import GroupedQueryAttention, check_heads


@dataclass(frozen=True)
class LlamaConfig(ModelConfig):
    """transformers' LlamaConfig."""

    attention_bias: bool = False
    mlp_bias: bool = False
    head_dim: int | None = None

    def check(self) -> None:
        """Raises ConfigError when the fields contradict one another."""
        super().check()
        check_heads(self, self.head_dim)


CONFIG = LlamaConfig


def build(c: LlamaConfig) -> Graph:
    """The graph of a config."""
    attention = GroupedQueryAttention(
        c.num_attention_heads,
        c.kv_heads,
        check_heads(c, c.head_dim),
        c.rope_parameters,
        qkv_bias=c.attention_bias,
        o_bias=c.attention_bias,
    )

    def feed_forward(b: GraphBuilder, x: str, layer: int) -> str:
        return mlp(b, x, f"layers.{layer}.mlp", c.intermediate_size, c.mlp_bias)

    return decoder("llama", c, attention, feed_forward).graph
