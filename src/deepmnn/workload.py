"""What running a graph costs: bytes of weights read and multiply-accumulates, per token."""

from __future__ import annotations

import math
from dataclasses import dataclass

from deepmnn.graph.ir import ROWS, Graph, Node, Weight
from deepmnn.quant.pack import weight_nbytes


@dataclass(frozen=True)
class Experts:
    """One layer's routed experts: how many, how many a token uses, and the size of one."""

    experts: int
    top_k: int
    nbytes: float
    macs: float

    def touched(self, tokens: int) -> float:
        """Expected number of different experts that `tokens` tokens use, routed evenly."""
        return self.experts * (1 - (1 - self.top_k / self.experts) ** tokens)


@dataclass(frozen=True)
class Workload:
    """Costs of one model.

    dense_nbytes: weight bytes every step reads. dense_macs: multiply-accumulates per token;
    row_macs: those only for tokens whose logits are wanted. context_macs: per token and cached row.
    embedding_nbytes: one row of the table. experts: one entry per MoE layer.
    cache_width: elements of the KV cache per token.
    """

    dense_nbytes: int
    dense_macs: int
    row_macs: int
    context_macs: int
    embedding_nbytes: int
    experts: tuple[Experts, ...]
    cache_width: int

    @staticmethod
    def of(graph: Graph) -> Workload:
        """Adds up a graph's nodes, plain or fused."""
        nbytes = macs = row_macs = embedding = 0
        experts: list[Experts] = []
        for node in graph.nodes:
            weights = [graph.weights[name] for name in node.weights]
            if node.op == "embedding":
                embedding += weight_nbytes(weights[0]) // weights[0].shape[0]
            elif node.op in ("moe", "expert_linear"):
                experts.append(_experts(node, weights))
            else:
                used = _decode_weights(node, weights)
                nbytes += sum(map(weight_nbytes, used))
                cost = sum(math.prod(w.shape) for w in used if w.dtype != "vector")
                if graph.values[node.outputs[0]].rows == ROWS:
                    row_macs += cost
                else:
                    macs += cost
        context = sum(_context_macs(node) for node in graph.nodes)
        width = sum(graph.caches.values())
        return Workload(nbytes, macs, row_macs, context, embedding, tuple(experts), width)

    def decode_nbytes(self, batch: int, context: float, kv_element_nbytes: int = 4) -> float:
        """Bytes one decode step reads: weights once, experts as routed, every sequence's cache."""
        routed = sum(layer.touched(batch) * layer.nbytes for layer in self.experts)
        cache = batch * context * self.cache_width * kv_element_nbytes
        return self.dense_nbytes + routed + batch * self.embedding_nbytes + cache

    def macs(self, tokens: int, context: float, rows: int) -> float:
        """Multiply-accumulates of `tokens` tokens that see `context` cached rows on average."""
        routed = sum(layer.top_k * layer.macs for layer in self.experts)
        per_token = self.dense_macs + routed + self.context_macs * context
        return tokens * per_token + rows * self.row_macs


def _experts(node: Node, weights: list[Weight]) -> Experts:
    """A `moe` node (two matrices per expert) or an `expert_linear` (one)."""
    count = node.int_attr("experts") if node.op == "moe" else len(weights)
    return Experts(
        count,
        node.int_attr("top_k"),
        sum(map(weight_nbytes, weights)) / count,
        sum(math.prod(weight.shape) for weight in weights) / count,
    )


def _decode_weights(node: Node, weights: list[Weight]) -> list[Weight]:
    """The weights a decode step reads: absorbed latent attention leaves w_uk alone."""
    return [weights[0], *weights[2:]] if node.op == "mla_attention" else weights


def _context_macs(node: Node) -> int:
    """Attention's multiply-accumulates per token and cached row, in the form decode uses."""
    if node.op == "mla_attention":
        width = 2 * node.int_attr("kv_lora_rank") + node.int_attr("qk_rope_head_dim")
        return node.int_attr("heads") * width
    if node.op in ("attention", "gqa_attention"):
        return node.int_attr("heads") * (node.int_attr("head_dim") + node.int_attr("v_head_dim"))
    return 0
