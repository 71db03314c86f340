"""A GGUF file's tensors under the names of Hugging Face, in the shapes that models read.

llama.cpp's converter renames tensors, stacks the experts of a layer, reorders the rows of queries
and keys (llama, deepseek) and cuts kv_b_proj in two (deepseek2); all of it is undone here
(llama.cpp: conversion/llama.py, conversion/deepseek.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deepmnn.errors import CheckpointError, UnsupportedModelError, shown
from deepmnn.formats import KeptCodes
from deepmnn.graph.weights import F32
from deepmnn.source.gguf.tensor import Tensor
from deepmnn.source.tensor_names import EMBEDDING, HEAD, MAX_EXPERTS

PERMUTED = ("llama", "deepseek")
"""Architectures whose queries and keys have another order of rows than Hugging Face's."""

_TOP = {
    "token_embd.weight": EMBEDDING,
    "output_norm.weight": "model.norm.weight",
    "output.weight": HEAD,
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
}
_BIAS = "exp_probs_b.bias"
"""What the converter calls e_score_correction_bias."""

_STACKED = {
    "ffn_gate_exps": ("gate_proj",),
    "ffn_up_exps": ("up_proj",),
    "ffn_down_exps": ("down_proj",),
    "ffn_gate_up_exps": ("gate_proj", "up_proj"),
}
"""Stacked experts → the matrices of each, one below the other."""

_FUSED = ("q_proj", "k_proj", "v_proj")
"""What attn_qkv is made of, one below the other."""

_NOT_READ = re.compile(
    r"rope_freqs\.weight|blk\.\d+\.(attn_rot_embd|rope_freqs)(\.weight)?|.*\.input_scale"
)
"""What says nothing about a model's numbers that is not read from elsewhere: rope_freqs is
config.py's, and input_scale is for activations that are quantised."""


class Weight(Protocol):
    """A tensor of the model, made of stored ones."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What it is made of."""

    @property
    def kept_format(self) -> str | None:
        """The kept format that `codes` gives."""

    def read(self) -> F32:
        """Its numbers. Raises CheckpointError."""

    def codes(self) -> KeptCodes | None:
        """The same as it is stored; None where it is not in a kept format. Raises as `read`."""


@dataclass(frozen=True)
class Stored:
    """One stored tensor, or rows of one.

    Attributes:
        tensor: it, or its part.
        heads: of queries or keys whose rows are reordered; 0: they are in order.
        scale: one number that multiplies all.
    """

    tensor: Tensor
    heads: int = 0
    scale: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """As stored."""
        return self.tensor.shape

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The one, and its scale."""
        return (self.tensor,) if self.scale is None else (self.tensor, self.scale)

    @property
    def order(self) -> NDArray[np.intp] | None:
        """Where each stored row belongs, as `Tensor.read` takes it.

        A head's rows are stored in pairs (i, i + half); Hugging Face has all i, then all i + half.
        """
        if not self.heads:
            return None
        half = self.shape[0] // self.heads // 2
        rows = np.arange(self.shape[0]).reshape(self.heads, 2, half)
        return rows.swapaxes(1, 2).ravel()

    def read(self) -> F32:
        """The numbers in Hugging Face's order."""
        values = self.tensor.read(self.order)
        if self.scale is not None:
            values *= self.scale.read()
        return values

    @property
    def kept_format(self) -> str | None:
        """The stored tensor's; None with a scale, which no kept format has."""
        return self.tensor.kept_format if self.scale is None else None

    def codes(self) -> KeptCodes | None:
        """The codes, their rows in Hugging Face's order."""
        return self.tensor.codes(self.order) if self.kept_format is not None else None


