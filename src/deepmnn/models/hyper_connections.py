"""Hyper-connections (arXiv:2409.19606), constrained to mixings that keep a mean (arXiv:2512.24880).

The residual is a stack of streams. A block reads a weighted sum of them; its output is added to
each with a weight of its own, after the streams were mixed by a doubly stochastic matrix. All
weights are functions of the streams.
"""

from __future__ import annotations

from dataclasses import dataclass

from deepmnn.graph.builder import GraphBuilder
from deepmnn.graph.weights import Slice, Tensor


@dataclass(frozen=True)
class HyperConnections:
    """streams: how many. iterations, eps: of Sinkhorn's algorithm; norm_eps: of the norms."""

    streams: int
    iterations: int
    eps: float
    norm_eps: float

    def enter(self, b: GraphBuilder, x: str, name: str, norm: str) -> tuple[str, str, str]:
        """Streams [n, streams, hidden] → a block's input [n, hidden], normed, and how its output
        joins them: weights [n, streams] and a matrix [n, streams, streams].
        """
        count = self.streams
        found = self._weights(b, x, f"{name}.fn", count * (2 + count))
        sizes = (count, count, count * count)
        parts = b.split(found, f"{name}.split", sizes)
        pre, post, comb = (
            self._affine(b, part, name, kind, index, 3, sum(sizes))
            for index, (part, kind) in enumerate(zip(parts, ("pre", "post", "comb"), strict=True))
        )
        post = b.scale(b.sigmoid(post, f"{name}.post_gate"), f"{name}.post", 2.0)
        comb = b.sinkhorn(comb, f"{name}.comb", self.iterations, self.eps)
        collapsed = self._collapse(b, pre, x, name)
        return b.rms_norm(collapsed, norm, self.norm_eps), post, comb

    def leave(self, b: GraphBuilder, out: str, post: str, comb: str, x: str, name: str) -> str:
        """post ⊗ out + combᵀ · streams: → the new streams [n, streams, hidden]."""
        expanded = b.mix(post, out, f"{name}.expand", self.streams)
        mixed = b.mix(comb, x, f"{name}.mix", self.streams, transposed=True)
        return b.add(expanded, mixed, f"{name}.residual")

    def head(self, b: GraphBuilder, x: str, name: str, parts: str = "hc_") -> str:
        """The streams' final weighted sum, [n, hidden]. parts: what tensors' names begin with."""
        pre = self._weights(b, x, f"{name}.{parts}fn", self.streams)
        pre = self._affine(b, pre, f"{name}", "pre", 0, 1, self.streams, parts)
        return self._collapse(b, pre, x, name)

    def _weights(self, b: GraphBuilder, x: str, name: str, count: int) -> str:
        """fn · x / rms(x) over all streams, [n, count]."""
        normed = b.norm(x, f"{name}_norm", self.norm_eps)
        return b.linear(normed, name, count, role="router", tensor=b.prefix + name)

    def _affine(
        self,
        b: GraphBuilder,
        x: str,
        name: str,
        kind: str,
        index: int,
        scales: int,
        bases: int,
        parts: str = "",
    ) -> str:
        """x · scale[index] + its part of base; parts lie in the order pre, post, comb."""
        begin, width = index * self.streams, b.value(x).width
        scale = Tensor(f"{b.prefix}{name}.{parts}scale", (scales,))
        base = Tensor(f"{b.prefix}{name}.{parts}base", (bases,))
        x = b.gain(x, f"{name}.{kind}_scale", Slice(scale, index, index + 1))
        return b.bias_add(x, f"{name}.{kind}_base", Slice(base, begin, begin + width))

    def _collapse(self, b: GraphBuilder, pre: str, x: str, name: str) -> str:
        """Σ (σ(pre) + eps) · stream, [n, hidden]."""
        pre = b.add_constant(b.sigmoid(pre, f"{name}.pre_gate"), f"{name}.pre", self.eps)
        return b.mix(pre, x, f"{name}.collapse", 1)
