"""Which tensor of an exported network holds which value of the model.

A tensor that holds a value of the level-0 graph has its name. MNN rotates pairs half a head apart,
whatever the model does: queries and keys have names of their own where their columns lie in that
order, and this file knows it.
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

Q_LINEAR, Q_TURNED, K_TURNED = "q_linear", "q_turned", "k_turned"
"""Queries before MNN's RoPE op, queries and keys after it; of latent attention every head's part
that turns comes first.
"""

LATENT, ROUTED = "kv_a_layernorm", "experts.combine"
GATE, UP = "gate_proj", "up_proj"
"""Values that a fused op computes on its way."""

_ROPE = {"q_rope", "k_rope"}
_OTHERS = {"q_concat", "kv_concat", "cache_split.1", "k_broadcast", "k_concat"}
"""Values with rotated parts in them."""

_LOSERS = ".group_limit"
"""Experts of groups that lost are not at −inf on MNN."""


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
    prefix, _, kind = name.rpartition(".self_attn.")
    turned = {Q_TURNED: "q_rope", K_TURNED: "k_rope"}.get(kind)
    if not isinstance(config, MlaConfig) or not prefix:
        held = f"{prefix}.self_attn.{turned}" if turned else name
        return "" if name.endswith(_LOSERS) else held, None
    pe, nope = config.qk_rope_head_dim, config.qk_nope_head_dim
    apart = getattr(config, "rope_interleave", True)
    order = np.arange(pe).reshape(2, -1).T.reshape(-1) if apart else np.arange(pe)
    value, size, columns = turned or kind, pe + nope, order
    if kind == Q_LINEAR:
        value = "q_proj" if config.q_lora_rank is None else "q_b_proj"
        columns = np.concatenate([pe + np.arange(nope), order])
    elif kind in _ROPE:
        size = pe
    elif turned is None:
        return "" if apart and kind in _OTHERS else name, None
    heads = 1 if kind == K_TURNED else width // size
    return f"{prefix}.self_attn.{value}", _per_head(columns, heads, size)


def _per_head(columns: NDArray[np.intp], heads: int, size: int) -> NDArray[np.intp]:
    return (np.arange(heads)[:, None] * size + columns).reshape(-1)