@dataclass(frozen=True)
class KeyValue:
    """kv_b_proj [heads · (nope + v), rank] of its halves: keys [heads, rank, nope], whose matrices
    are transposed, and values [heads, v, rank].
    """

    keys: Tensor
    values: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """[rows, rank]."""
        heads, rank, nope = self.keys.shape
        return heads * (nope + self.values.shape[1]), rank

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Both."""
        return self.keys, self.values

    def read(self) -> F32:
        """One matrix: of each head its keys' rows, then its values'."""
        heads, rank, nope = self.keys.shape
        joined = np.empty((heads, nope + self.values.shape[1], rank), np.float32)
        for head, rows in enumerate(joined):
            rows[:nope] = self.keys.part(head).read().T
            rows[nope:] = self.values.part(head).read()
        return joined.reshape(self.shape)

    @property
    def kept_format(self) -> None:
        """None: half of the rows were columns, whose scales were other groups'."""

    def codes(self) -> None:
        """None."""


def weights_of(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], arch: str
) -> dict[str, Weight]:
    """The model's tensors by Hugging Face's names.

    Args:
        tensors: of the file, by its names.
        config: the fields of config.json that config.py made.
        arch: general.architecture.

    Raises CheckpointError for tensors that do not fit together, UnsupportedModelError for one that
    nobody knows here: it would change the model's numbers.
    """
    weights: dict[str, Weight] = {}
    for name, weight in _weights(tensors, config, arch):
        if name in weights:
            raise CheckpointError(f"two tensors of the file are {name!r}", "one")
        weights[name] = weight
    return weights


def _weights(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], arch: str
) -> Iterator[tuple[str, Weight]]:
    for name, tensor in tensors.items():
        stem, _, kind = name.rpartition(".")
        if _NOT_READ.fullmatch(name) or (kind == "scale" and f"{stem}.weight" in tensors):
            continue
        scale = tensors.get(f"{stem}.scale") if kind == "weight" else None
        if name in _TOP:
            yield _TOP[name], Stored(tensor, 0, _single(scale))
            continue
        match = re.fullmatch(r"blk\.(\d+)\.(.+)", name)
        found = None
        if match is not None and int(match[1]) < config["num_hidden_layers"]:
            layer = f"model.layers.{int(match[1])}"
            found = _layer(layer, match[2], tensor, scale, tensors, config, arch)
        if found is None:
            raise UnsupportedModelError(
                f"the tensor {shown(name)} in {tensor.file.path}",
                f"the tensors of the architecture {arch}",
                "deepmnn does not know what it means. Convert the original checkpoint instead.",
            )
        yield from found


def _layer(
    layer: str,
    name: str,
    tensor: Tensor,
    scale: Tensor | None,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    arch: str,
) -> list[tuple[str, Weight]] | None:
    """What a layer's tensor is; None: nothing that is known."""
    stem, _, kind = name.rpartition(".")
    if name == _BIAS:
        return [(f"{layer}.mlp.gate.e_score_correction_bias", Stored(tensor))]
    if name in ("attn_k_b.weight", "attn_v_b.weight"):
        prefix = tensor.name.removesuffix(name)
        keys, values = (tensors.get(f"{prefix}attn_{half}_b.weight") for half in "kv")
        if name[5] == "v" and keys is not None:
            return []
        return [(f"{layer}.self_attn.kv_b_proj.weight", _key_value(tensor, keys, values))]
    if kind not in ("weight", "bias"):
        return None
    if stem == "attn_qkv" and "head_dim" in config:  # latent attention has none
        return _fused(layer, kind, tensor, scale, config, arch)
    if stem in _STACKED and kind == "weight":
        return _experts(layer, _STACKED[stem], tensor, scale)
    if stem not in _LAYER:
        return None
    heads = _permuted_heads(stem, config) if arch in PERMUTED else 0
    return [(f"{layer}.{_LAYER[stem]}.{kind}", _ordered(tensor, heads, _single(scale)))]


def _permuted_heads(stem: str, config: Mapping[str, Any]) -> int:
    heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}.get(stem)
    return 0 if heads is None else int(config[heads])


