"""Which tensor of an exported network holds which value of the model.

A tensor that holds a value of the level-0 graph has its name. MNN rotates pairs half a head apart,
whatever the model does: queries and keys after that have names of their own, and here is how their
columns lie.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepmnn.exporters.mnn.op_rules import Tensor
from deepmnn.graph.ir import Node, Value
from deepmnn.models.config import ModelConfig
from deepmnn.models.mla import MlaConfig

Q_TURNED, K_TURNED = "q_turned", "k_turned"
"""Queries and keys that MNN's RoPE op has turned; of latent attention first the part that turns."""

LATENT, ROUTED = "kv_a_layernorm", "experts.combine"
"""Values that a fused op computes on its way."""

_ROPE = {"q_rope", "k_rope"}
_HOLD_ROTATED = {"q_concat", "kv_concat", "cache_split.1", "k_broadcast", "k_concat"}


@dataclass(frozen=True)
class Held:
    """A value in a network.

    Attributes:
        name: of the value.
        tensor: its number.
        width: the tensor's, elements a token.
        columns: where the value's elements are among those; None: they are the same.
    """

    name: str
    tensor: int
    width: int
    columns: NDArray[np.intp] | None = None


def beside(node: Node, name: str) -> str:
    """A name beside that of what a node gives: "layers.0.self_attn.q_turned"."""
    return f"{node.outputs[0].rpartition('.')[0]}.{name}"


def held_values(
    names: Sequence[str],
    tensors: Sequence[Tensor | None],
    values: Mapping[str, Value],
    config: ModelConfig,
) -> list[Held]:
    """The values that a network computes, in its order.

    Args:
        names, tensors: of the network: tensorName, and what was found out about each.
        values: those of the level-0 graph.
        config: the model's.
    """
    found = {}
    for number, (tensor_name, tensor) in enumerate(zip(names, tensors, strict=True)):
        if tensor is None:
            continue
        width = math.prod(size for size in tensor.shape if isinstance(size, int))
        name, columns = _read_as(tensor_name, width, config)
        count = width if columns is None else len(columns)
        if name in values and values[name].width == count:
            found[name] = Held(name, number, width, columns)
    return list(found.values())


def _read_as(name: str, width: int, config: ModelConfig) -> tuple[str, NDArray[np.intp] | None]:
    """The value that a tensor of that name holds, "" for none, and its columns."""
    layer, _, kind = name.partition(".self_attn.")
    turned = {Q_TURNED: "q_rope", K_TURNED: "k_rope"}.get(kind)
    if not isinstance(config, MlaConfig):
        return (f"{layer}.self_attn.{turned}" if turned else name), None
    pe = config.qk_rope_head_dim
    order = np.arange(pe)
    if getattr(config, "rope_interleave", True):
        order = order.reshape(2, -1).T.reshape(-1)
        if kind in _HOLD_ROTATED:
            return "", None
    size = pe + config.qk_nope_head_dim if turned else pe
    if not turned and kind not in _ROPE:
        return name, None
    heads = 1 if kind == K_TURNED else width // size
    columns = (np.arange(heads)[:, None] * size + order).reshape(-1)
    return f"{layer}.self_attn.{turned or kind}", columns
