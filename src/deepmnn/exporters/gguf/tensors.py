"""The tensors of a GGUF file: in which order and shape llama.cpp wants the numbers of a model.

- llama and deepseek rotate neighbouring rows of a head (0, 1), (2, 3), ...; Hugging Face's
  checkpoints pair row i with row i + head_dim / 2. So q_proj and k_proj get another order of rows.
- The experts of a layer lie in one tensor [experts, rows, columns].
- kv_b_proj comes as its halves: attn_k_b [heads, kv_lora_rank, qk_nope_head_dim], transposed,
  and attn_v_b [heads, v_head_dim, kv_lora_rank].
- llama3's RoPE scaling is a tensor, rope_freqs.

Source: conversion/llama.py and conversion/deepseek.py of llama.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from deepmnn.formats import F32
from deepmnn.graph.weights import TensorSource
from deepmnn.models.config import ModelConfig
from deepmnn.models.mla import MlaConfig
from deepmnn.models.rope import RopeParameters
from deepmnn.source.gguf.names import PAIRED, ROPE_FACTORS, gguf_name, paired_rows

Shape = tuple[int, ...]

_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_EXPERT = re.compile(r"(model\.layers\.\d+\.mlp\.experts)\.\d+(\.\w+\.weight)")
_ROTATED = re.compile(r".*\.self_attn\.([qk])_proj\.(?:weight|bias)")


@dataclass(frozen=True)
class GgufTensor:
    """One tensor.

    Attributes:
        name: llama.cpp's.
        shape: as numpy has it, the dimension of rows last but one.
        pieces: its numbers in order, cut between rows; one piece is in memory at a time.
    """

    name: str
    shape: Shape
    pieces: Callable[[TensorSource], Iterator[F32]]


def gguf_tensors(
    architecture: str, config: ModelConfig, shapes: Mapping[str, Shape]
) -> list[GgufTensor]:
    """The tensors of a model, without multi-token-prediction layers.

    shapes: those of its Hugging Face checkpoint.

    Raises UnsupportedModelError for a tensor without a name.
    """
    groups: dict[str, list[str]] = {}
    for name in shapes:
        layer = _LAYER.match(name)
        if layer is None or int(layer[1]) < config.num_hidden_layers:
            groups.setdefault(_EXPERT.sub(r"\1\2", name), []).append(name)
    found = []
    for name, parts in groups.items():
        shape = shapes[parts[0]]
        if name != parts[0]:
            found.append(_tensor(name, (len(parts), *shape), parts))
        elif name.endswith(".kv_b_proj.weight") and isinstance(config, MlaConfig):
            found += _halves(name, shape, config)
        else:
            found.append(_tensor(name, shape, parts, _change(architecture, config, name)))
    if config.rope_parameters.rope_type == "llama3":
        found.append(_rope_factors(config.rope_parameters, head_dim(config)))
    return found


def head_dim(config: ModelConfig) -> int:
    """Of one head of grouped-query attention."""
    given = getattr(config, "head_dim", None)
    return int(given or config.hidden_size // config.num_attention_heads)


def _tensor(
    name: str, shape: Shape, parts: Sequence[str], change: Callable[[F32], F32] = lambda x: x
) -> GgufTensor:
    """parts: the Hugging Face tensors that are its pieces."""

    def pieces(source: TensorSource) -> Iterator[F32]:
        for part in parts:
            yield change(source.read(part))

    return GgufTensor(gguf_name(name), shape, pieces)


def _change(architecture: str, config: ModelConfig, name: str) -> Callable[[F32], F32]:
    """What happens to the rows of a tensor."""
    projection = _ROTATED.fullmatch(name)
    if architecture not in PAIRED or projection is None:
        return lambda numbers: numbers
    heads = config.num_attention_heads if projection[1] == "q" else config.kv_heads
    return lambda numbers: numbers[paired_rows(len(numbers), heads)]


def _halves(name: str, shape: Shape, config: MlaConfig) -> list[GgufTensor]:
    """kv_b_proj's keys and values."""
    heads, nope, value = config.num_attention_heads, config.qk_nope_head_dim, config.v_head_dim
    rank = shape[1]

    def keys(numbers: F32) -> F32:
        return numbers.reshape(heads, nope + value, rank)[:, :nope].swapaxes(1, 2)

    def values(numbers: F32) -> F32:
        return numbers.reshape(heads, nope + value, rank)[:, nope:]

    return [
        _tensor(name.replace("kv_b_proj", "k_b_proj"), (heads, rank, nope), [name], keys),
        _tensor(name.replace("kv_b_proj", "v_b_proj"), (heads, value, rank), [name], values),
    ]


def _rope_factors(rope: RopeParameters, dim: int) -> GgufTensor:
    plain = RopeParameters(rope.rope_theta).inv_freq(dim)
    factors = np.array(plain) / np.array(rope.inv_freq(dim))
    return GgufTensor(ROPE_FACTORS, factors.shape, lambda _: iter([factors.astype(np.float32)]))
