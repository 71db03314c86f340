"""The models that the benchmark builds for its peers: their shapes, formats and numbers."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.peers import checkpoint, deepmnn_cpu, gguf_file, llama_cpp, mnn_exporter, openvino

from deepmnn import models
from deepmnn.artifact import manifest
from deepmnn.graph.levels import pass_names
from deepmnn.graph.tensors import tensor_shapes
from deepmnn.source.random import RandomSource

CONFIGS = Path(__file__).parents[2] / "bench" / "configs"
SHAPES = ("r1-distill-qwen-1.5b", "deepseek-v2-lite")
needs_gguf = pytest.mark.skipif(
    importlib.util.find_spec("gguf") is None, reason="the gguf package is not installed"
)


def config(name: str, **changes: int) -> dict[str, Any]:
    return {**json.loads((CONFIGS / f"{name}.json").read_text()), **changes}


@pytest.mark.parametrize("name", SHAPES)
def test_a_gguf_has_every_parameter_of_the_checkpoint(name: str) -> None:
    expected = tensor_shapes(models.build(config(name)))
    found = dict(gguf_file.tensors(config(name)))
    assert sum(map(math.prod, found.values())) == sum(map(math.prod, expected.values()))
    columns = {shape[-1] for tensor, shape in found.items() if not gguf_file.is_float(tensor)}
    assert all(count % gguf_file.BLOCK == 0 for count in columns)


def q4_0(shape: tuple[int, ...]) -> np.ndarray:
    """The numbers of a drawn matrix."""
    stored = gguf_file.draw("blk.0.ffn_up.weight", shape)
    assert stored.shape == (*shape[:-1], shape[-1] // 32 * 18)
    blocks = stored.reshape(-1, 18)
    scales = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    codes = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1).astype(np.float32)
    return scales * (codes - 8)


@pytest.mark.parametrize("shape", [(1, 32), (7, 96), (3, 5, 64)])
def test_q4_0_blocks_have_the_deviation_that_keeps_activations_sane(shape: tuple[int, ...]) -> None:
    assert q4_0(shape).std() == pytest.approx(1 / math.sqrt(shape[-1]), rel=0.25)


def test_q4_0_blocks_have_no_mean_that_would_make_all_tokens_alike() -> None:
    values = q4_0((256, 1024))
    assert abs(values.mean()) < 0.03 * values.std()  # codes alone: 0.11


def test_norms_are_near_one_and_biases_near_zero() -> None:
    norm = gguf_file.draw("blk.0.attn_norm.weight", (4096,))
    bias = gguf_file.draw("blk.0.attn_q.bias", (4096,))
    assert (norm.dtype, bias.dtype) == (np.float32, np.float32)
    assert norm.mean() == pytest.approx(1, abs=0.01)
    assert bias.mean() == pytest.approx(0, abs=0.01)
    assert bias.std() == pytest.approx(0.05, rel=0.1)


@needs_gguf
@pytest.mark.parametrize("name", SHAPES)
def test_gguf_reads_it_back(tmp_path: Path, name: str) -> None:
    import gguf

    sizes = {"vocab_size": 64, "hidden_size": 128, "intermediate_size": 96, "n_routed_experts": 3}
    small = config(
        name, **sizes, num_hidden_layers=2, moe_intermediate_size=32, num_attention_heads=4
    )
    gguf_file.write(small, tmp_path / "model.gguf")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    found = {t.name: tuple(int(n) for n in reversed(t.shape)) for t in reader.tensors}
    assert found == dict(gguf_file.tensors(small))
    for tensor in reader.tensors:
        expected = gguf_file.draw(tensor.name, found[tensor.name])
        np.testing.assert_array_equal(np.asarray(tensor.data).reshape(expected.shape), expected)


def test_safetensors_reads_the_checkpoint_back(tmp_path: Path) -> None:
    shapes = {"a.weight": (3, 5), "norm.weight": (7,), "b.weight": (2, 3, 1)}
    source = RandomSource(shapes)
    checkpoint.write_safetensors(tmp_path / "model.safetensors", shapes, source)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(shapes)
        for name, shape in shapes.items():
            found = file.get_tensor(name)
            assert tuple(found.shape) == shape
            expected = source.read(name).astype(ml_dtypes.bfloat16).astype(np.float32)
            np.testing.assert_array_equal(found.float().numpy(), expected)


def test_a_checkpoint_is_what_transformers_reads(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    small = config(SHAPES[0], vocab_size=512, hidden_size=24, intermediate_size=20)
    small |= {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    small |= {"bos_token_id": 0, "eos_token_id": 1}
    (tmp_path / "config.json").write_text(json.dumps(small))
    (tmp_path / "out").mkdir()
    made = checkpoint.build(tmp_path / "config.json", tmp_path / "out", None, None)
    model, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out" / made, output_loading_info=True
    )
    assert not any(info.values())
    assert model.num_parameters() == sum(
        map(math.prod, tensor_shapes(models.build(small)).values())
    )
    assert AutoTokenizer.from_pretrained(tmp_path / "out" / made).encode("2 + 2")


def test_builds_tell_what_they_use_beyond_avx2() -> None:
    info = b"CPU : AVX2 = 1 | FMA = 1 | AVX512 = %d | AVX512_VNNI = %d | AMX_INT8 = 0 | "
    assert llama_cpp.beyond(info % (0, 0)) == ""
    assert llama_cpp.beyond(info % (1, 1)) == "it is compiled with AVX512, AVX512_VNNI"
    assert [e.exceeds("avx2", None) == "" for e in (mnn_exporter, openvino)] == [True, False]


def test_exporters_without_latent_attention_say_so() -> None:
    for engine in (mnn_exporter, openvino):
        assert engine.refuses(config(SHAPES[0])) == ""
        assert engine.refuses(config(SHAPES[1])) != ""


def test_models_of_other_artifacts_are_not_kept() -> None:
    """What a builder made is kept until its file changes, so that names version and passes."""
    assert deepmnn_cpu.ARTIFACT_VERSION == manifest.FORMAT_VERSION
    assert pass_names() == deepmnn_cpu.PASSES
