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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepmnn.exporters.gguf.blocks import with_rows
from deepmnn.formats import F32, KeptCodes
from deepmnn.graph.weights import CodeSource, TensorSource
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
        parts: the Hugging Face tensors whose rows it has; one is in memory at a time.
        rows: those of each part, in this order; None: all as they are.
        transposed: each matrix has its columns as rows.
        numbers: those of a tensor without parts.
    """

    name: str
    shape: Shape
    parts: tuple[str, ...] = ()
    rows: NDArray[np.intp] | None = None
    transposed: bool = False
    numbers: F32 | None = None

    def pieces(self, source: TensorSource) -> Iterator[F32]:
        """Its numbers in order, cut between rows."""
        if self.numbers is not None:
            yield self.numbers
        for part in self.parts:
            numbers = source.read(part)
            numbers = numbers if self.rows is None else numbers[self.rows]
            if self.transposed:
                heads, rank, _ = self.shape
                numbers = numbers.reshape(heads, -1, rank).swapaxes(1, 2)
            yield numbers

    def kept_format(self, source: CodeSource) -> str | None:
        """The kept format in which the source has all its rows, without reading any; or None."""
        found = {source.kept_format(part) for part in self.parts}
        return found.pop() if len(found) == 1 else None

    def codes(self, source: CodeSource) -> Iterator[KeptCodes]:
        """The same as `pieces`, as codes of that format; not of a transposed tensor."""
        for part in self.parts:
            codes = source.codes(part)
            assert isinstance(codes, KeptCodes)
            yield codes if self.rows is None else with_rows(codes, self.rows)


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
            found.append(GgufTensor(gguf_name(name), (len(parts), *shape), tuple(parts)))
        elif name.endswith(".kv_b_proj.weight") and isinstance(config, MlaConfig):
            found += _halves(name, shape, config)
        else:
            rows = _order(architecture, config, name, shape[0])
            found.append(GgufTensor(gguf_name(name), shape, (name,), rows))
    if config.rope_parameters.rope_type == "llama3":
        found.append(_rope_factors(config.rope_parameters, head_dim(config)))
    return found


def head_dim(config: ModelConfig) -> int:
    """Of one head of grouped-query attention."""
    given = getattr(config, "head_dim", None)
    return int(given or config.hidden_size // config.num_attention_heads)


def _order(architecture: str, config: ModelConfig, name: str, rows: int) -> NDArray[np.intp] | None:
    """In which order llama.cpp has the rows of a tensor."""
    projection = _ROTATED.fullmatch(name)
    if architecture not in PAIRED or projection is None:
        return None
    heads = config.num_attention_heads if projection[1] == "q" else config.kv_heads
    return paired_rows(rows, heads)


def _halves(name: str, shape: Shape, config: MlaConfig) -> list[GgufTensor]:
    """kv_b_proj's keys and values."""
    heads, nope, value = config.num_attention_heads, config.qk_nope_head_dim, config.v_head_dim
    rows, rank = np.arange(shape[0]).reshape(heads, nope + value), shape[1]
    keys, values = (gguf_name(name.replace("kv_b", half)) for half in ("k_b", "v_b"))
    return [
        GgufTensor(keys, (heads, rank, nope), (name,), rows[:, :nope].ravel(), transposed=True),
        GgufTensor(values, (heads, value, rank), (name,), rows[:, nope:].ravel()),
    ]


def _rope_factors(rope: RopeParameters, dim: int) -> GgufTensor:
    plain = RopeParameters(rope.rope_theta).inv_freq(dim)
    factors = np.array(plain) / np.array(rope.inv_freq(dim))
    return GgufTensor(ROPE_FACTORS, factors.shape, numbers=factors.astype(np.float32))
