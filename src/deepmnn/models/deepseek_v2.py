"""DeepSeek-V2, V2-Lite and Coder-V2 (arXiv:2405.04434), as modeling_deepseek.py has them."""

from __future__ import annotations

from dataclasses import dataclass

from deepmnn.graph.ir import Graph
from deepmnn.models.config import bounded
from deepmnn.models.decoder import decoder
from deepmnn.models.fields import supported
from deepmnn.models.mla import LatentAttention, MlaConfig
from deepmnn.models.moe import MAX_EXPERTS, FeedForward, MoeConfig, Routing


@dataclass(frozen=True)
class DeepseekV2Config(MoeConfig, MlaConfig):
    """transformers' DeepseekV2Config, and moe_layer_freq and scoring_func of the hub's."""

    vocab_size: int = 102400
    n_shared_experts: int | None = bounded(2, 0, MAX_EXPERTS)
    n_routed_experts: int | None = bounded(64, 1, MAX_EXPERTS)
    routed_scaling_factor: float = 1.0
    topk_method: str = "greedy"
    n_group: int | None = None
    topk_group: int | None = None
    mlp_bias: bool = False

    def check(self) -> None:
        """Raises ConfigError when the fields contradict one another."""
        super().check()
        supported("scoring_func", self.scoring_func, "softmax")
        supported("mlp_bias", self.mlp_bias, False)
        supported("topk_method", self.topk_method, "greedy", "group_limited_greedy")
        if self.topk_method == "group_limited_greedy" and self.n_routed_experts is not None:
            self.check_groups(self.n_group, self.topk_group, smallest=1)

    @property
    def routing(self) -> Routing:
        """Weights are either normalised or scaled, never both (DeepSeek's MoEGate)."""
        limited = self.topk_method == "group_limited_greedy"
        return Routing(
            "softmax",
            self.top_k,
            normalize=self.normalize,
            factor=1.0 if self.normalize else self.routed_scaling_factor,
            n_group=(self.n_group or 1) if limited else 1,
            topk_group=self.topk_group or 1,
            group_score="max",
        )


CONFIG = DeepseekV2Config


def build(c: DeepseekV2Config) -> Graph:
    """The graph of a config."""
    return decoder("deepseek_v2", c, LatentAttention(c), FeedForward(c, c.routing)).graph
