"""A network whose "logits" hold more: MNN's runtime hands out nothing else of a network.

value, value, ..., logits → one tensor, side by side, of the rows whose logits are wanted
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepmnn.backends.mnn.wheel import convert_tool
from deepmnn.exporters.mnn.flatbuffer import Table
from deepmnn.exporters.mnn.model import Block, Json
from deepmnn.exporters.mnn.network import Network
from deepmnn.exporters.mnn.op_rules import TOKENS
from deepmnn.exporters.mnn.values import Held


def write_tapped(
    path: Path, net: Table, network: Network, values: Sequence[Held], made: Path
) -> None:
    """Writes the network of `path` to `made`, with values of it for logits. All other ops stay.

    Args:
        path: an .mnn file that has been checked: MNN's converter trusts it.
        net, network: what is in it.
        values: what is wanted, as wide as its tensors; logits are one, too.
        made: a file to be; one beside it holds JSON meanwhile.

    Raises StorageError, and what `convert_tool` raises.
    """
    text = made.with_suffix(".json")
    convert_tool(["-f", "MNN", "--modelFile", str(path), "--JsonFile", str(text)])
    whole = _exact(json.loads(text.read_bytes()), net)
    _append(whole, network, values)
    text.write_text(json.dumps(whole))
    convert_tool(
        ["-f", "JSON", "--modelFile", str(text), "--MNNModel", str(made), "--transformerFuseC4=0"]
    )
    text.unlink()


def _exact(told: Any, net: Any) -> Any:
    """What MNN's converter told of a network, with its floats: the converter rounds them to six
    digits.
    """
    if isinstance(told, dict):
        return {name: _exact(part, net[name]) for name, part in told.items()}
    if isinstance(told, list):
        return [_exact(*parts) for parts in zip(told, net, strict=True)]
    return net if isinstance(net, float) else told


def _append(whole: Json, network: Network, values: Sequence[Held]) -> None:
    """The ops that put values side by side."""
    block = Block()
    block.tensors, block.ops = whole["tensorName"], whole["oplists"]
    logits, row = (block.tensors.index(name) for name in ("logits", "logits_index"))
    made = block.concat([_part(block, network, value, row) for value in values], 2)
    block.tensors[logits], block.tensors[made] = block.tensors[made], "logits"
    whole["tensorNumber"] = len(block.tensors)


def _part(block: Block, network: Network, value: Held, row: int) -> int:
    """A value as plain [1, rows, width]."""
    tensor, x = network.tensors[value.tensor], value.tensor
    assert tensor is not None
    if tensor.packed:
        x = block.unpack(x)
    if tensor.is_int:
        x = block.cast(x, "DT_INT32", "DT_FLOAT")
    x = block.reshape(x, (1, -1, value.width))
    return block.slice_from(x, row, 1) if TOKENS in tensor.shape else x
