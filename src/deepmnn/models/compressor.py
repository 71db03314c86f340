"""Compressed keys: what stands for windows of tokens in DeepSeek-V4's attention (section 2.3)."""

from __future__ import annotations

from dataclasses import dataclass

from deepmnn.graph.builder import GraphBuilder


@dataclass(frozen=True)
class PartialRope:
    """Rotates the last columns of every head: pairs (2i, 2i + 1)."""

    inv_freq: tuple[float, ...]
    rope_scale: float

    def __call__(
        self,
        b: GraphBuilder,
        x: str,
        name: str,
        heads: int = 1,
        positions: str = "",
        back: bool = False,
    ) -> str:
        """x [n, heads, d] → the same. back: by minus the positions."""
        turned = 2 * len(self.inv_freq)
        kept = b.value(x).width // heads - turned
        inv_freq = tuple(-f for f in self.inv_freq) if back else self.inv_freq
        rest = ""
        if kept:
            rest, x = b.split(x, f"{name}_split", (kept, turned), heads)
        x = b.rope(x, name, heads, inv_freq, self.rope_scale, True, positions)
        return b.concat([rest, x], f"{name}_concat", heads) if kept else x


@dataclass(frozen=True)
class Compressor:
    """One entry for each `ratio` tokens. overlapping: made of those before, too (section 2.3.1)."""

    ratio: int
    overlapping: bool
    width: int
    eps: float
    rope: PartialRope

    def __call__(self, b: GraphBuilder, x: str, name: str, cache: str) -> str:
        """x [tokens, hidden] → entries [context, width], each in its last token's row.

        cache: what the names of its cache entries begin with.
        """
        width = self.width * (2 if self.overlapping else 1)
        kv = b.cache(b.linear(x, f"{name}.kv_proj", width), f"{cache}.kv")
        gate = b.cache(b.linear(x, f"{name}.gate_proj", width), f"{cache}.gate")
        bias = f"{name}.position_bias"
        entries, positions = b.compress(kv, gate, bias, self.ratio, self.overlapping)
        entries = b.rms_norm(entries, f"{name}.kv_norm", self.eps)
        return self.rope(b, entries, f"{name}.rope", positions=positions)


@dataclass(frozen=True)
class Indexer:
    """Which entries a token attends to: top_k of them, by keys of their own (section 2.3.1)."""

    compressor: Compressor
    heads: int
    top_k: int

    def __call__(self, b: GraphBuilder, x: str, q: str, name: str, cache: str) -> str:
        """x [tokens, hidden], q [tokens, q_lora_rank] → the entries' rows, i32 [tokens, top_k]."""
        c, d = self.compressor, self.compressor.width
        keys = c(b, x, name, cache)
        q = b.linear(q, f"{name}.q_b_proj", self.heads * d)
        q = c.rope(b, b.reshape(q, f"{name}.q", self.heads, d), f"{name}.q_rope", self.heads)
        weights = b.linear(x, f"{name}.scorer.weights_proj", self.heads, role="router")
        scale = (self.heads * d) ** -0.5  # of the weights and of the products, in one
        return b.select_keys(
            q, weights, keys, f"{name}.top_k", self.heads, self.top_k, scale, c.ratio
        )
