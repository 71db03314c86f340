"""DeepSeek-V3 and R1 (arXiv:2412.19437), as modeling_deepseek.py has them."""

from __future__ import annotations

from dataclasses import dataclass

from deepmnn.graph.ir import Graph
from deepmnn.models.config import MAX_LAYERS, bounded
from deepmnn.models.decoder import decoder
from deepmnn.models.fields import supported
from deepmnn.models.mla import LatentAttention, MlaConfig
from deepmnn.models.moe import MAX_EXPERTS, FeedForward, MoeConfig, Routing
from deepmnn.models.mtp import mtp_part


@dataclass(frozen=True)
class DeepseekV3Config(MoeConfig, MlaConfig):
    """transformers' DeepseekV3Config, and the hub's moe_layer_freq, scoring_func and topk_method.

    num_nextn_predict_layers defaults to 0, not 1: a config that does not name MTP layers comes
    without their weights.
    """

    vocab_size: int = 129280
    hidden_size: int = 7168
    intermediate_size: int = 18432
    moe_intermediate_size: int = 2048
    num_hidden_layers: int = bounded(61, 1, MAX_LAYERS)
    num_attention_heads: int = 128
    max_position_embeddings: int = 4096
    n_shared_experts: int | None = bounded(1, 0, MAX_EXPERTS)
    n_routed_experts: int | None = bounded(256, 1, MAX_EXPERTS)
    num_experts_per_tok: int | None = 8
    routed_scaling_factor: float = 2.5
    n_group: int | None = 8
    topk_group: int | None = 4
    first_k_dense_replace: int = bounded(3, 0)
    norm_topk_prob: bool = True
    scoring_func: str = "sigmoid"
    topk_method: str = "noaux_tc"
    rope_interleave: bool = True
    num_nextn_predict_layers: int = bounded(0, 0, 64)

    def check(self) -> None:
        """Raises ConfigError when the fields contradict one another."""
        super().check()
        supported("scoring_func", self.scoring_func, "sigmoid")
        supported("topk_method", self.topk_method, "noaux_tc")
        if self.n_routed_experts is not None and self.groups > 1:
            self.check_groups(self.n_group, self.topk_group, smallest=2)

    @property
    def groups(self) -> int:
        """n_group, 1 when the config has none."""
        return self.n_group or 1

    @property
    def routing(self) -> Routing:
        """Sigmoid scores; the bias and the groups choose, the scores weigh (section 2.1.2)."""
        return Routing(
            "sigmoid",
            self.top_k,
            normalize=self.normalize,
            factor=self.routed_scaling_factor,
            n_group=self.groups,
            topk_group=self.topk_group or 1,
            group_score="top2_sum",
            correction_bias=True,
        )


CONFIG = DeepseekV3Config


def build(c: DeepseekV3Config) -> Graph:
    """The graph of a config."""
    return decoder("deepseek_v3", c, *_blocks(c)).graph


def build_draft(c: DeepseekV3Config) -> Graph | None:
    """The draft part of a config; None without layers for multi-token prediction."""
    if c.num_nextn_predict_layers == 0:
        return None
    return mtp_part("deepseek_v3", c, c.num_hidden_layers, *_blocks(c))


def _blocks(c: DeepseekV3Config) -> tuple[LatentAttention, FeedForward]:
    return LatentAttention(c, c.rope_interleave), FeedForward(c, c.routing)
