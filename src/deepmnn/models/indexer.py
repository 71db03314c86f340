"""DeepSeek Sparse Attention (DeepSeek-V3.2, arXiv:2512.02556, section 2.1): the lightning indexer.

A few light heads score every token that a query may see, and attention reads the best alone:

    score = Σ_h w_h · ReLU(q_h · k)        one key for all heads, weights with a sign, no softmax

DeepSeek's code rotates q and k by a Hadamard matrix and rounds them to fp8; in floats the one
changes no score, and the other is left out, as it is in transformers.
"""

from __future__ import annotations

from dataclasses import dataclass

from deepmnn.graph.builder import GraphBuilder
from deepmnn.models.config import MAX_HEAD_DIM, bounded
from deepmnn.models.fields import require
from deepmnn.models.mla import MlaConfig, rope_scale

KEY_NORM_EPS = 1e-6
"""Of the LayerNorm of keys, which does not read rms_norm_eps."""


@dataclass(frozen=True)
class IndexerConfig(MlaConfig):
    """The fields of the indexer. indexer_rope_interleave, which transformers' class of GLM has:
    its rotary pairs are (2i, 2i + 1), not (i, i + d/2).
    """

    index_n_heads: int = 64
    index_head_dim: int = bounded(128, 1, MAX_HEAD_DIM)
    index_topk: int = 2048
    indexer_rope_interleave: bool = False

    def check(self) -> None:
        """Raises ConfigError when the fields contradict one another."""
        super().check()
        rope = self.qk_rope_head_dim
        size = self.index_head_dim
        require(size >= rope, "index_head_dim", size, f"qk_rope_head_dim, {rope}, or more")
        rank = self.q_lora_rank
        require(rank is not None, "q_lora_rank", rank, "a number: the indexer reads that latent")


@dataclass(frozen=True)
class Indexer:
    """One layer's indexer."""

    config: IndexerConfig

    def __call__(self, b: GraphBuilder, x: str, q_latent: str, layer: int) -> str:
        """x [tokens, hidden], normed query latents [tokens, q_lora_rank] → chosen rows of each
        token's own sequence, i32 [tokens, index_topk].
        """
        c, name = self.config, f"layers.{layer}.self_attn.indexer"
        heads, dim = c.index_n_heads, c.index_head_dim
        q = b.linear(q_latent, f"{name}.wq_b", heads * dim)
        q = self._rotate(b, b.reshape(q, f"{name}.q", heads, dim), f"{name}.q", heads)
        k = b.layer_norm(b.linear(x, f"{name}.wk", dim), f"{name}.k_norm", KEY_NORM_EPS)
        k = b.cache(self._rotate(b, k, f"{name}.k", 1), f"layers.{layer}.index_key")
        weights = b.linear(x, f"{name}.weights_proj", heads, role="router")  # it chooses, too
        scale = float(heads**-0.5 * dim**-0.5)
        return b.select_keys(q, weights, k, f"{name}.select_keys", heads, c.index_topk, scale)

    def _rotate(self, b: GraphBuilder, x: str, name: str, heads: int) -> str:
        """Each head [rope | nope] with its first columns rotated: here they come first."""
        c = self.config
        rope, nope = c.qk_rope_head_dim, c.index_head_dim - c.qk_rope_head_dim
        inv_freq = c.rope_parameters.inv_freq(rope)
        attrs = (inv_freq, rope_scale(c.rope_parameters), c.indexer_rope_interleave)
        if not nope:
            return b.rope(x, f"{name}_rope", heads, *attrs)
        first, rest = b.split(x, f"{name}_split", (rope, nope), heads)
        first = b.rope(first, f"{name}_rope", heads, *attrs)
        return b.concat([first, rest], f"{name}_concat", heads)
