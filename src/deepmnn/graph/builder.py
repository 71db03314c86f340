"""GraphBuilder: writes a graph one plain op at a time (docs/ops.md), inferring shapes.

A method is an op: it takes value names and the node's name, registers the weights the node needs,
appends the node and returns the name of its output (a tuple of names when there are several). A
weight is called after its node ("layers.0.mlp.up_proj" reads "layers.0.mlp.up_proj.weight"), and so
is the checkpoint tensor behind it, with `prefix` in front.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from deepmnn.errors import ConfigError, GraphError
from deepmnn.graph.caches import CacheEntry
from deepmnn.graph.ir import CONTEXT, ROWS, TOKENS, Attr, Dim, Graph, Node, Value, Weight
from deepmnn.graph.weights import Expr, Flat, Tensor

Shape = tuple[Dim, ...]

MAX_WEIGHTS = 1 << 17
"""DeepSeek-V3 has 46,183 weights; no published model has more than 80,000."""

MAX_CONSTANTS = 1 << 20
"""Numbers in all nodes' attributes: the frequencies of 126 layers with heads of 128 are 16,128."""


class GraphBuilder:
    """Builds one graph; `graph` is the result.

    A few numbers in a config.json can describe millions of weights. So a method raises ConfigError
    before the graph has more of them, or more numbers in its attributes, than any model's.

    Args:
        name: the graph's name.
        prefix: what checkpoint tensor names carry in front of node names.
    """

    def __init__(self, name: str, prefix: str = "model.") -> None:
        self.graph = Graph(name)
        self.prefix = prefix
        self._constants = 0
        self.ids = self._input("ids")
        self.positions = self._input("positions")

    def _input(self, name: str) -> str:
        self.graph.inputs.append(name)
        self.graph.values[name] = Value(name, (TOKENS,), "i32")
        return name

    def state(self, name: str, width: int) -> str:
        """An input of a draft part (graph/draft.py): what the main part gives as `name`,
        [tokens, width].
        """
        self.graph.inputs.append(name)
        self.graph.values[name] = Value(name, (TOKENS, width))
        return name

    def value(self, name: str) -> Value:
        """The value of that name. Raises GraphError when nothing produced it."""
        if name not in self.graph.values:
            raise GraphError(f"value {name!r} is read before it is produced")
        return self.graph.values[name]

    def weight(self, name: str, shape: tuple[int, ...], role: str, tensor: str = "") -> str:
        """Registers a weight read from checkpoint tensor `tensor` (default: prefix + name)."""
        self._check_size("weights", len(self.graph.weights) + 1, MAX_WEIGHTS)
        expr: Expr = Tensor(tensor or self.prefix + name, shape)
        if name in self.graph.weights:
            raise GraphError(f"weight {name!r} is registered twice")
        dtype = "vector" if role == "vector" else "f32"
        self.graph.weights[name] = Weight(name, expr, role, dtype)
        return name

    def _vector(self, name: str, expr: Expr) -> str:
        """Registers a vector that is made of a checkpoint tensor."""
        size = expr.shape[0]
        self.weight(name, (size,), "vector")
        self.graph.weights[name].expr = expr
        return name

    def _check_size(self, what: str, count: int, limit: int) -> None:
        if count > limit:
            raise ConfigError(
                f"config.json describes a model with {count} {what} or more",
                f"at most {limit}",
                "Check the numbers of layers and experts, and the size of a head.",
            )

    def _add(
        self,
        op: str,
        name: str,
        inputs: Sequence[str],
        shapes: Sequence[Shape],
        weights: Sequence[str] = (),
        dtype: str = "f32",
        attrs: Mapping[str, Attr] | None = None,
    ) -> tuple[str, ...]:
        """Appends a node; its outputs are fresh values called after it."""
        for x in inputs:
            self.value(x)
        attrs = dict(attrs or {})
        self._constants += sum(len(a) for a in attrs.values() if isinstance(a, tuple))
        self._check_size("constants", self._constants, MAX_CONSTANTS)
        outputs = []
        for index, shape in enumerate(shapes):
            output = name if len(shapes) == 1 else f"{name}.{index}"
            if output in self.graph.values:
                raise GraphError(f"value {output!r} is produced twice")
            self.graph.values[output] = Value(output, shape, dtype)
            outputs.append(output)
        node = Node(op, tuple(inputs), tuple(outputs), tuple(weights), attrs, name)
        self.graph.nodes.append(node)
        return node.outputs

    def output(self, x: str, name: str) -> str:
        """Makes x, the last node's output, an output of the graph called `name`; returns `name`."""
        value = self.graph.values.pop(x)
        self.graph.values[name] = Value(name, value.shape, value.dtype)
        self.graph.nodes[-1].outputs = (name,)
        self.graph.outputs.append(name)
        return name

    def _rows(self, x: str) -> Dim:
        return self.value(x).shape[0]

    def embedding(self, ids: str, name: str, vocab_size: int, hidden_size: int) -> str:
        """ids [n] → rows of a table [vocab_size, hidden_size]."""
        table = self.weight(f"{name}.weight", (vocab_size, hidden_size), "embedding")
        return self._add("embedding", name, [ids], [(self._rows(ids), hidden_size)], [table])[0]

    def linear(
        self,
        x: str,
        name: str,
        out_features: int,
        bias: bool = False,
        role: str = "linear",
        tensor: str = "",
        weight: str = "",
    ) -> str:
        """W x (+ b): [n, in] → [n, out_features]. tensor: where W lies if not under its name.
        weight: W itself, where an earlier node registered it.
        """
        shape = (out_features, self.value(x).width)
        weights = [weight or self.weight(f"{name}.weight", shape, role, tensor)]
        if bias:
            weights.append(self.weight(f"{name}.bias", (out_features,), "vector"))
        return self._add("linear", name, [x], [(self._rows(x), out_features)], weights)[0]

    def rms_norm(self, x: str, name: str, eps: float, heads: int = 1) -> str:
        """x / rms(x) · w, over the row or over each of `heads` heads."""
        value = self.value(x)
        weight = self.weight(f"{name}.weight", (value.width // heads,), "vector")
        attrs: dict[str, Attr] = {"eps": eps, "heads": heads}
        return self._add("rms_norm", name, [x], [value.shape], [weight], attrs=attrs)[0]

    def layer_norm(self, x: str, name: str, eps: float) -> str:
        """(x − mean) / √(variance + eps) · w + b over the row (arXiv:1607.06450)."""
        value = self.value(x)
        shape = (value.width,)
        weights = [self.weight(f"{name}.{part}", shape, "vector") for part in ("weight", "bias")]
        return self._add("layer_norm", name, [x], [value.shape], weights, attrs={"eps": eps})[0]

    def reshape(self, x: str, name: str, *trailing: int) -> str:
        """The same data, seen as [n, *trailing]."""
        return self._add("reshape", name, [x], [(self._rows(x), *trailing)])[0]

    def split(self, x: str, name: str, sizes: tuple[int, ...], heads: int = 1) -> tuple[str, ...]:
        """[n, heads, Σ sizes] → one [n, heads, size] each."""
        rows = self._rows(x)
        shapes = [(rows, heads, size) if heads > 1 else (rows, size) for size in sizes]
        return self._add("split", name, [x], shapes, attrs={"sizes": sizes, "heads": heads})

    def concat(self, parts: Sequence[str], name: str, heads: int = 1) -> str:
        """[n, heads, d₀], [n, heads, d₁], … → [n, heads, Σ d]."""
        width = sum(self.value(part).width for part in parts) // heads
        rows = self._rows(parts[0])
        shape = (rows, heads, width) if heads > 1 else (rows, width)
        return self._add("concat", name, parts, [shape], attrs={"heads": heads})[0]

    def broadcast(self, x: str, name: str, heads: int) -> str:
        """[n, d] → [n, heads, d], every head the same."""
        shape = (self._rows(x), heads, self.value(x).width)
        return self._add("broadcast", name, [x], [shape], attrs={"heads": heads})[0]

    def rope(
        self,
        x: str,
        name: str,
        heads: int,
        inv_freq: tuple[float, ...],
        rope_scale: float,
        interleaved: bool,
        positions: str = "",
    ) -> str:
        """Rotates pairs of every head by position · inv_freq (RoFormer, arXiv:2104.09864).

        positions: of the rows of x; without it the tokens'.
        """
        return self._add(
            "rope",
            name,
            [x, positions or self.positions],
            [self.value(x).shape],
            attrs={
                "heads": heads,
                "inv_freq": inv_freq,
                "rope_scale": rope_scale,
                "interleaved": int(interleaved),
            },
        )[0]

    def cache(self, x: str, name: str) -> str:
        """Appends [tokens, …] to cache entry `name`; → all rows the sequences see, [context, …]."""
        value = self.value(x)
        self.graph.caches[name] = CacheEntry(value.width)
        return self._add("cache", name, [x], [(CONTEXT, *value.shape[1:])], attrs={"cache": name})[
            0
        ]

    def attention(
        self, q: str, k: str, v: str, name: str, heads: int, kv_heads: int, scale: float
    ) -> str:
        """Causal softmax(scale · q kᵀ) v within each sequence: → [tokens, heads, v_head_dim]."""
        head_dim = self.value(q).width // heads
        v_head_dim = self.value(v).width // kv_heads
        return self._add(
            "attention",
            name,
            [q, k, v],
            [(self._rows(q), heads, v_head_dim)],
            attrs={
                "heads": heads,
                "kv_heads": kv_heads,
                "head_dim": head_dim,
                "v_head_dim": v_head_dim,
                "scale": scale,
            },
        )[0]

    def select_keys(
        self,
        q: str,
        weights: str,
        k: str,
        name: str,
        heads: int,
        top_k: int,
        scale: float,
        ratio: int = 1,
    ) -> str:
        """The rows of each token's own sequence with the largest Σ_h w_h · ReLU(q_h · k) · scale.

        q [tokens, heads · d], weights [tokens, heads], k [context, d] → i32 [tokens, top_k]:
        ascending, -1 behind the last where a token sees fewer. Every ratio-th row counts alone.
        """
        attrs: dict[str, Attr] = {
            "heads": heads,
            "head_dim": self.value(k).width,
            "top_k": top_k,
            "ratio": ratio,
            "scale": scale,
        }
        shape = (self._rows(q), top_k)
        return self._add("select_keys", name, [q, weights, k], [shape], dtype="i32", attrs=attrs)[0]

    def sparse_attention(
        self, q: str, k: str, v: str, rows: str, name: str, heads: int, kv_heads: int, scale: float
    ) -> str:
        """`attention` of each token over the rows that `select_keys` chose for it alone."""
        v_head_dim = self.value(v).width // kv_heads
        attrs: dict[str, Attr] = {
            "heads": heads,
            "kv_heads": kv_heads,
            "head_dim": self.value(q).width // heads,
            "v_head_dim": v_head_dim,
            "scale": scale,
        }
        shape = (self._rows(q), heads, v_head_dim)
        return self._add("sparse_attention", name, [q, k, v, rows], [shape], attrs=attrs)[0]

    def _pointwise(self, op: str, name: str, *inputs: str, **attrs: Attr) -> str:
        return self._add(op, name, inputs, [self.value(inputs[0]).shape], attrs=attrs)[0]

    def silu(self, x: str, name: str) -> str:
        """x · sigmoid(x)."""
        return self._pointwise("silu", name, x)

    def sigmoid(self, x: str, name: str) -> str:
        """1 / (1 + exp(−x))."""
        return self._pointwise("sigmoid", name, x)

    def softmax(self, x: str, name: str) -> str:
        """Over the whole row."""
        return self._pointwise("softmax", name, x)

    def add(self, a: str, b: str, name: str) -> str:
        """a + b, equal shapes."""
        return self._pointwise("add", name, a, b)

    def mul(self, a: str, b: str, name: str) -> str:
        """a · b, equal shapes."""
        return self._pointwise("mul", name, a, b)

    def scale(self, x: str, name: str, factor: float) -> str:
        """x · factor."""
        return self._pointwise("scale", name, x, factor=factor)

    def normalize(self, x: str, name: str, eps: float) -> str:
        """x / (Σ x + eps) over the row."""
        return self._pointwise("normalize", name, x, eps=eps)

    def bias_add(self, x: str, name: str, weight: Expr | None = None) -> str:
        """x + b; b is `weight`, without it the checkpoint tensor called like the node."""
        value = self.value(x)
        bias = self._vector(name, weight or Tensor(self.prefix + name, (value.width,)))
        return self._add("bias_add", name, [x], [value.shape], [bias])[0]

    def group_limit(
        self, x: str, name: str, n_group: int, topk_group: int, group_score: str
    ) -> str:
        """Scores [n, experts], −inf outside the best topk_group of n_group groups."""
        return self._pointwise(
            "group_limit",
            name,
            x,
            n_group=n_group,
            topk_group=topk_group,
            group_score=group_score,
        )

    def top_k(self, scores: str, name: str, k: int) -> str:
        """Indices of the k best scores, best first: [n, experts] → i32 [n, k]."""
        shape = (self._rows(scores), k)
        return self._add("top_k", name, [scores], [shape], dtype="i32", attrs={"top_k": k})[0]

    def gather(self, x: str, indices: str, name: str) -> str:
        """x [n, experts] at indices [n, k] → [n, k]."""
        return self._add("gather", name, [x, indices], [self.value(indices).shape])[0]

    def expert_linear(
        self,
        x: str,
        indices: str,
        name: str,
        projection: str,
        experts: int,
        out_features: int,
        per_choice: bool,
    ) -> str:
        """W_e x for each of a token's k experts e: → [n, k, out_features].

        Expert e's matrix is "{name}.{e}.{projection}.weight". per_choice: x brings one row for each
        choice, [n, k, in]; otherwise all choices share [n, in].
        """
        self._check_size("weights", len(self.graph.weights) + experts, MAX_WEIGHTS)
        k = self.value(indices).width
        in_features = self.value(x).width // (k if per_choice else 1)
        weights = [
            self.weight(f"{name}.{e}.{projection}.weight", (out_features, in_features), "expert")
            for e in range(experts)
        ]
        shape = (self._rows(x), k, out_features)
        attrs: dict[str, Attr] = {"top_k": k, "per_choice": int(per_choice)}
        node = f"{name}.{projection}"
        return self._add("expert_linear", node, [x, indices], [shape], weights, attrs=attrs)[0]

    def combine(self, y: str, weights: str, name: str) -> str:
        """Σₖ wₖ yₖ: y [n, k, h], weights [n, k] → [n, h]."""
        k = self.value(weights).width
        shape = (self._rows(y), self.value(y).width // k)
        return self._add("combine", name, [y, weights], [shape], attrs={"top_k": k})[0]

    def select_rows(self, x: str, name: str) -> str:
        """[tokens, d] → [rows, d]: the rows whose logits are wanted."""
        return self._add("select_rows", name, [x], [(ROWS, self.value(x).width)])[0]

    def norm(self, x: str, name: str, eps: float, heads: int = 1) -> str:
        """x / rms(x) over the row or over each of `heads` heads: an RMSNorm without a weight."""
        return self._pointwise("rms_norm", name, x, eps=eps, heads=heads)

    def sqrt_softplus(self, x: str, name: str) -> str:
        """√(ln(1 + eˣ))."""
        return self._pointwise("sqrt_softplus", name, x)

    def clamp(self, x: str, name: str, limit: float, two_sided: bool) -> str:
        """min(x, limit); two_sided: and not below −limit."""
        return self._pointwise("clamp", name, x, limit=limit, two_sided=int(two_sided))

    def add_constant(self, x: str, name: str, constant: float) -> str:
        """x + constant."""
        return self._pointwise("add_constant", name, x, constant=constant)

    def gain(self, x: str, name: str, weight: Expr) -> str:
        """x · w; w is a vector of x's width, or of one number."""
        gain = self._vector(name, weight)
        return self._add("gain", name, [x], [self.value(x).shape], [gain])[0]

    def lookup(self, ids: str, name: str, vocab_size: int, k: int, experts: int) -> str:
        """The k experts of every token id: a table [vocab_size, k] of whole numbers → [n, k]."""
        table = self._vector(name, Flat(Tensor(self.prefix + name, (vocab_size, k))))
        attrs: dict[str, Attr] = {"top_k": k, "experts": experts}
        shape = (self._rows(ids), k)
        return self._add("lookup", name, [ids], [shape], [table], dtype="i32", attrs=attrs)[0]

    def mix(self, a: str, x: str, name: str, rows: int, transposed: bool = False) -> str:
        """A x for every row: a [n, rows, q] (or, transposed, [n, q, rows]), x [n, q, d] →
        [n, rows, d].
        """
        inner = self.value(a).width // rows
        d = self.value(x).width // inner
        shape: Shape = (self._rows(x), rows, d) if rows > 1 else (self._rows(x), d)
        attrs: dict[str, Attr] = {"rows": rows, "transposed": int(transposed)}
        return self._add("mix", name, [a, x], [shape], attrs=attrs)[0]

    def sinkhorn(self, x: str, name: str, iterations: int, eps: float) -> str:
        """A matrix [n, size, size] made doubly stochastic (arXiv:2512.24880, equation 9): softmax
        of its rows, then columns and rows are made to sum to one in turn, columns last.
        """
        size = math.isqrt(self.value(x).width)
        return self._pointwise("sinkhorn", name, x, size=size, iterations=iterations, eps=eps)

    def compress(
        self, kv: str, gate: str, name: str, ratio: int, overlapping: bool
    ) -> tuple[str, ...]:
        """One entry for each `ratio` tokens of a sequence, in the row of their last one:
        kv, gate [context, w] → entries [context, d] and positions i32 [context], those of their
        first ones. The checkpoint tensor called like the node, [ratio, w], is added to the gates.

        overlapping: w is 2d, and a window's entry takes the first half of the window before it,
        too; otherwise w is d.
        """
        width = self.value(kv).width
        bias = self._vector(name, Flat(Tensor(self.prefix + name, (ratio, width))))
        shapes: list[Shape] = [(CONTEXT, width // 2 if overlapping else width), (CONTEXT,)]
        attrs: dict[str, Attr] = {"ratio": ratio, "overlapping": int(overlapping)}
        outputs = self._add("compress", name, [kv, gate], shapes, [bias], attrs=attrs)
        positions = self.graph.values[outputs[1]]
        self.graph.values[positions.name] = Value(positions.name, positions.shape, "i32")
        return outputs

    def window_attention(
        self,
        q: str,
        keys: Sequence[str],
        name: str,
        sinks: str,
        heads: int,
        scale: float,
        window: int,
        ratio: int = 1,
    ) -> str:
        """Attention over the last `window` rows and compressed entries, with one number a head that
        takes part in the softmax without a value: q [tokens, heads, d] → the same.

        keys: rows [context, d], keys and values at once; entries like them, one for each `ratio`
        rows (`compress`); the rows of the entries that a token sees, i32 [tokens, k]. Without the
        last, a token sees every entry that is complete; without the others, none.
        sinks: the checkpoint tensor [heads], without the prefix.
        """
        numbers = self.weight(sinks, (heads,), "vector")
        attrs: dict[str, Attr] = {
            "heads": heads,
            "head_dim": self.value(q).width // heads,
            "scale": scale,
            "window": window,
            "ratio": ratio,
        }
        shape = self.value(q).shape
        return self._add("window_attention", name, [q, *keys], [shape], [numbers], attrs=attrs)[0]

    def grouped_linear(self, x: str, name: str, groups: int, out_features: int) -> str:
        """A matrix for each group of columns: x [n, groups, in] → [n, groups, out_features];
        W [groups · out_features, in].
        """
        shape = (groups * out_features, self.value(x).width // groups)
        weight = self.weight(f"{name}.weight", shape, "linear")
        out = (self._rows(x), shape[0])
        return self._add("grouped_linear", name, [x], [out], [weight], attrs={"groups": groups})[0]
