"""Multi-head latent attention, as the DeepSeek-V2 paper writes it (arXiv:2405.04434, section 2.1).

Where transformers differs, this follows DeepSeek's modeling_deepseek.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from deepmnn.graph.builder import GraphBuilder
from deepmnn.models.config import MAX_HEAD_DIM, ModelConfig
from deepmnn.models.fields import require
from deepmnn.models.rope import RopeParameters, yarn_mscale

LATENT_NORM_EPS = 1e-6
"""q_a_layernorm and kv_a_layernorm do not read rms_norm_eps (nor do they in transformers)."""

Chooser = Callable[[GraphBuilder, str, str, int], str]
"""(builder, x [tokens, hidden], normed query latents [tokens, q_lora_rank], layer index) → the rows
that each token attends to, i32 [tokens, top_k] (models/indexer.py)."""


@dataclass(frozen=True)
class MlaConfig(ModelConfig):
    """The fields of latent attention. q_lora_rank None: one query projection (V2-Lite)."""

    attention_bias: bool = False
    q_lora_rank: int | None = 1536
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128

    def check(self) -> None:
        """Raises ConfigError when the fields contradict one another."""
        super().check()
        rope = self.qk_rope_head_dim
        even = rope % 2 == 0 and rope <= MAX_HEAD_DIM
        require(even, "qk_rope_head_dim", rope, f"an even number up to {MAX_HEAD_DIM}")

    @property
    def softmax_scale(self) -> float:
        """1/√d, times mscale(mscale_all_dim)² when the context was extended, by YaRN or not."""
        scale = float((self.qk_nope_head_dim + self.qk_rope_head_dim) ** -0.5)
        rope = self.rope_parameters
        if rope.mscale_all_dim:
            scale *= yarn_mscale(rope.factor, rope.mscale_all_dim) ** 2
        return scale


def rope_scale(rope: RopeParameters) -> float:
    """What multiplies cos and sin in DeepSeek's code: mscale(mscale) / mscale(mscale_all_dim).

    mscale defaults to 1 and mscale_all_dim to 0 each on its own; transformers ignores one without
    the other. attention_factor, which only transformers knows, wins when it is given.
    """
    if rope.rope_type != "yarn":
        return 1.0
    if rope.attention_factor is not None:
        return rope.attention_factor
    mscale = 1.0 if rope.mscale is None else rope.mscale
    return yarn_mscale(rope.factor, mscale) / yarn_mscale(rope.factor, rope.mscale_all_dim or 0.0)


@dataclass(frozen=True)
class LatentAttention:
    """One layer. interleaved: the rotary pairs are (2i, 2i + 1), as in all DeepSeek checkpoints.

    indexer: chooses the rows that a token attends to; None: all it sees.
    """

    config: MlaConfig
    interleaved: bool = True
    indexer: Chooser | None = None

    def __call__(self, b: GraphBuilder, x: str, layer: int) -> str:
        """x [tokens, hidden] → [tokens, hidden]."""
        c, name = self.config, f"layers.{layer}.self_attn"
        q_latent = self._query_latent(b, x, name)
        q = self._query(b, q_latent, name)
        latent, k_pe = self._latent(b, x, name, layer)
        k, v = self._key_value(b, latent, k_pe, name)
        heads = c.num_attention_heads
        attend = (f"{name}.attention", heads, heads, c.softmax_scale)
        if self.indexer is None:
            out = b.attention(q, k, v, *attend)
        else:
            out = b.sparse_attention(q, k, v, self.indexer(b, x, q_latent, layer), *attend)
        out = b.reshape(out, f"{name}.out", heads * c.v_head_dim)
        return b.linear(out, f"{name}.o_proj", c.hidden_size, c.attention_bias)

    def _query_latent(self, b: GraphBuilder, x: str, name: str) -> str:
        """→ what queries are made of: normed latents [tokens, q_lora_rank], or x itself."""
        c = self.config
        if c.q_lora_rank is None:
            return x
        q = b.linear(x, f"{name}.q_a_proj", c.q_lora_rank, c.attention_bias)
        return b.rms_norm(q, f"{name}.q_a_layernorm", LATENT_NORM_EPS)

    def _query(self, b: GraphBuilder, q_latent: str, name: str) -> str:
        """→ [tokens, heads, nope + rope], rotated."""
        c, heads = self.config, self.config.num_attention_heads
        head_dim = c.qk_nope_head_dim + c.qk_rope_head_dim
        projection = "q_proj" if c.q_lora_rank is None else "q_b_proj"
        q = b.linear(q_latent, f"{name}.{projection}", heads * head_dim)
        q = b.reshape(q, f"{name}.q", heads, head_dim)
        sizes = (c.qk_nope_head_dim, c.qk_rope_head_dim)
        q_nope, q_pe = b.split(q, f"{name}.q_split", sizes, heads)
        q_pe = self._rope(b, q_pe, f"{name}.q_rope", heads)
        return b.concat([q_nope, q_pe], f"{name}.q_concat", heads)

    def _latent(self, b: GraphBuilder, x: str, name: str, layer: int) -> tuple[str, ...]:
        """→ all normed latents [context, rank] and rotated shared keys [context, rope]."""
        c = self.config
        sizes = (c.kv_lora_rank, c.qk_rope_head_dim)
        kv = b.linear(x, f"{name}.kv_a_proj_with_mqa", sum(sizes), c.attention_bias)
        latent, k_pe = b.split(kv, f"{name}.kv_split", sizes)
        latent = b.rms_norm(latent, f"{name}.kv_a_layernorm", LATENT_NORM_EPS)
        k_pe = self._rope(b, k_pe, f"{name}.k_rope", 1)
        row = b.concat([latent, k_pe], f"{name}.kv_concat")
        rows = b.cache(row, f"layers.{layer}.latent")
        return b.split(rows, f"{name}.cache_split", sizes)

    def _key_value(self, b: GraphBuilder, latent: str, k_pe: str, name: str) -> tuple[str, str]:
        """→ keys [context, heads, nope + rope] and values [context, heads, v]."""
        c, heads = self.config, self.config.num_attention_heads
        sizes = (c.qk_nope_head_dim, c.v_head_dim)
        kv = b.linear(latent, f"{name}.kv_b_proj", heads * sum(sizes), role="latent")
        kv = b.reshape(kv, f"{name}.kv", heads, sum(sizes))
        k_nope, v = b.split(kv, f"{name}.kv_b_split", sizes, heads)
        k_pe = b.broadcast(k_pe, f"{name}.k_broadcast", heads)
        return b.concat([k_nope, k_pe], f"{name}.k_concat", heads), v

    def _rope(self, b: GraphBuilder, x: str, name: str, heads: int) -> str:
        rope = self.config.rope_parameters
        inv_freq = rope.inv_freq(self.config.qk_rope_head_dim)
        return b.rope(x, name, heads, inv_freq, rope_scale(rope), self.interleaved)
