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
from deepmnn.source.gguf.names import PAIRED, hf_name, layer_of, paired_rows
from deepmnn.source.gguf.tensor import Tensor
from deepmnn.source.tensor_names import MAX_EXPERTS

_FUSED = ("q_proj", "k_proj", "v_proj")
"""What attn_qkv is made of, one below the other."""

_EXPERTS = "mlp.experts."

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

    def digest(self) -> bytes:
        """The same for two of one shape only if their numbers are equal. Raises as `read`."""

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
        """Where each stored row belongs, as `Tensor.read` takes it."""
        return paired_rows(self.shape[0], self.heads) if self.heads else None

    def digest(self) -> bytes:
        """Of the stored bytes, and the order of their rows."""
        return b"".join([str(self.heads).encode(), *(one.digest() for one in self.tensors)])

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

    def digest(self) -> bytes:
        """Of the stored bytes of both."""
        return self.keys.digest() + self.values.digest()

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
    for name, weight in _Reader(tensors, config, arch).weights():
        if name in weights:
            raise CheckpointError(f"two tensors of the file are {name!r}", "one")
        weights[name] = weight
    return weights


@dataclass(frozen=True)
class _Reader:
    """What a file's tensors are. The arguments are those of `weights_of`."""

    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]
    arch: str

    def weights(self) -> Iterator[tuple[str, Weight]]:
        """Names and what they are made of, one after another."""
        for name, tensor in self.tensors.items():
            stem, _, kind = name.rpartition(".")
            if _NOT_READ.fullmatch(name) or (kind == "scale" and f"{stem}.weight" in self.tensors):
                continue
            scale = self.tensors.get(f"{stem}.scale") if kind == "weight" else None
            found = self._weight(tensor, scale)
            if found is None:
                raise UnsupportedModelError(
                    f"the tensor {shown(name)} in {tensor.file.path}",
                    f"the tensors of the architecture {self.arch}",
                    "deepmnn does not know what it means. Convert the original checkpoint instead.",
                )
            yield from found

    def _weight(self, tensor: Tensor, scale: Tensor | None) -> list[tuple[str, Weight]] | None:
        """What a tensor is; None: nothing that is known."""
        layer, inner = layer_of(tensor.name)
        if layer is not None and layer >= self.config["num_hidden_layers"]:
            return None
        stem, _, kind = inner.rpartition(".")
        latent = "head_dim" not in self.config
        if layer is not None and stem == "attn_qkv" and kind in ("weight", "bias") and not latent:
            return self._queries_keys_values(f"model.layers.{layer}", kind, tensor, scale)
        if layer is not None and inner == "ffn_gate_up_exps.weight":
            return _experts(f"model.layers.{layer}", ("gate_proj", "up_proj"), tensor, scale)
        name = hf_name(tensor.name)
        if name is None:
            return None
        if f".{_EXPERTS}" in name:
            before, _, after = name.partition(f".{_EXPERTS}")
            projection, _, kind = after.rpartition(".")
            return _experts(before, (projection,), tensor, scale) if kind == "weight" else None
        if half := re.fullmatch(r"(.*\.)([kv])_b_proj\.weight", name):
            return self._key_value(tensor, half[1], half[2])
        return [(name, _ordered(tensor, self._paired_heads(stem), _single(scale)))]

    def _paired_heads(self, stem: str) -> int:
        """Of queries or keys whose rows are reordered."""
        field = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}.get(stem)
        return 0 if field is None or self.arch not in PAIRED else int(self.config[field])

    def _queries_keys_values(
        self, layer: str, kind: str, tensor: Tensor, scale: Tensor | None
    ) -> list[tuple[str, Weight]]:
        """Three matrices in one, or their biases in one vector."""
        config = self.config
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
        found: list[tuple[str, Weight]] = []
        at = 0
        for name, size in zip(_FUSED, sizes, strict=True):
            paired = self._paired_heads(f"attn_{name[0]}")
            part = _ordered(tensor.rows(at, at + size), paired, _single(scale))
            found.append((f"{layer}.self_attn.{name}.{kind}", part))
            at += size
        return found

    def _key_value(self, tensor: Tensor, module: str, half: str) -> list[tuple[str, Weight]]:
        """kv_b_proj, which its keys stand for, of its halves."""
        stem = tensor.name.removesuffix(f"{half}_b.weight")
        keys, values = (self.tensors.get(f"{stem}{each}_b.weight") for each in "kv")
        if half == "v" and keys is not None:
            return []
        return [(f"{module}kv_b_proj.weight", _both_halves(tensor, keys, values))]


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


def _both_halves(tensor: Tensor, keys: Tensor | None, values: Tensor | None) -> KeyValue:
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
