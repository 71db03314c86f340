"""llama.cpp runs what `export --target gguf` writes. Needs a checkout that is built in its folder
`build`, as bench/accuracy/llama_cpp.py has it: LLAMA_CPP=DIR.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from bench.accuracy.llama_cpp import logits

import deepmnn
from deepmnn.conversion.bundled import CHECKPOINT
from deepmnn.conversion.kept import original
from deepmnn.errors import UnsupportedModelError
from deepmnn.exporters.gguf.export import export_gguf
from deepmnn.quant.divergence import divergence
from gguf_files import mixed_types, write_gguf
from tiny_models import CONFIGS, DENSE, WHOLE_BLOCKS, checkpoint_of

pytest.importorskip("gguf")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("LLAMA_CPP" not in os.environ, reason="LLAMA_CPP names no checkout"),
]


@pytest.mark.parametrize(("model_type", "index"), DENSE)
def test_every_architecture(model_type: str, index: int, tmp_path: Path) -> None:
    """The median: where two experts score the same, another one may be chosen. llama.cpp's caches
    are float16, and so are the factors of its products.
    """
    fields = CONFIGS[model_type][index] | {"rms_norm_eps": 1e-6}
    tiny = checkpoint_of(model_type, fields, tmp_path / "hf")
    try:
        with original(tmp_path / "hf") as source:
            report = export_gguf(source, tmp_path / "m.gguf", type="F32")
    except UnsupportedModelError:
        return
    ids = np.random.default_rng(1).integers(0, tiny.config["vocab_size"], 200).tolist()
    (found,) = logits(tmp_path / "m.gguf", [ids], 1, Path(os.environ["LLAMA_CPP"]))
    if "ranks groups of experts" not in report.note:
        assert np.median(divergence(tiny.logits(ids), found)) < 1e-5


def test_the_bundled_model(tmp_path: Path) -> None:
    with original(CHECKPOINT) as source:
        export_gguf(source, tmp_path / "f16.gguf", type="F16")
    ids = np.random.default_rng(1).integers(3, 512, 300).tolist()
    (found,) = logits(tmp_path / "f16.gguf", [ids], 1, Path(os.environ["LLAMA_CPP"]))
    with deepmnn.load(CHECKPOINT, quant="fp32").session() as session:
        assert divergence(session.logits(ids), found).mean() < 1e-3


@pytest.mark.parametrize("type", ["F16", "Q8_0", "Q4_1", "Q4_0"])
@pytest.mark.parametrize("model_type", WHOLE_BLOCKS)
def test_rounded_models(model_type: str, type: str, tmp_path: Path) -> None:
    """llama.cpp and deepmnn run one file: they differ by llama.cpp's 8-bit activations."""
    checkpoint_of(model_type, WHOLE_BLOCKS[model_type], tmp_path / "hf")
    with original(tmp_path / "hf") as source:
        export_gguf(source, tmp_path / "m.gguf", type=type)
    ids = np.random.default_rng(1).integers(0, 97, 200).tolist()
    (found,) = logits(tmp_path / "m.gguf", [ids], 1, Path(os.environ["LLAMA_CPP"]))
    exact = deepmnn.load(tmp_path / "m.gguf", quant="fp32", backend="reference").logits(ids)
    assert np.median(divergence(exact, found)) < (1e-5 if type == "F16" else 4e-3)


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "deepseek"])
def test_kept_codes(model_type: str, tmp_path: Path) -> None:
    """A file of mixed types → ours → a file: llama.cpp computes the same numbers of both."""
    tiny = checkpoint_of(model_type, WHOLE_BLOCKS[model_type], tmp_path / "hf")
    write_gguf(tiny, tmp_path / "m.gguf", mixed_types)
    deepmnn.convert(tmp_path / "m.gguf", tmp_path / "model")
    deepmnn.export(tmp_path / "model", tmp_path / "again.gguf", "gguf")
    ids = np.random.default_rng(1).integers(0, 97, 200).tolist()
    checkout = Path(os.environ["LLAMA_CPP"])
    (wanted,) = logits(tmp_path / "m.gguf", [ids], 1, checkout)
    (found,) = logits(tmp_path / "again.gguf", [ids], 1, checkout)
    np.testing.assert_array_equal(found, wanted)
