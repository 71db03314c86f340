"""Graph → .mnn: every op of docs/ops.md in MNN's ops, weights streamed to the weight file.

Activations stay packed (model.py) as long as an op allows. `linear` is lowered where its output is
used, so that an attention can ask for its rows in the order MNN wants them. A tensor that holds a
value of the graph has its name, by which values are found again in a network (values.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from deepmnn.errors import RequestError, UnsupportedModelError, Words
from deepmnn.exporters.mnn.model import Block, Model
from deepmnn.exporters.mnn.weights import Rows, WeightFile
from deepmnn.formats import U8
from deepmnn.graph.ir import Graph, Node
from deepmnn.graph.passes import fuse_moe
from deepmnn.graph.weights import F32
from deepmnn.quant.store import stored_values

MLA_FORMS = ("auto", "expanded", "absorbed")
CACHE_TOKENS = 4096
CACHE_LIMIT = 3 << 30
"""Bytes that a cache of CACHE_TOKENS may take, keys and values in float32."""


@dataclass(frozen=True)
class Projection:
    """Rows of a linear map that have not been lowered yet."""

    source: str
    weight: str
    bias: str | None
    rows: Rows
    name: str


@dataclass
class Activation:
    """A value [tokens, width] in the forms it is needed in."""

    width: int
    packed: int | None = None
    plain: int | None = None
    projection: Projection | None = None


_CONVERT_AGAIN = Words(
    "Convert it again with optimize_level=3.", "Convert it again with --optimize-level 3."
)

Rule = Callable[["Lowering", Node], None]


def choose_mla_form(graph: Graph, wanted: str) -> str:
    """ "expanded", "absorbed", or "" for a model without latent attention.

    "auto" is expanded, which is faster at every context measured (docs/mnn.md), unless its cache
    would pass CACHE_LIMIT: DeepSeek-V2 and V3 have 128 heads. Latent attention that has not been
    fused (optimize level below 3) only runs expanded. Raises RequestError.
    """
    if wanted not in MLA_FORMS:
        raise RequestError(
            Words(f"mla_form is {wanted!r:.40}", f"--mla is {wanted!r:.40}"), " or ".join(MLA_FORMS)
        )
    fused = [node for node in graph.nodes if node.op == "mla_attention"]
    if fused and wanted == "auto":
        size = _expanded_width(fused) * 4 * CACHE_TOKENS
        return "expanded" if size <= CACHE_LIMIT else "absorbed"
    if fused:
        return wanted
    if not any(name.endswith(".latent") for name in graph.caches):
        return ""
    if wanted == "absorbed":
        raise RequestError(
            "this model was converted below optimize level 3, its attention is expanded",
            Words("mla_form 'expanded'", "--mla expanded"),
            _CONVERT_AGAIN,
        )
    return "expanded"


def _expanded_width(attentions: list[Node]) -> int:
    """Elements that all layers cache for a token, keys and values of one size."""
    sizes = ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "heads")
    total = 0
    for node in attentions:
        nope, pe, v, heads = (node.int_attr(key) for key in sizes)
        total += 2 * heads * max(nope + pe, v)
    return total


class Lowering:
    """One graph on its way into one model.

    Args:
        graph: of an artifact, any optimisation level.
        read: the stored bytes of a weight, by name.
        weights: where they go.
        context_length: positions that must be told apart.
        mla_form: "expanded" or "absorbed": what `mla_attention` caches and multiplies.
    """

    def __init__(
        self,
        graph: Graph,
        read: Callable[[str], U8],
        weights: WeightFile,
        context_length: int,
        mla_form: str,
        biz_code: str = "",
    ) -> None:
        self.stored = graph.weights
        self.graph = graph.copy()
        fuse_moe.run(self.graph)
        self.read, self.weights, self.mla_form = read, weights, mla_form
        self.context_length = context_length
        self.model = Model(biz_code)
        self.rotary: dict[tuple[object, ...], tuple[int, int]] = {}
        self.hidden_size = self._hidden_size()
        self.attentions = 0
        self.cache_width = 0
        self._expert_layers = 0
        self._values: dict[str, Activation] = {}
        self._norms: dict[str, list[int]] = {}
        self.embedded = self.model.input("input_ids", (-1, 1, self.hidden_size))
        self.mask = self.model.input("attention_mask", (1, 1, -1, -1))
        self.positions = self.model.input("position_ids", (1, -1), "DT_INT32")
        self.wanted = self.model.input("logits_index", (1,), "DT_INT32")

    def run(self) -> Model:
        """Lowers every node. Raises UnsupportedModelError for what MNN has no op for."""
        from deepmnn.exporters.mnn.rules import RULES

        for node in self.graph.nodes:
            if node.op not in RULES:
                raise UnsupportedModelError(
                    f"{node.name} is a {node.op}, which MNN cannot run",
                    "a model converted at optimize level 2 or 3",
                    _CONVERT_AGAIN,
                )
            RULES[node.op](self, node)
        self._name_values()
        row = self.model.reshape(self.plain("logits"), (1, -1, self.width("logits")))
        self.model.tensors[row] = self.model.ops[-1]["name"] = "logits"
        self.model.outputs = ["logits"]
        return self.model

    def _hidden_size(self) -> int:
        node = next(node for node in self.graph.nodes if node.op == "embedding")
        return self.graph.values[node.outputs[0]].width

    def _name_values(self) -> None:
        """Tensors get the names of what they hold: the first where a value has several."""
        named: set[int] = set()
        for name, value in self._values.items():
            tensor = value.packed if value.plain is None else value.plain
            if tensor is not None and tensor not in named and name != "logits":
                named.add(tensor)
                self.name(tensor, name)

    def name(self, tensor: int, value: str) -> None:
        """The tensor holds a value of the model."""
        self.model.tensors[tensor] = value

    def next_attention(self, width: int) -> int:
        """MNN numbers the layers that cache; this one caches `width` elements a token."""
        self.attentions += 1
        self.cache_width += width
        return self.attentions - 1

    def next_expert_layer(self) -> int:
        """... and those that route."""
        self._expert_layers += 1
        return self._expert_layers - 1

    # ------------------------------------------------------------------ values

    def width(self, name: str) -> int:
        """Elements per token."""
        return self.graph.values[name].width

    def packed(self, name: str) -> int:
        """The packed form of a value."""
        value = self._values[name]
        if value.packed is None and value.projection is not None:
            return self.project(name, np.arange(value.width))
        if value.packed is None:
            assert value.plain is not None
            shaped = self.model.reshape(value.plain, (-1, value.width, 1, 1))
            value.packed = self.model.pack(shaped)
        return value.packed

    def plain(self, name: str) -> int:
        """The plain form of a value, [tokens, width]."""
        value = self._values[name]
        if value.plain is None:
            unpacked = self.model.unpack(self.packed(name))
            value.plain = self.model.reshape(unpacked, (-1, value.width))
        return value.plain

    def is_packed(self, names: Sequence[str]) -> bool:
        """Whether an element-wise op on these had better stay packed."""
        return any(self._values[name].plain is None for name in names)

    def set_packed(self, name: str, tensor: int) -> None:
        """The value's packed form has been computed."""
        self._values[name] = Activation(self.width(name), packed=tensor)

    def set_plain(self, name: str, tensor: int) -> None:
        """The value's plain form, [tokens, width], has been computed."""
        self._values[name] = Activation(self.width(name), plain=tensor)

    def alias(self, name: str, other: str) -> None:
        """Two names of one value."""
        self._values[name] = self._values[other]

    # ------------------------------------------------------------------ weights

    def values(self, name: str) -> F32:
        """The numbers of a stored weight, a vector's or a matrix's."""
        return stored_values(self.stored[name], self.read(name))

    def constant(self, values: F32) -> int:
        """A constant tensor, its numbers in the weight file."""
        return self.model.stored_floats(values.shape, *self.weights.floats(values))

    def norm(self, name: str) -> list[int]:
        """Where the weight file has a norm's weight and the zeros MNN wants beside it."""
        if name not in self._norms:
            values = self.values(name)
            start, nbytes = self.weights.floats(values)
            self.weights.floats(np.zeros_like(values))
            self._norms[name] = [start, nbytes, nbytes]
        return self._norms[name]

    def defer(self, name: str, projection: Projection) -> None:
        """The value is these rows of a linear map, lowered when somebody asks for it."""
        self._values[name] = Activation(self.width(name), projection=projection)

    def project(self, name: str, order: Rows, part: str = "") -> int:
        """Packed rows of a value that a linear map produces, in this order; -1 is a zero row."""
        value = self._values[name]
        projection, whole = value.projection, np.array_equal(order, np.arange(value.width))
        if whole and value.packed is not None:
            return value.packed
        if projection is None:
            raise UnsupportedModelError(
                f"{name} does not come straight from a linear map", "q, k and v that do"
            )
        rows = np.where(order < 0, -1, projection.rows[order])
        bias = None if projection.bias is None else self.values(projection.bias)
        made = self.linear(
            self.model,
            self.packed(projection.source),
            (projection.weight, rows, bias),
            projection.name + part,
        )
        if whole:
            value.packed = made
        return made

    def linear(self, block: Block, x: int, weight: tuple[str, Rows, F32 | None], name: str) -> int:
        """A convolution of packed x by rows of a stored weight; `bias` is over all its rows."""
        stored_name, rows, bias = weight
        stored = self.stored[stored_name]
        if bias is not None:
            bias = np.where(rows < 0, np.float32(0), bias[rows])
        fields = self.weights.linear(stored, self.read(stored_name), rows, bias)
        return block.convolution(x, name, len(rows), stored.shape[1], fields)
