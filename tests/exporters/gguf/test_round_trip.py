"""What is exported as GGUF is read as the model that it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import deepmnn
from deepmnn.backends.base import F32
from deepmnn.backends.reference import ReferenceBackend
from deepmnn.conversion.kept import original
from deepmnn.errors import UnsupportedModelError
from deepmnn.exporters.gguf.export import export_gguf
from deepmnn.models import build
from deepmnn.source.open import open_source
from parity import Runner, relative_error
from tiny_models import DENSE, WHOLE_BLOCKS, checkpoint_of, tiny_checkpoint

pytest.importorskip("gguf")

IDS = [(11 * n) % 97 for n in range(40)]
CASES = DENSE
REFUSED = [("qwen3", 2), ("deepseek", 2), ("deepseek_v2", 3), ("deepseek_v3", 2)]
"""What llama.cpp's files cannot say: biases of attention, and moe_layer_freq."""


@pytest.mark.parametrize(("model_type", "index"), REFUSED)
def test_what_it_cannot_say_is_refused(model_type: str, index: int, tmp_path: Path) -> None:
    tiny_checkpoint(model_type, index, tmp_path / "hf")
    with (
        original(tmp_path / "hf") as source,
        pytest.raises(UnsupportedModelError, match="does not compute"),
    ):
        export_gguf(source, tmp_path / "model.gguf", type="F32")


@pytest.mark.parametrize(("model_type", "index"), [case for case in CASES if case not in REFUSED])
def test_a_model_comes_back(model_type: str, index: int, tmp_path: Path) -> None:
    tiny_checkpoint(model_type, index, tmp_path / "hf")
    file = tmp_path / "model.gguf"
    with original(tmp_path / "hf") as source:
        export_gguf(source, file, type="F32")
        again = open_source(file)
        read = [name for name in source.names() if name in again]
        assert len(read) >= len(again.names())
        for name in read:
            np.testing.assert_array_equal(again.read(name), source.read(name), err_msg=name)
    arguments = {"quant": "fp32", "backend": "reference"}
    expected = deepmnn.load(tmp_path / "hf", **arguments).logits(IDS)
    found = deepmnn.load(file, **arguments).logits(IDS)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


BLOCK = 32
HALF = 2.0**-11
"""The most that rounding to float16 changes a number, as a part of it."""

TYPES: dict[str, tuple[Callable[[F32, F32], F32], float]] = {
    "F16": (lambda low, high: np.maximum(-low, high) * HALF, 0.003),
    "BF16": (lambda low, high: np.maximum(-low, high) * 2.0**-8, 0.02),
    "Q8_0": (lambda low, high: np.maximum(-low, high) * (0.5 / 127 + HALF), 0.06),
    "Q5_1": (lambda low, high: (high - low) / 31 * 0.51 + 2 * np.maximum(-low, high) * HALF, 0.4),
    "Q5_0": (lambda low, high: np.maximum(-low, high) * (1 / 16 + HALF), 0.45),
    "Q4_1": (lambda low, high: (high - low) / 15 * 0.51 + 2 * np.maximum(-low, high) * HALF, 0.85),
    "Q4_0": (lambda low, high: np.maximum(-low, high) * (1 / 8 + HALF), 0.85),
}
"""Type → how far a number of a block is moved at most, by the block's least and largest: half of a
step, and a whole one at the end that Q4_0 and Q5_0 do not reach. Then how far logits are moved, as
a part of them: a little more than was seen, since random weights forgive less than trained ones.
Of all tokens the median, since one at a border goes to other experts.
"""


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("model_type", WHOLE_BLOCKS)
def test_a_rounded_model_comes_back_within_its_type(
    model_type: str, type: str, tmp_path: Path
) -> None:
    tiny = checkpoint_of(model_type, WHOLE_BLOCKS[model_type], tmp_path / "hf")
    bound, moved = TYPES[type]
    with original(tmp_path / "hf") as source:
        export_gguf(source, tmp_path / "model.gguf", type=type)
    again = open_source(tmp_path / "model.gguf")
    for name in again.names():
        wanted, found = tiny.read(name), again.read(name)
        if name.endswith("kv_b_proj.weight"):  # whose keys have other blocks
            assert relative_error(found, wanted) <= min(moved, 0.15)
            continue
        blocks = wanted.reshape(-1, BLOCK) if wanted.shape[-1] % BLOCK == 0 else wanted[None]
        low, high = (np.minimum(blocks.min(1), 0), np.maximum(blocks.max(1), 0))
        error = np.abs(found - wanted).reshape(blocks.shape).max(1)
        assert (error <= bound(low, high)).all(), name
    graph = build(again.config)
    backend = ReferenceBackend(graph, lambda name: graph.weights[name].expr.read(again))
    found, expected = Runner(backend).step({0: IDS})[0], tiny.logits(IDS)
    norms = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert np.median(norms) <= moved
