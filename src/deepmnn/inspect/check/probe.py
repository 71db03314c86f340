"""Measures what an attention of a model does: how it turns, scales and multiplies.

A sequence of two tokens is a balance. The first one's key meets the query of the second; the second
one's key and value are zero. So the second one's output is sigmoid(s) times the value of the first,
and s, the score, is what the attention makes of one query and one key: scale · (R q) · (R k). With
queries and keys of one element each, it tells an element of the rotation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepmnn.errors import ArtifactError
from deepmnn.formats import F32
from deepmnn.graph.ir import Graph
from deepmnn.inspect.check.piece import Piece, region
from deepmnn.inspect.check.subject import Subject

F64 = NDArray[np.float64]

SCORE = 1.5
"""What a probe aims at: sigmoid tells scores near zero best."""

_CHUNK = 128
"""Sequences of a step."""

_ATTENTION = re.compile(r"layers\.(\d+)\.self_attn\.attention")
_AGAIN = "Convert the checkpoint again."
_NAMED = ("cache", "k_cache", "v_cache", "index_cache")
"""Attributes in which the attentions of a sound model differ from layer to layer."""


@dataclass(frozen=True)
class Attention:
    """One attention of a graph, between what it is projected from and its output.

    Attributes:
        layers: the numbers of the layers that compute alike; this is the first.
        inputs: of the region: q, k and v, or q and the latents.
        output: its name.
        attrs: those of all nodes of the region; what a name says twice is in here once.
        graph: the region.
        index: what an indexer chooses rows by, which the region reads, too.
    """

    layers: tuple[int, ...]
    inputs: tuple[str, ...]
    output: str
    attrs: Mapping[str, Any]
    graph: Graph
    index: tuple[str, ...] = ()

    @property
    def given(self) -> tuple[str, ...]:
        """All that the region reads, positions apart."""
        return (*self.inputs, *self.index)

    @property
    def most(self) -> int:
        """Rows that a token attends to; 0: all."""
        return int(self.attrs.get("index_topk", self.attrs.get("top_k", 0))) if self.index else 0

    @property
    def is_latent(self) -> bool:
        """Whether it reads latents."""
        return len(self.inputs) == 2

    def number(self, key: str) -> float:
        """An attribute. Raises ArtifactError where no node has it."""
        if key not in self.attrs:
            raise ArtifactError(f"{self.output} is computed without {key}", "one", _AGAIN)
        return float(self.attrs[key])

    def check_sizes(self, sizes: Sizes) -> None:
        """Raises ArtifactError unless it has the shape that config.json says."""
        s = sizes
        expected = [s.heads * (s.nope + s.rotary)]
        if s.rank:
            expected += [s.rank + s.rotary]
        else:
            expected += [s.kv_heads * s.rotary, s.kv_heads * s.value]
        values, inputs = (
            self.graph.values,
            [name for name in self.inputs if name in self.graph.inputs],
        )
        found = [values[name].width for name in inputs]
        if found != expected or values[self.output].width != s.heads * s.value:
            raise ArtifactError(
                f"{self.output} is computed from {', '.join(inputs)}, {found} wide",
                f"{', '.join(self.inputs)}, {expected} wide, as config.json says",
                _AGAIN,
            )


def attentions(graph: Graph) -> list[Attention]:
    """The attentions of a graph, one for each way to compute."""
    found: dict[str, list[Attention]] = {}
    for name in graph.values:
        if (match := _ATTENTION.fullmatch(name)) is None:
            continue
        layer = int(match[1])
        inputs, index = _inputs(graph, f"layers.{layer}.self_attn")
        part = region(graph, [name], (*inputs, *index))
        attrs = {key: value for node in part.nodes for key, value in node.attrs.items()}
        scale = [node.attrs["scale"] for node in part.nodes if "scale" in node.attrs]
        attrs |= {"scale": scale[-1]} if scale else {}
        own = [
            (node.op, sorted((k, v) for k, v in node.attrs.items() if k not in _NAMED))
            for node in part.nodes
        ]
        one = Attention((layer,), inputs, name, attrs, part, index)
        found.setdefault(repr(own), []).append(one)
    return [
        replace(alike[0], layers=tuple(each.layers[0] for each in alike))
        for alike in found.values()
    ]


def _inputs(graph: Graph, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What an attention is computed from: the values that the projections give; and an indexer."""
    latent = f"{name}.kv_a_proj_with_mqa"
    if latent in graph.values:
        expanded = f"{name}.q_b_proj"
        index = [f"{name}.indexer.{part}" for part in ("wq_b", "wk", "weights_proj")]
        inputs = (expanded if expanded in graph.values else f"{name}.q_proj", latent)
        return inputs, tuple(part for part in index if part in graph.values)
    return tuple(f"{name}.{part}_proj" for part in "qkv"), ()


