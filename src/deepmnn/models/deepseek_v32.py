"""DeepSeek-V3.2 (arXiv:2512.02556): DeepSeek-V3 whose queries attend to the keys that an indexer
chose, as transformers' modeling_deepseek_v32.py has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deepmnn.graph.ir import Graph
from deepmnn.models.decoder import decoder
from deepmnn.models.deepseek_v3 import DeepseekV3Config
from deepmnn.models.fields import require, supported
from deepmnn.models.indexer import Indexer, IndexerConfig
from deepmnn.models.mla import LatentAttention
from deepmnn.models.moe import FeedForward
from deepmnn.models.mtp import mtp_part


@dataclass(frozen=True)
class DeepseekV32Config(DeepseekV3Config, IndexerConfig):
    """transformers' DeepseekV32Config, and what the hub's configs have besides (V3's class).

    mlp_layer_types, where it is given, says which layers have experts. rope_interleave is no field
    of this model: it is always true.
    """

    max_position_embeddings: int = 163840
    mlp_bias: bool = False
    mlp_layer_types: tuple[str, ...] | None = None

    def check(self) -> None:
        """Raises ConfigError when the fields contradict one another."""
        super().check()
        supported("rope_interleave", self.rope_interleave, True)
        supported("mlp_bias", self.mlp_bias, False)
        self._check_kinds("mlp_layer_types", self.mlp_layer_types, "dense", "sparse")

    def _check_windows(self) -> None:
        """No layer has one: layer_types says that all of them are indexed, or is not given."""
        self._check_kinds("layer_types", self.layer_types, "indexed_attention")

    def _check_kinds(self, name: str, kinds: Sequence[str] | None, *known: str) -> None:
        if kinds is None:
            return
        layers = self.num_hidden_layers
        require(len(kinds) == layers, name, kinds, f"one for each of {layers} layers")
        for kind in kinds:
            supported(name, kind, *known)

    @property
    def normalize(self) -> bool:
        """norm_topk_prob, also for one expert: so does DeepSeek's own code for this model."""
        return self.norm_topk_prob

    def has_experts(self, layer: int) -> bool:
        """Whether this layer routes."""
        kinds = self.mlp_layer_types
        if kinds is None or layer >= len(kinds):
            return super().has_experts(layer)
        return self.n_routed_experts is not None and kinds[layer] == "sparse"


CONFIG = DeepseekV32Config


def build(c: DeepseekV32Config) -> Graph:
    """The graph of a config."""
    return decoder("deepseek_v32", c, *_blocks(c)).graph


def build_draft(c: DeepseekV32Config) -> Graph | None:
    """The draft part of a config, with an indexer of its own; None without layers for multi-token
    prediction.
    """
    if c.num_nextn_predict_layers == 0:
        return None
    return mtp_part("deepseek_v32", c, c.num_hidden_layers, *_blocks(c))


def _blocks(c: DeepseekV32Config) -> tuple[LatentAttention, FeedForward]:
    return LatentAttention(c, indexer=Indexer(c)), FeedForward(c, c.routing)
