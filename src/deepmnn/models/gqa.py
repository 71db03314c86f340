"""Grouped-query attention (arXiv:2305.13245): llama, qwen2, qwen3 and DeepSeek-MoE-16B."""

from __future__ import annotations

from dataclasses import dataclass

from deepmnn.graph.builder import GraphBuilder
from deepmnn.models.config import MAX_HEAD_DIM, ModelConfig
from deepmnn.models.fields import require
from deepmnn.models.rope import RopeParameters


@dataclass(frozen=True)
class GroupedQueryAttention:
    """One layer's shape. qk_norm_eps: set when queries and keys are normed per head (qwen3)."""

    heads: int
    kv_heads: int
    head_dim: int
    rope: RopeParameters
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm_eps: float | None = None

    def __call__(self, b: GraphBuilder, x: str, layer: int) -> str:
        """x [tokens, hidden] → [tokens, hidden]."""
        name, hidden_size = f"layers.{layer}.self_attn", b.value(x).width
        q = b.linear(x, f"{name}.q_proj", self.heads * self.head_dim, self.qkv_bias)
        k = b.linear(x, f"{name}.k_proj", self.kv_heads * self.head_dim, self.qkv_bias)
        v = b.linear(x, f"{name}.v_proj", self.kv_heads * self.head_dim, self.qkv_bias)
        q = b.reshape(q, f"{name}.q", self.heads, self.head_dim)
        k = b.reshape(k, f"{name}.k", self.kv_heads, self.head_dim)
        v = b.reshape(v, f"{name}.v", self.kv_heads, self.head_dim)
        if self.qk_norm_eps is not None:
            q = b.rms_norm(q, f"{name}.q_norm", self.qk_norm_eps, self.heads)
            k = b.rms_norm(k, f"{name}.k_norm", self.qk_norm_eps, self.kv_heads)
        q = self._rope(b, q, f"{name}.q_rope", self.heads)
        k = self._rope(b, k, f"{name}.k_rope", self.kv_heads)
        k = b.cache(k, f"layers.{layer}.k")
        v = b.cache(v, f"layers.{layer}.v")
        scale = self.head_dim**-0.5
        out = b.attention(q, k, v, f"{name}.attention", self.heads, self.kv_heads, scale)
        out = b.reshape(out, f"{name}.out", self.heads * self.head_dim)
        return b.linear(out, f"{name}.o_proj", hidden_size, self.o_bias)

    def _rope(self, b: GraphBuilder, x: str, name: str, heads: int) -> str:
        inv_freq = self.rope.inv_freq(self.head_dim)
        return b.rope(x, name, heads, inv_freq, self.rope.rope_scale(), interleaved=False)


def check_heads(config: ModelConfig, head_dim: int | None) -> int:
    """The head size (default hidden_size / num_attention_heads), once the head counts fit.

    Raises ConfigError.
    """
    heads, kv_heads = config.num_attention_heads, config.kv_heads
    require(heads % kv_heads == 0, "num_key_value_heads", kv_heads, f"a divisor of {heads} heads")
    if head_dim is None:
        expected = f"a multiple of num_attention_heads, {heads}"
        require(config.hidden_size % heads == 0, "hidden_size", config.hidden_size, expected)
        head_dim = config.hidden_size // heads
    even = head_dim % 2 == 0 and head_dim <= MAX_HEAD_DIM
    require(even, "head_dim", head_dim, f"an even number up to {MAX_HEAD_DIM}")
    return head_dim
