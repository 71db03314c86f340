"""What an op costs, in multiply-accumulates: the rules that signatures name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from deepmnn.graph.call import Call


@dataclass(frozen=True)
class Cost:
    """Multiply-accumulates of a node for each of its rows.

    row: whatever the row sees and chooses. context: for each cached row that it sees.
    experts, top_k, expert: how many experts the routed weights make up, how many of them a row
    chooses, and what one costs.

    Latent attention has two forms. row and context are those of decode, over the latents;
    whole_context: for each cached row when keys and values are whole. Making a cached row whole
    takes `expand`, as many as moving a query to the latents and its answer back.

    Sparse attention reads most_context of the cached rows (0: all of them). Where a row sees more,
    it chooses them: `score`, for each cached row that it sees, which has scored_width elements.
    """

    row: int = 0
    context: int = 0
    whole_context: int = 0
    expand: int = 0
    experts: int = 0
    top_k: int = 0
    expert: int = 0
    most_context: int = 0
    score: int = 0
    scored_width: int = 0

    @property
    def with_experts(self) -> int:
        """Of a row, with the experts it chooses."""
        return self.row + self.top_k * self.expert


def attended(history: float, tokens: float, most: int) -> float:
    """Rows that each of so many new tokens attends to, on average: those before it and itself, and
    no more than `most` (0: all of them).
    """
    seen = history + (tokens + 1) / 2
    if not most or history + tokens <= most:
        return seen
    within = min(max(most - history, 0.0), tokens)  # tokens that see no more than that
    return (within * (history + (within + 1) / 2) + (tokens - within) * most) / tokens


CostRule = Callable[[Call], Cost]


def every_matrix(c: Call) -> Cost:
    """Each row is multiplied with every matrix; an op without matrices counts as free."""
    return Cost(_macs(c.w))


def nothing(c: Call) -> Cost:
    """Nothing is multiplied."""
    return Cost()


def grouped_attention(c: Call) -> Cost:
    """A query meets each key and value it sees."""
    macs = c.a["heads"] * (c.a["head_dim"] + c.a["v_head_dim"])
    return Cost(context=macs, whole_context=macs)


def latent_attention(c: Call) -> Cost:
    """w_uk and w_uv move queries to the latents and answers back, or make rows whole."""
    heads, rank, rope = c.a["heads"], c.a["kv_lora_rank"], c.a["qk_rope_head_dim"]
    content = c.a["qk_nope_head_dim"] + c.a["v_head_dim"]
    return Cost(
        row=_macs(c.w),
        context=heads * (2 * rank + rope),
        whole_context=heads * (content + rope),
        expand=heads * rank * content,
    )


def key_scores(c: Call) -> Cost:
    """Each head of a query meets the one key of a cached row, and its score a weight."""
    heads, dim, most = c.a["heads"], c.a["head_dim"], c.a["top_k"]
    return Cost(most_context=most, score=heads * (dim + 1))


def sparse_attention(c: Call) -> Cost:
    """A query meets the keys and values that are chosen."""
    return replace(grouped_attention(c), most_context=c.x[3].width)


def sparse_latent_attention(c: Call) -> Cost:
    """Latent attention to the rows that an indexer chooses."""
    heads, dim = c.a["index_n_heads"], c.a["index_head_dim"]
    return replace(
        latent_attention(c),
        most_context=c.a["index_topk"],
        score=heads * (dim + 1),
        scored_width=dim,
    )


def windowed_attention(c: Call) -> Cost:
    """A query meets the rows of its window, and entries: those chosen, or one in `ratio` rows."""
    macs, entries = 2 * c.a["heads"] * c.a["head_dim"], len(c.x) > 2
    chosen = c.x[3].width if len(c.x) > 3 else 0
    context = macs // c.a["ratio"] if entries and not chosen else 0
    return Cost(row=macs * (c.a["window"] + chosen), context=context, whole_context=context)


def compressed_attention(c: Call) -> Cost:
    """The same in one op, with the scores of the entries that it chooses."""
    macs = 2 * c.a["heads"] * c.a["head_dim"]
    ratio, chosen = c.a.get("ratio", 0), c.a.get("top_k", 0)
    context = 0
    if ratio:
        context = (c.a["index_heads"] * c.a["index_dim"] if chosen else macs) // ratio
    return Cost(row=macs * (c.a["window"] + chosen), context=context, whole_context=context)


def one_matrix_experts(c: Call) -> Cost:
    """Each weight is an expert."""
    return _mixture(c, len(c.w))


def experts(c: Call) -> Cost:
    """Each expert has as many of the weights as the others."""
    return _mixture(c, c.a["experts"])


def _mixture(c: Call, count: int) -> Cost:
    return Cost(experts=count, top_k=c.a["top_k"], expert=_macs(c.w) // count)


def _macs(shapes: tuple[tuple[int, ...], ...]) -> int:
    return sum(math.prod(shape) for shape in shapes if len(shape) == 2)
