"""DeepSeek-V4's experts: their numbers are limited, and in the first layers the token's id alone
chooses them (section 2.1).
"""

from __future__ import annotations

from dataclasses import dataclass

from deepmnn.graph.builder import GraphBuilder
from deepmnn.models.decoder import mlp
from deepmnn.models.moe import mixture
from deepmnn.models.v4_config import DeepseekV4Config


@dataclass(frozen=True)
class LimitedExperts:
    """A layer's experts, and the one that every token has."""

    config: DeepseekV4Config

    def __call__(self, b: GraphBuilder, x: str, layer: str, hashed: bool) -> str:
        """x [tokens, hidden] → [tokens, hidden]. layer: what names begin with."""
        c, name = self.config, f"{layer}.mlp"
        routed = (
            self._hashed(b, x, f"{name}.gate")
            if hashed
            else c.routing(b, x, f"{name}.gate", c.n_routed_experts)
        )
        size, limit = c.moe_intermediate_size, c.swiglu_limit
        sizes = c.n_routed_experts, size
        found = mixture(b, x, routed, f"{name}.experts", *sizes, limit=limit)
        shared = mlp(b, x, f"{name}.shared_experts", size, limit=limit)
        return b.add(found, shared, f"{name}.add")

    def _hashed(self, b: GraphBuilder, x: str, name: str) -> tuple[str, str]:
        """The id chooses, the scores weigh."""
        c, experts = self.config, self.config.n_routed_experts
        logits = b.linear(x, name, experts, role="router")
        scores = c.routing.scores(b, logits, name)
        k = c.num_experts_per_tok
        indices = b.lookup(b.ids, f"{name}.tid2eid", c.vocab_size, k, experts)
        return indices, c.routing.weigh(b, scores, indices, name)
