"""A model whose own weights are rotated, so that nothing is left to rotate when it runs.

    logits(RotatedSource(source)) = logits(source)         up to rounding of float32

What runs between two matrices may be multiplied by an orthogonal matrix if the one before it and
the one after it take that back. With the rotation R of quant/rotation.py, and norms' weights g:

    what                        is written by            is read by
    the residual stream         R embedding, R o_proj,   W diag(g) Rᵀ: q, k and v, MLA's down-
                                R down_proj              projections, gate and up, routers, head
    MLA's latents               R q_a, R kv_a            W diag(g) Rᵀ: q_b, kv_b
    every head of the values    R v_proj, R kv_b         o_proj Rᵀ

A norm's weights go into the matrices that read it, and become ones: what remains of an RMS norm
is a division by a length, which R does not change. A rotated model has no large numbers in few
columns, neither in its weights nor in its activations. So both round well in formats that know no
rotation. Source: QuaRot (arXiv:2404.00456), with panels' Hadamard matrices. The input of down_proj
stays as it is: SwiGLU, before it, commutes with no rotation (smoothed_source.py).

A width that is no multiple of 32 is left as it is. So are multi-token-prediction layers, which the
main model does not read; together with its rotated embedding they would be wrong.
"""

from __future__ import annotations

import re

import numpy as np

from deepmnn import _core
from deepmnn.formats import F32, PART_COLS
from deepmnn.graph.ir import Graph
from deepmnn.graph.tensors import tensor_shapes
from deepmnn.models import read_config
from deepmnn.models.mla import MlaConfig
from deepmnn.source.source import Source
from deepmnn.source.tensor_names import EMBEDDING, HEAD
from deepmnn.source.wrapped import WrappedSource

ROTATED = "rotated"
"""What `Source.changes` calls it."""

_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")
_EXPERT = re.compile(r"mlp\.(experts\.\d+|shared_experts)\.")
_ATTENTION, _MLP, _FINAL = "input_layernorm", "post_attention_layernorm", "model.norm.weight"
_LATENTS = {
    "self_attn.q_b_proj": "self_attn.q_a_layernorm",
    "self_attn.kv_b_proj": "self_attn.kv_a_layernorm",
}
_READERS = {
    **{
        f"self_attn.{name}": _ATTENTION
        for name in ("q_proj", "k_proj", "v_proj", "q_a_proj", "kv_a_proj_with_mqa")
    },
    **dict.fromkeys(("mlp.gate_proj", "mlp.up_proj", "mlp.gate"), _MLP),
    **_LATENTS,
}
"""Matrix → the norm before it."""
_NORMS = frozenset(_READERS.values())
_WRITERS = frozenset({"self_attn.o_proj", "mlp.down_proj"})


class RotatedSource(WrappedSource):
    """Another source's model, rotated: same config, same tensors, equal logits.

    Args:
        source: of a model whose head is a tensor of its own (`is_rotatable`).
    """

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self.changes += (ROTATED,)
        self._model = read_config(source.config)
        self._threads = _core.available_cores()

    def read(self, name: str) -> F32:
        """A tensor of the rotated model."""
        w = self._source.read(name)
        if name == EMBEDDING:
            return self._columns(w)
        if name == HEAD:
            return self._columns(self._normed(w, _FINAL))
        if name == _FINAL:
            return np.ones_like(w) if self._turns(len(w)) else w
        found = _LAYER.fullmatch(name)
        if found is None or int(found[1]) >= self._model.num_hidden_layers:
            return w
        return self._in_layer(w, f"model.layers.{found[1]}", _EXPERT.sub("mlp.", found[2]))

    def _in_layer(self, w: F32, layer: str, part: str) -> F32:
        """A tensor of a layer; part: its module, "mlp" for an expert."""
        if part in _NORMS and self._turns(len(w)):
            return np.ones_like(w)
        if part in _READERS and w.ndim == 2:
            w = self._columns(self._normed(w, f"{layer}.{_READERS[part]}.weight"))
        if part == "self_attn.o_proj" and w.ndim == 2:
            w = self._columns(w, self._value_size(layer))
        if part in _WRITERS or part == "self_attn.q_a_proj":
            w = self._rows(w)
        elif part == "self_attn.kv_a_proj_with_mqa":
            rank = self._latent.kv_lora_rank
            w = np.concatenate([self._rows(w[:rank]), w[rank:]])
        elif part == "self_attn.v_proj":
            w = self._head_rows(w, self._value_size(layer), 0)
        elif part == "self_attn.kv_b_proj":
            nope = self._latent.qk_nope_head_dim
            w = self._head_rows(w, nope + self._latent.v_head_dim, nope)
        return w

    @property
    def _latent(self) -> MlaConfig:
        assert isinstance(self._model, MlaConfig)
        return self._model

    def _value_size(self, layer: str) -> int:
        """Of a head's values."""
        if isinstance(self._model, MlaConfig):
            return self._model.v_head_dim
        return self._source.shape(f"{layer}.self_attn.v_proj.weight")[0] // self._model.kv_heads

    def _normed(self, w: F32, norm: str) -> F32:
        """W diag(g)."""
        return w * self._source.read(norm) if self._turns(w.shape[1]) else w

    def _columns(self, w: F32, width: int | None = None) -> F32:
        """W Rᵀ, of every `width` columns by themselves."""
        width = width or w.shape[1]
        if not self._turns(width):
            return w
        rows = np.ascontiguousarray(w, np.float32).reshape(-1, width)
        return _core.rotate(rows, threads=self._threads).reshape(w.shape)

    def _rows(self, w: F32) -> F32:
        """R W, or R b."""
        return np.ascontiguousarray(self._columns(np.atleast_2d(w.T)).T).reshape(w.shape)

    def _head_rows(self, w: F32, size: int, first: int) -> F32:
        """R W for the rows from `first` on of every `size` rows."""
        heads = w.reshape(-1, size, *w.shape[1:])
        turned = [np.concatenate([head[:first], self._rows(head[first:])]) for head in heads]
        return np.concatenate(turned)

    def _turns(self, width: int) -> bool:
        return width % PART_COLS == 0


def is_rotatable(graph: Graph) -> bool:
    """Whether there is an equal, rotated model of a level-0 graph.

    A head that is the embedding's own table cannot take the final norm's weights.
    """
    return HEAD in tensor_shapes(graph)