@dataclass(frozen=True)
class Sizes:
    """What config.json says of an attention's shape. rank, nope: 0 without latents."""

    heads: int
    kv_heads: int
    rotary: int
    nope: int
    value: int
    rank: int

    @staticmethod
    def of(config: Mapping[str, Any]) -> Sizes:
        """Hugging Face's fields, with Hugging Face's defaults."""
        heads = int(config["num_attention_heads"])
        if config.get("kv_lora_rank") and "qk_rope_head_dim" in config:
            nope, rotary = int(config["qk_nope_head_dim"]), int(config["qk_rope_head_dim"])
            rank, value = int(config["kv_lora_rank"]), int(config["v_head_dim"])
            return Sizes(heads, heads, rotary, nope, value, rank)
        kv_heads = int(config.get("num_key_value_heads") or heads)
        head = config.get("head_dim") or config["hidden_size"] // heads
        if config["model_type"] == "qwen3":
            head = config.get("head_dim") or 128
        return Sizes(heads, kv_heads, int(head), 0, int(head), 0)


class Probe:
    """An attention that is given queries and keys of one element.

    Args:
        subject: the model.
        attention: of `attentions`.
        product: the scale that the definition has, with what multiplies cos and sin squared.
    """

    def __init__(self, subject: Subject, attention: Attention, product: float) -> None:
        self._subject, self._attention, self._product = subject, attention, product
        self.sizes = Sizes.of(subject.config)
        attention.check_sizes(self.sizes)
        self.piece: Piece = subject.piece([attention.output], attention.given)
        self._norms = self._head_norms()
        self._latent = np.random.default_rng(0).standard_normal(self.sizes.rank)

    def rotations(self, queries: F64, keys: F64, positions: Sequence[int]) -> F64:
        """Scores over `product`: (R(position) q) · k for each query and key [n, rotary], a key at
        position 0; 1 for equal unit vectors at position 0. Shape [n].
        """
        size = self._size(queries, keys)
        given = [self._scaled(x, size, which) for which, x in enumerate((queries, keys))]
        sequences = [[0, int(position)] for position in positions]
        scores = []
        for start in range(0, len(sequences), _CHUNK):
            q, k = (x[start : start + _CHUNK] for x in given)
            scores.append(self._scores(q, k, sequences[start : start + _CHUNK]))
        return np.asarray(np.concatenate(scores) / (size * size * self._product))

    def _size(self, queries: F64, keys: F64) -> float:
        """How large elements may be, so that scores are near SCORE and norms can give them."""
        size = (SCORE / self._product) ** 0.5
        for weights in self._norms:
            used = ((queries != 0) | (keys != 0)).any(axis=0)
            smallest = float(np.abs(weights[used]).min())
            size = min(size, 0.5 * smallest * self.sizes.rotary**0.5)
        return float(size)

    def _head_norms(self) -> list[F64]:
        """The weights of q_norm and k_norm, where there are any."""
        names = [name for node in self._attention.graph.nodes for name in node.weights]
        if self._attention.is_latent:
            return []
        return [self._subject.weight(name).astype(np.float64) for name in names]

    def _scaled(self, x: F64, size: float, which: int) -> F64:
        """Vectors of one element that are `size` times as large when they have been normed."""
        if not self._norms:
            return x * size
        weights, eps = self._norms[which], self._attention.number("eps")
        want = size / np.where(weights == 0, 1, weights)
        return np.asarray(x * want * np.sqrt(eps / (1 - want**2 / self.sizes.rotary)))

    def _scores(self, q: F64, k: F64, sequences: list[list[int]]) -> F64:
        """Of the first head. q, k [n, rotary]."""
        s, n = self.sizes, len(q)
        queries = np.zeros((n, 2, s.heads, s.nope + s.rotary))
        queries[:, 1, 0, s.nope :] = q
        if self._attention.is_latent:
            keys = np.zeros((n, 2, s.rank + s.rotary))
            keys[:, 0, : s.rank], keys[:, 0, s.rank :] = self._latent, k
            return self.balance((queries, keys), sequences)[:, 0]
        keys = np.zeros((n, 2, s.kv_heads, s.rotary))
        keys[:, 0, 0] = k
        values = np.zeros((n, 2, s.kv_heads, s.value))
        values[:, 0] = 1
        return self.balance((queries, keys, values), sequences)[:, 0]

    def balance(self, given: Sequence[F64], sequences: list[list[int]]) -> F64:
        """The score of every head in sequences of two tokens, [n, heads]."""
        n, s = len(sequences), self.sizes
        rows: dict[str, F32] = {
            name: x.reshape(2 * n, -1).astype(np.float32)
            for name, x in zip(self._attention.inputs, given, strict=True)
        }
        values = self._attention.graph.values  # of two rows an indexer chooses both
        rows |= {i: np.zeros((2 * n, values[i].width), np.float32) for i in self._attention.index}
        out = self.piece.run(rows, sequences)[self._attention.output]
        first, second = out.reshape(n, 2, s.heads, s.value).astype(np.float64).swapaxes(0, 1)
        share = (first * second).sum(axis=2) / (first * first).sum(axis=2)
        share = np.clip(share, 1e-7, 1 - 1e-7)
        return np.asarray(np.log(share / (1 - share)))

    def nope_scale(self) -> float:
        """The scale of the part that is not turned, over the definition's: of latent attention."""
        s = self.sizes
        rng, count = np.random.default_rng(1), 4
        latents = rng.standard_normal((count, s.rank))
        keys = self._nope_keys(latents)  # [count, heads, nope]
        unit = keys / (keys * keys).sum(axis=2, keepdims=True)
        queries = np.zeros((count, 2, s.heads, s.nope + s.rotary))
        queries[:, 1, :, : s.nope] = unit * (SCORE / self._product)
        rows = np.zeros((count, 2, s.rank + s.rotary))
        rows[:, 0, : s.rank] = latents
        return float(self.balance((queries, rows), [[0, 1]] * count).mean() / SCORE)

    def _nope_keys(self, latents: F64) -> F64:
        """What the weights make of latents, in float64: [n, heads, nope]."""
        s, graph = self.sizes, self._attention.graph
        norm, *matrices = [name for node in graph.nodes for name in node.weights]
        normed = latents / np.sqrt((latents**2).mean(axis=1, keepdims=True) + 1e-6)
        normed *= self._subject.weight(norm)
        whole = self._subject.weight(matrices[0]).astype(np.float64).reshape(s.heads, -1, s.rank)
        return np.asarray(np.einsum("hnr,cr->chn", whole[:, : s.nope], normed))


def forms(subject: Subject, attention: Attention, tokens: int = 24) -> float:
    """How far the absorbed form is from the expanded one, on random inputs: RMS over RMS."""
    rng, found = np.random.default_rng(2), []
    sequences = [list(range(tokens)), list(range(tokens // 2))]
    rows = sum(map(len, sequences))
    values = attention.graph.values
    inputs = {
        name: rng.standard_normal((rows, values[name].width)).astype(np.float32)
        for name in attention.given
    }
    for form in ("expanded", "absorbed"):
        piece = subject.piece([attention.output], attention.given, form)
        found.append(piece.run(inputs, sequences)[attention.output].astype(np.float64))
    expanded, absorbed = found
    return float(np.sqrt(((absorbed - expanded) ** 2).mean() / (expanded**2).mean()))