def _ordered(tensor: Tensor, heads: int, scale: Tensor | None = None) -> Stored:
    if heads and tensor.shape[0] % (2 * heads):
        raise CheckpointError(
            f"{tensor.file.path}: the tensor {shown(tensor.name)} has {tensor.shape[0]} rows",
            f"an even number for each of {heads} heads",
        )
    if heads and len(tensor.shape) == 1 and tensor.type.block > 1:
        raise CheckpointError(
            f"{tensor.file.path}: the bias {shown(tensor.name)} is of type {tensor.type.name}",
            "plain numbers",
        )
    return Stored(tensor, heads, scale)


def _fused(
    layer: str,
    kind: str,
    tensor: Tensor,
    scale: Tensor | None,
    config: Mapping[str, Any],
    arch: str,
) -> list[tuple[str, Weight]]:
    """Queries, keys and values in one matrix, or their biases in one vector."""
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    sizes = [count * config["head_dim"] for count in (heads, kv_heads, kv_heads)]
    if (
        min(sizes) < 1
        or sum(sizes) != tensor.shape[0]
        or (len(tensor.shape) == 1 and tensor.type.block > 1)
    ):
        raise CheckpointError(
            f"{tensor.file.path}: the tensor {shown(tensor.name)} is {tensor.type.name} "
            f"{list(tensor.shape)}",
            f"{sum(sizes)} rows: queries, keys and values",
        )
    permuted = (heads, kv_heads, 0) if arch in PERMUTED else (0, 0, 0)
    found: list[tuple[str, Weight]] = []
    at = 0
    for name, size, order in zip(_FUSED, sizes, permuted, strict=True):
        part = _ordered(tensor.rows(at, at + size), order, _single(scale))
        found.append((f"{layer}.self_attn.{name}.{kind}", part))
        at += size
    return found


def _experts(
    layer: str, projections: tuple[str, ...], tensor: Tensor, scale: Tensor | None
) -> list[tuple[str, Weight]]:
    """The matrices of every expert."""
    count = len(projections)
    if len(tensor.shape) != 3 or tensor.shape[0] > MAX_EXPERTS or tensor.shape[1] % count:
        raise CheckpointError(
            f"{tensor.file.path}: the tensor {shown(tensor.name)} has the shape "
            f"{list(tensor.shape)}",
            "[experts, rows, columns]",
        )
    experts, rows, _ = tensor.shape
    if scale is not None and scale.shape != (experts,):
        raise _no_scale(scale)
    found: list[tuple[str, Weight]] = []
    for expert in range(experts):
        matrices = tensor.part(expert)
        factor = None if scale is None else scale.rows(expert, expert + 1)
        for number, projection in enumerate(projections):
            begin, end = (rows // count * n for n in (number, number + 1))
            name = f"{layer}.mlp.experts.{expert}.{projection}.weight"
            found.append((name, Stored(matrices.rows(begin, end), 0, factor)))
    return found


def _key_value(tensor: Tensor, keys: Tensor | None, values: Tensor | None) -> KeyValue:
    if keys is None or values is None:
        raise CheckpointError(
            f"{tensor.file.path} has {tensor.name}", "both attn_k_b and attn_v_b of the layer"
        )
    if len(keys.shape) != 3 or len(values.shape) != 3 or keys.shape[:2] != values.shape[::2]:
        raise CheckpointError(
            f"{keys.file.path}: {keys.name} is {list(keys.shape)}, {values.name} "
            f"{list(values.shape)}",
            "[heads, rank, nope] and [heads, v, rank]",
        )
    return KeyValue(keys, values)


def _single(scale: Tensor | None) -> Tensor | None:
    """A scale of one number."""
    if scale is not None and scale.shape != (1,):
        raise _no_scale(scale)
    return scale


def _no_scale(scale: Tensor) -> CheckpointError:
    return CheckpointError(
        f"{scale.file.path}: the tensor {shown(scale.name)} has the shape {list(scale.shape)}",
        "one number, or one for each expert",
    )
