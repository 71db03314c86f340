"""What is exported as GGUF is read as the model that it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import deepmnn
from deepmnn.conversion.kept import original
from deepmnn.errors import UnsupportedModelError
from deepmnn.exporters.gguf.export import export_gguf
from deepmnn.source.open import open_source
from tiny_models import CONFIGS, tiny_checkpoint

pytest.importorskip("gguf")

IDS = [(11 * n) % 97 for n in range(40)]
CASES = [(kind, index) for kind in CONFIGS for index in range(len(CONFIGS[kind]))]
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
