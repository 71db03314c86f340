"""What running a graph costs: bytes of weights read and multiply-accumulates, per token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress

from deepmnn.graph.caches import kept_width
from deepmnn.graph.call import Call
from deepmnn.graph.cost import attended
from deepmnn.graph.ir import ROWS, Graph, Node
from deepmnn.graph.signatures import SIGNATURES, Reading


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
    cache_width: elements of the KV cache that are kept for each token.
    outside_nbytes, outside_macs: of dense_nbytes and dense_macs, those before the first layer of
    experts and after the last one.

    Latent attention has two forms. context_macs and dense_macs are those of decode, over the
    latents; whole_context_macs: per token and row when keys and values are whole. Making a row
    whole takes expand_macs, as many as moving a query to the latents and its answer back.

    Sparse attention reads most_context of the cached rows (0: all). Those it is chosen from cost
    score_macs each, and scored_width of the cache's elements are theirs.
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
    outside_nbytes: int = 0
    outside_macs: int = 0
    most_context: int = 0
    score_macs: int = 0
    scored_width: int = 0

    @staticmethod
    def of(graph: Graph) -> Workload:
        """Adds up what the signatures say of a graph's nodes, plain or fused."""
        calls = [Call.of(graph, node) for node in graph.nodes]
        costs = [
            SIGNATURES[node.op].cost(call) for node, call in zip(graph.nodes, calls, strict=True)
        ]
        read = [read_nbytes(graph, *pair) for pair in zip(graph.nodes, calls, strict=True)]
        wanted = [call.y[0].rows == ROWS for call in calls]
        routed = [index for index, cost in enumerate(costs) if cost.experts]
        within = range(routed[0], routed[-1] + 1) if routed else range(len(costs))
        outside = [index not in within for index in range(len(costs))]
        dense = [nbytes["whole"] + nbytes["in_order"] for nbytes in read]
        macs = [0 if late else c.row for c, late in zip(costs, wanted, strict=True)]
        return Workload(
            dense_nbytes=sum(dense),
            dense_macs=sum(macs),
            row_macs=sum(c.row for c, late in zip(costs, wanted, strict=True) if late),
            context_macs=sum(c.context for c in costs),
            embedding_nbytes=sum(nbytes["looked_up"] for nbytes in read),
            experts=tuple(
                Experts(c.experts, c.top_k, nbytes["routed"] / c.experts, float(c.expert), late)
                for c, nbytes, late in zip(costs, read, wanted, strict=True)
                if c.experts
            ),
            cache_width=kept_width(graph.caches),
            whole_context_macs=sum(c.whole_context for c in costs),
            expand_macs=sum(c.expand for c in costs),
            outside_nbytes=sum(compress(dense, outside)),
            outside_macs=sum(compress(macs, outside)),
            most_context=max((c.most_context for c in costs), default=0),
            score_macs=sum(c.score for c in costs),
            scored_width=sum(c.scored_width for c in costs),
        )

    def decode_nbytes(self, batch: int, context: float, kv_element_nbytes: int = 4) -> float:
        """Bytes one decode step reads: weights once, experts as routed, every sequence's cache."""
        routed = sum(layer.touched(batch) * layer.nbytes for layer in self.experts)
        cache = batch * self.cache_read(context) * kv_element_nbytes
        return self.dense_nbytes + routed + batch * self.embedding_nbytes + cache

    def cache_read(self, context: float) -> float:
        """Elements of the KV cache that a token reads which sees so many rows."""
        if not self.most_context or context <= self.most_context:
            return context * (self.cache_width - self.scored_width)
        chosen = self.most_context * (self.cache_width - self.scored_width)
        return chosen + context * self.scored_width

    def macs(self, tokens: int, context: float, rows: int) -> float:
        """Multiply-accumulates of `tokens` tokens that see `context` cached rows on average."""
        seen = min(context, self.most_context) if self.most_context else context
        per_token, per_row = self.dense_macs + self.context_macs * seen, float(self.row_macs)
        if seen < context:
            per_token += self.score_macs * context
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
                total += self._span_macs(count, history[index])
                history[index] += count
                budget -= count
        return total + self.macs(0, 0, len(prompts))

    def in_form(self, mla_form: str) -> Workload:
        """The same for an engine with one form of latent attention only.

        mla_form: "expanded" makes every row whole once and keeps it so; "absorbed" never does.
        """
        macs = self.whole_context_macs if mla_form == "expanded" else self.context_macs
        return replace(self, context_macs=macs, whole_context_macs=macs)

    def _span_macs(self, tokens: int, history: int) -> float:
        """Of new tokens of one sequence, without logits, after `history` cached ones.

        The form of latent attention is chosen as native/ops/mla_attention.cc does.
        """
        seen = history + (tokens + 1) / 2
        read = attended(history, tokens, self.most_context)
        saved = tokens * (self.context_macs * read - self.whole_context_macs * seen)
        scored = self.score_macs * seen if read < seen else 0.0
        macs = self.macs(tokens, 0, 0) + tokens * (self.context_macs * read + scored)
        return macs + min(history * self.expand_macs - saved, 0)


def read_nbytes(graph: Graph, node: Node, call: Call) -> Counter[Reading]:
    """How a node reads weights → bytes of those, stored; of a looked-up one a row."""
    signature, nbytes = SIGNATURES[node.op], Counter[Reading]()
    for position, reading in enumerate(signature.readings(call.w)):
        weight = graph.weights[node.weights[position]]
        nbytes[reading] += weight.nbytes // (weight.shape[0] if reading == "looked_up" else 1)
    return nbytes
