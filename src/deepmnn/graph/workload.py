"""What running a graph costs: bytes of weights read and multiply-accumulates, per token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from deepmnn.graph.ir import ROWS, Graph, Node, Weight


@dataclass(frozen=True)
class Experts:
    """One layer's routed experts: how many, how many a token uses, and the size of one.

    wanted: only tokens whose logits are wanted use them.
    """

    experts: int
    top_k: int
    nbytes: float
    macs: float
    wanted: bool = False

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

    Latent attention has two forms. context_macs and dense_macs are those of decode, over the
    latents; whole_context_macs: per token and row when keys and values are whole. Making a row
    whole takes expand_macs, as many as moving a query to the latents and its answer back.
    """

    dense_nbytes: int
    dense_macs: int
    row_macs: int
    context_macs: int
    embedding_nbytes: int
    experts: tuple[Experts, ...]
    cache_width: int
    whole_context_macs: int
    expand_macs: int

    @staticmethod
    def of(graph: Graph) -> Workload:
        """Adds up a graph's nodes, plain or fused."""
        nbytes = macs = row_macs = embedding = 0
        experts: list[Experts] = []
        for node in graph.nodes:
            weights = [graph.weights[name] for name in node.weights]
            if node.op == "embedding":
                embedding += weights[0].nbytes // weights[0].shape[0]
            elif node.op in ("moe", "expert_linear"):
                wanted = graph.values[node.outputs[0]].rows == ROWS
                experts.append(replace(_experts(node, weights), wanted=wanted))
            else:
                used = _decode_weights(node, weights)
                nbytes += sum(w.nbytes for w in used)
                cost = sum(math.prod(w.shape) for w in used if w.format != "vector")
                if graph.values[node.outputs[0]].rows == ROWS:
                    row_macs += cost
                else:
                    macs += cost
        attention = [_attention_macs(node) for node in graph.nodes]
        context, whole, expand = (sum(column) for column in zip(*attention, strict=True))
        width = sum(graph.caches.values())
        layers = tuple(experts)
        return Workload(nbytes, macs, row_macs, context, embedding, layers, width, whole, expand)

    def decode_nbytes(self, batch: int, context: float, kv_element_nbytes: int = 4) -> float:
        """Bytes one decode step reads: weights once, experts as routed, every sequence's cache."""
        routed = sum(layer.touched(batch) * layer.nbytes for layer in self.experts)
        cache = batch * context * self.cache_width * kv_element_nbytes
        return self.dense_nbytes + routed + batch * self.embedding_nbytes + cache

    def macs(self, tokens: int, context: float, rows: int) -> float:
        """Multiply-accumulates of `tokens` tokens that see `context` cached rows on average."""
        per_token, per_row = self.dense_macs + self.context_macs * context, float(self.row_macs)
        for layer in self.experts:
            if layer.wanted:
                per_row += layer.top_k * layer.macs
            else:
                per_token += layer.top_k * layer.macs
        return tokens * per_token + rows * per_row

    def prefill_macs(self, prompts: Sequence[int], step_tokens: int) -> float:
        """Multiply-accumulates of prompts of so many tokens, read side by side.

        A step takes at most step_tokens, those of the first prompts first, as the engine does.
        """
        total, history = 0.0, [0] * len(prompts)
        while history != list(prompts):
            budget = step_tokens
            for index, tokens in enumerate(prompts):
                count = min(tokens - history[index], budget)
                total += self._chunk_macs(count, history[index])
                history[index] += count
                budget -= count
        return total + self.macs(0, 0, len(prompts))

    def in_form(self, mla_form: str) -> Workload:
        """The same for an engine with one form of latent attention only.

        mla_form: "expanded" makes every row whole once and keeps it so; "absorbed" never does.
        """
        macs = self.whole_context_macs if mla_form == "expanded" else self.context_macs
        return replace(self, context_macs=macs, whole_context_macs=macs)

    def _chunk_macs(self, tokens: int, history: int) -> float:
        """Of new tokens of one sequence, without logits, after `history` cached ones.

        The form of latent attention is chosen as native/ops/mla_attention.cc does.
        """
        seen = history + (tokens + 1) / 2
        macs = self.macs(tokens, seen, 0)
        saved = tokens * (self.context_macs - self.whole_context_macs)
        if saved > self.expand_macs:
            macs += history * self.expand_macs - saved * seen
        return macs


def _experts(node: Node, weights: list[Weight]) -> Experts:
    """A `moe` node (two matrices per expert) or an `expert_linear` (one)."""
    count = node.int_attr("experts") if node.op == "moe" else len(weights)
    return Experts(
        count,
        node.int_attr("top_k"),
        sum(w.nbytes for w in weights) / count,
        sum(math.prod(weight.shape) for weight in weights) / count,
    )


def _decode_weights(node: Node, weights: list[Weight]) -> list[Weight]:
    """The weights a decode step reads: absorbed latent attention leaves w_uk alone."""
    return [weights[0], *weights[2:]] if node.op == "mla_attention" else weights


def _attention_macs(node: Node) -> tuple[int, int, int]:
    """Workload's (context_macs, whole_context_macs, expand_macs) of one node."""
    if node.op == "mla_attention":
        heads, rank = node.int_attr("heads"), node.int_attr("kv_lora_rank")
        rope = node.int_attr("qk_rope_head_dim")
        content = node.int_attr("qk_nope_head_dim") + node.int_attr("v_head_dim")
        return heads * (2 * rank + rope), heads * (content + rope), heads * rank * content
    if node.op in ("attention", "gqa_attention"):
        macs = node.int_attr("heads") * (node.int_attr("head_dim") + node.int_attr("v_head_dim"))
        return macs, macs, 0
    return 0, 0, 0
