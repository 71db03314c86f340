"""DeepSeek-V4's attention (section 2.3): one key, which is the value too, for all heads; a window
of tokens, and in most layers entries that stand for earlier ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from deepmnn.graph.builder import GraphBuilder
from deepmnn.models.compressor import Compressor, Indexer, PartialRope
from deepmnn.models.v4_config import HEAVILY, SLIDING, DeepseekV4Config


@dataclass(frozen=True)
class CompressedAttention:
    """One layer of a kind of `layer_types`."""

    config: DeepseekV4Config

    def __call__(self, b: GraphBuilder, x: str, layer: str, kind: str) -> str:
        """x [tokens, hidden] → [tokens, hidden]. layer: what names begin with ("layers.0")."""
        c, name, heads = self.config, f"{layer}.self_attn", self.config.num_attention_heads
        rope = self._rope(kind)
        q_low = b.linear(x, f"{name}.q_a_proj", c.q_lora_rank)
        q_low = b.rms_norm(q_low, f"{name}.q_a_norm", c.rms_norm_eps)
        q = b.linear(q_low, f"{name}.q_b_proj", heads * c.head_dim)
        q = b.reshape(q, f"{name}.q", heads, c.head_dim)
        q = rope(b, b.norm(q, f"{name}.q_b_norm", c.rms_norm_eps, heads), f"{name}.q_rope", heads)
        kv = b.linear(x, f"{name}.kv_proj", c.head_dim)
        kv = b.rms_norm(kv, f"{name}.kv_norm", c.rms_norm_eps)
        keys = [b.cache(rope(b, kv, f"{name}.kv_rope"), f"{layer}.window")]
        keys += self._entries(b, x, q_low, layer, kind)
        scale, ratio = c.head_dim**-0.5, c.ratio(kind)
        sinks = f"{name}.sinks"
        out = b.window_attention(
            q, keys, f"{name}.attention", sinks, heads, scale, c.sliding_window, ratio
        )
        out = rope(b, out, f"{name}.out_rope", heads, back=True)
        out = b.grouped_linear(out, f"{name}.o_a_proj", c.o_groups, c.o_lora_rank)
        return b.linear(out, f"{name}.o_b_proj", c.hidden_size)

    def _entries(self, b: GraphBuilder, x: str, q_low: str, layer: str, kind: str) -> list[str]:
        """The compressed keys, and the rows of those that are chosen; none in a sliding layer."""
        if kind == SLIDING:
            return []
        c, name = self.config, f"{layer}.self_attn.compressor"
        rope, overlapping = self._rope(kind), kind != HEAVILY
        sizes = c.ratio(kind), overlapping
        entries = Compressor(*sizes, c.head_dim, c.rms_norm_eps, rope)
        found = [entries(b, x, name, f"{layer}.compressor")]
        if kind != HEAVILY:
            keys = Compressor(*sizes, c.index_head_dim, c.rms_norm_eps, rope)
            indexer = Indexer(keys, c.index_n_heads, c.index_topk)
            found.append(indexer(b, x, q_low, f"{name}.indexer", f"{layer}.indexer"))
        return found

    def _rope(self, kind: str) -> PartialRope:
        """Sliding layers are not extended; all others rotate as their entries do."""
        c = self.config
        rope = c.main_rope if kind == SLIDING else c.rope_parameters
        return PartialRope(rope.inv_freq(c.qk_rope_head_dim), rope.rope_scale())
