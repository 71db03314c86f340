"""What the steps of a phase ran, and the bytes and multiply-accumulates of each node for that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from deepmnn import formats
from deepmnn.graph import cost
from deepmnn.graph.caches import kept_width
from deepmnn.graph.call import Call
from deepmnn.graph.ir import ROWS, Graph, Node
from deepmnn.graph.signatures import SIGNATURES, caches_written
from deepmnn.graph.workload import Experts, read_nbytes


class StepSpan(NamedTuple):
    """One sequence in a step: new tokens, cached rows before them, rows whose logits are wanted."""

    tokens: int
    history: int
    rows: int

    @property
    def seen(self) -> float:
        """Rows that a token sees, on average."""
        return self.history + (self.tokens + 1) / 2


Step = tuple[StepSpan, ...]


@dataclass(frozen=True)
class Work:
    """Bytes read and multiply-accumulates."""

    nbytes: float
    int8_macs: float
    f32_macs: float


class Load:
    """What some steps ran.

    Attributes:
        steps, tokens, rows: how many.
        pairs: tokens and cached rows that they see.
        context: cached rows that steps read, of all steps; most_context: of one.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        self._spans = Counter(span for step in steps for span in step)
        self._tokens = Counter(sum(span.tokens for span in step) for step in steps)
        self._rows = Counter(sum(span.rows for span in step) for step in steps)
        self.steps = len(steps)
        self.tokens = sum(tokens * times for tokens, times in self._tokens.items())
        self.rows = sum(rows * times for rows, times in self._rows.items())
        self.pairs = sum(span.tokens * span.seen * times for span, times in self._spans.items())
        contexts = [sum(span.history + span.tokens for span in step) for step in steps]
        self.context, self.most_context = sum(contexts), max(contexts, default=0)

    @property
    def contexts(self) -> tuple[int, int]:
        """The least and the most rows that the last token of a span saw."""
        seen = [span.history + span.tokens for span in self._spans] or [0]
        return min(seen), max(seen)

    def work_of(
        self, graph: Graph, node: Node, kv_element_nbytes: float, kv_dtype: str, mla_form: str
    ) -> Work:
        """What a node takes in these steps.

        kv_element_nbytes, kv_dtype: how the cache is stored. mla_form: as `LoadOptions` has it.
        """
        call = Call.of(graph, node)
        costs = SIGNATURES[node.op].cost(call)
        sizes = self._rows if call.y[0].rows == ROWS else self._tokens
        by_weights = float(costs.with_experts * sum(n * times for n, times in sizes.items()))
        by_cache = self._context_macs(costs, mla_form)
        stored = (formats.named(graph.weights[name].format) for name in node.weights)
        int8 = by_weights if any(format.is_quantized for format in stored) else 0.0
        int8 += by_cache if kv_dtype == "int8" else 0.0
        nbytes = self._nbytes(graph, node, call, costs, sizes, kv_element_nbytes)
        return Work(nbytes, int8, by_weights + by_cache - int8)

    def _context_macs(self, costs: cost.Cost, mla_form: str) -> float:
        """Of attention. The form is chosen as native/ops/mla_attention.cc does."""
        if not costs.context and not costs.score:
            return 0.0
        macs, most = 0.0, costs.most_context
        for span, times in self._spans.items():
            if most and span.history + span.tokens > most:
                macs += times * span.tokens * span.seen * costs.score
            absorbed = span.tokens * cost.attended(span.history, span.tokens, most) * costs.context
            expanded = span.tokens * span.seen * costs.whole_context + span.history * costs.expand
            forms = {"absorbed": absorbed, "expanded": expanded}
            macs += times * forms.get(mla_form, min(absorbed, expanded))
        return macs

    def _nbytes(
        self,
        graph: Graph,
        node: Node,
        call: Call,
        costs: cost.Cost,
        sizes: Counter[int],
        kv_element_nbytes: float,
    ) -> float:
        read = read_nbytes(graph, node, call)
        steps = sum(times for size, times in sizes.items() if size)
        nbytes = float(steps * (read["whole"] + read["in_order"]))
        nbytes += read["looked_up"] * sum(size * times for size, times in sizes.items())
        if costs.experts:
            each = Experts(costs.experts, costs.top_k, read["routed"] / costs.experts, 0.0)
            nbytes += each.nbytes * sum(each.touched(n) * times for n, times in sizes.items())
        width = kept_width({name: graph.caches[name] for name in caches_written(node)})
        most = costs.most_context
        if not most:
            return nbytes + width * kv_element_nbytes * self.context
        rows = scored = 0.0
        for span, times in self._spans.items():
            context = span.history + span.tokens
            rows += times * min(context, span.tokens * most)
            scored += times * (context if context > most else span.tokens)
        width -= costs.scored_width
        return nbytes + (rows * width + scored * costs.scored_width) * kv_element_nbytes
