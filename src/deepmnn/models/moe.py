"""DeepSeekMoE (arXiv:2401.06066): shared experts for every token and top_k of many small ones."""

from __future__ import annotations

from dataclasses import dataclass

from deepmnn.graph.builder import GraphBuilder
from deepmnn.models.config import ModelConfig, bounded
from deepmnn.models.decoder import gated, mlp
from deepmnn.models.fields import require

NORMALIZE_EPS = 1e-20
MAX_EXPERTS = 1 << 12
"""The most experts of a layer; published models have up to 512."""


@dataclass(frozen=True)
class MoeConfig(ModelConfig):
    """The fields of the expert layers. n_routed_experts None: a dense model."""

    moe_intermediate_size: int = 1407
    n_shared_experts: int | None = bounded(None, 0, MAX_EXPERTS)
    n_routed_experts: int | None = bounded(None, 1, MAX_EXPERTS)
    num_experts_per_tok: int | None = None
    moe_layer_freq: int = 1
    first_k_dense_replace: int = bounded(0, 0)
    norm_topk_prob: bool = False
    scoring_func: str = "softmax"

    def check(self) -> None:
        """Raises ConfigError when the fields contradict one another."""
        super().check()
        if self.n_routed_experts is not None:
            expected = f"an integer from 1 to n_routed_experts, {self.n_routed_experts}"
            within = self.top_k <= self.n_routed_experts and self.num_experts_per_tok is not None
            require(within, "num_experts_per_tok", self.num_experts_per_tok, expected)

    @property
    def top_k(self) -> int:
        """num_experts_per_tok."""
        return self.num_experts_per_tok or 1

    @property
    def normalize(self) -> bool:
        """Whether the chosen experts' weights are made to sum to one: not when there is one."""
        return self.norm_topk_prob and self.top_k > 1

    def has_experts(self, layer: int) -> bool:
        """Whether this layer routes; the others have a plain MLP of intermediate_size."""
        beyond = layer >= self.first_k_dense_replace and layer % self.moe_layer_freq == 0
        return self.n_routed_experts is not None and beyond

    def check_groups(self, n_group: int | None, topk_group: int | None, smallest: int) -> None:
        """Raises ConfigError unless the experts fall into equal groups that hold top_k choices."""
        experts = self.n_routed_experts or 1
        require(
            n_group is not None and experts % n_group == 0 and experts // n_group >= smallest,
            "n_group",
            n_group,
            f"a divisor of {experts} experts that leaves at least {smallest} in a group",
        )
        groups, size = n_group or 1, experts // (n_group or 1)
        require(
            topk_group is not None and topk_group <= groups and topk_group * size >= self.top_k,
            "topk_group",
            topk_group,
            f"an integer up to {groups} whose groups hold {self.top_k} experts",
        )


@dataclass(frozen=True)
class Routing:
    """How a token chooses its experts, and with which weights.

    correction_bias: e_score_correction_bias moves the choice, not the weights (DeepSeek-V3).
    group_score: "max" (V2) or "top2_sum" (V3); groups matter when n_group > 1.
    """

    scoring: str
    top_k: int
    normalize: bool = False
    factor: float = 1.0
    n_group: int = 1
    topk_group: int = 1
    group_score: str = "max"
    correction_bias: bool = False

    def __call__(self, b: GraphBuilder, x: str, name: str, experts: int) -> tuple[str, str]:
        """x [tokens, hidden] → experts' indices and weights, each [tokens, top_k]."""
        logits = b.linear(x, name, experts, role="router")
        scores = choice = self.scores(b, logits, name)
        if self.correction_bias:
            choice = b.bias_add(choice, f"{name}.e_score_correction_bias")
        if self.n_group > 1:
            groups = (self.n_group, self.topk_group, self.group_score)
            choice = b.group_limit(choice, f"{name}.group_limit", *groups)
        indices = b.top_k(choice, f"{name}.top_k", self.top_k)
        return indices, self.weigh(b, scores, indices, name)

    def scores(self, b: GraphBuilder, logits: str, name: str) -> str:
        """The router's logits as numbers that are compared, [tokens, experts]."""
        kinds = {"softmax": b.softmax, "sigmoid": b.sigmoid, "sqrtsoftplus": b.sqrt_softplus}
        return kinds[self.scoring](logits, f"{name}.scores")

    def weigh(self, b: GraphBuilder, scores: str, indices: str, name: str) -> str:
        """The weights of chosen experts, [tokens, top_k]."""
        weights = b.gather(scores, indices, f"{name}.gather")
        if self.normalize:
            weights = b.normalize(weights, f"{name}.normalize", NORMALIZE_EPS)
        if self.factor != 1.0:
            weights = b.scale(weights, f"{name}.scale", self.factor)
        return weights


@dataclass(frozen=True)
class FeedForward:
    """A layer's experts, or its dense MLP where the config has no experts."""

    config: MoeConfig
    routing: Routing

    def __call__(self, b: GraphBuilder, x: str, layer: int) -> str:
        """x [tokens, hidden] → [tokens, hidden]."""
        c, name = self.config, f"layers.{layer}.mlp"
        if not c.has_experts(layer):
            return mlp(b, x, name, c.intermediate_size)
        experts, size = c.n_routed_experts or 0, c.moe_intermediate_size
        indices, weights = self.routing(b, x, f"{name}.gate", experts)
        routed = mixture(b, x, (indices, weights), f"{name}.experts", experts, size)
        if not c.n_shared_experts:
            return routed
        shared = mlp(b, x, f"{name}.shared_experts", size * c.n_shared_experts)
        return b.add(routed, shared, f"{name}.add")


def mixture(
    b: GraphBuilder,
    x: str,
    routed: tuple[str, str],
    name: str,
    experts: int,
    size: int,
    limit: float = 0.0,
) -> str:
    """What a token's experts give, weighted: x [tokens, hidden] → the same.

    routed: indices and weights, each [tokens, top_k]. size: an expert's. limit: see `gated`.
    """
    indices, weights = routed
    gate = b.expert_linear(x, indices, name, "gate_proj", experts, size, per_choice=False)
    up = b.expert_linear(x, indices, name, "up_proj", experts, size, per_choice=False)
    both, hidden = gated(b, gate, up, name, limit), b.value(x).width
    y = b.expert_linear(both, indices, name, "down_proj", experts, hidden, per_choice=True)
    return b.combine(y, weights, f"{name}.combine")
