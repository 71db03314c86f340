"""The angles MNN computes, at any position, against float64."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deepmnn.backends.mnn.wheel import convert_tool
from deepmnn.exporters.mnn import rotary
from deepmnn.exporters.mnn.model import Model
from deepmnn.graph.ir import Node

INV_FREQ = (1.0, 0.3, 1e-4)
SCALE = 1.3


@pytest.mark.parametrize("context", [1, 2, 255, 4096, 163840])
def test_cos_and_sin_are_those_of_float64(tmp_path: Path, context: int) -> None:
    mnn = pytest.importorskip("MNN")
    model, width = Model(), 2 * len(INV_FREQ)
    low: Any = SimpleNamespace(
        model=model, context_length=context, rotary={}, constant=model.floats
    )
    low.positions = model.input("position_ids", (1, -1), "DT_INT32")
    node = Node("rope", (), (), attrs={"inv_freq": INV_FREQ, "rope_scale": SCALE})
    names = ("cos", "sin")
    for name, table in zip(names, rotary.tables(low, node), strict=True):
        model.tensors[model.reshape(table, (-1, width))] = model.ops[-1]["name"] = name
    model.outputs = list(names)
    (tmp_path / "t.json").write_text("".join(model.to_json()))
    made = tmp_path / "t.mnn"
    convert_tool(["-f", "JSON", "--modelFile", str(tmp_path / "t.json"), "--MNNModel", str(made)])

    positions = np.unique(np.random.default_rng(0).integers(0, context, 50))
    positions = np.union1d(positions, [0, context - 1])
    module = mnn.nn.load_module_from_file(str(made), ["position_ids"], list(names))
    shape = [1, len(positions)]
    inputs = mnn.expr.const(positions.tolist(), shape, mnn.expr.NCHW, mnn.expr.int)
    angles = positions[:, None] * np.array(INV_FREQ)
    for found, function in zip(module.forward([inputs]), (np.cos, np.sin), strict=True):
        values = np.array(found.read()).reshape(len(positions), width)
        assert np.abs(values - np.tile(SCALE * function(angles), 2)).max() < 5e-7
