"""Weights that are quantised already: refused by the scheme's name, never read as numbers.

Every scheme is laid out as its library saves a Linear layer of a tiny model.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepmnn.conversion.convert import convert, plan_conversion
from deepmnn.errors import CheckpointError, ConfigError, DeepmnnError, UnsupportedModelError
from deepmnn.source.open import open_source
from tiny_models import LLAMA, checkpoint_of

State = dict[str, torch.Tensor]
FP8 = torch.float8_e4m3fn
SIZES = LLAMA | {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 4}


def ints(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.ones(shape, dtype=dtype)


def int8(w: torch.Tensor) -> torch.Tensor:
    return (w / w.abs().amax(1, keepdim=True) * 127).round().to(torch.int8)


def gptq(stem: str, w: torch.Tensor) -> State:
    rows, cols = w.shape
    return {
        f"{stem}.qweight": ints(cols // 8, rows),
        f"{stem}.qzeros": ints(1, rows // 8),
        f"{stem}.scales": torch.ones(1, rows),
        f"{stem}.g_idx": ints(cols),
    }


def awq(stem: str, w: torch.Tensor) -> State:
    rows, cols = w.shape
    return {
        f"{stem}.qweight": ints(cols, rows // 8),
        f"{stem}.qzeros": ints(1, rows // 8),
        f"{stem}.scales": torch.ones(1, rows),
    }


def auto_round(**fields: Any) -> dict[str, Any]:
    return {METHOD: {"quant_method": "auto-round", "bits": 4, "group_size": 32} | fields}


def as_gptq(**fields: Any) -> dict[str, Any]:
    return auto_round(**({"packing_format": "auto_round:auto_gptq"} | fields))


def compressed_int8(stem: str, w: torch.Tensor) -> State:
    return {f"{stem}.weight": int8(w), f"{stem}.weight_scale": torch.ones(len(w), 1)}


def mlx(stem: str, w: torch.Tensor) -> State:
    rows, cols = w.shape
    return {
        f"{stem}.weight": ints(rows, cols // 8).view(torch.uint32),
        f"{stem}.scales": torch.ones(rows, cols // 64),
        f"{stem}.biases": torch.ones(rows, cols // 64),
    }


def packed(stem: str, w: torch.Tensor) -> State:
    rows, cols = w.shape
    return {
        f"{stem}.weight_packed": ints(rows, cols // 8),
        f"{stem}.weight_scale": torch.ones(rows, 1),
        f"{stem}.weight_shape": ints(2, dtype=torch.int64),
    }


def nvfp4(stem: str, w: torch.Tensor) -> State:
    rows, cols = w.shape
    return {
        f"{stem}.weight": ints(rows, cols // 2, dtype=torch.uint8),
        f"{stem}.weight_scale": torch.ones(rows, cols // 16).to(FP8),
        f"{stem}.weight_scale_2": torch.ones(()),
        f"{stem}.input_scale": torch.ones(()),
    }


def lora(stem: str, w: torch.Tensor) -> State:
    return {
        f"{stem}.weight": w,
        f"{stem}.lora_A.weight": torch.ones(2, w.shape[1]),
        f"{stem}.lora_B.weight": torch.ones(len(w), 2),
    }


def parts(*names: str) -> Callable[[str, torch.Tensor], State]:
    """Tensors whose names alone tell the scheme."""
    return lambda stem, w: {f"{stem}.{name}": ints(4, 4) for name in names}


METHOD = "quantization_config"
SCHEMES: dict[str, tuple[Callable[[str, torch.Tensor], State], dict[str, Any], str]] = {
    "GPTQ, unsaid": (gptq, {}, "GPTQ.*quantize_config.json"),
    "GPTQ, another format": (
        gptq,
        {METHOD: {"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}},
        "'marlin'.*gptq_v2",
    ),
    "GPTQ of an old Marlin": (
        gptq,
        {METHOD: {"quant_method": "gptq", "bits": 4, "is_marlin_format": True}},
        "'marlin'",
    ),
    "AWQ, unsaid": (awq, {}, "AWQ.*quant_config.json"),
    "AWQ, another layout": (
        awq,
        {METHOD: {"quant_method": "awq", "bits": 4, "version": "gemv_fast"}},
        "layout 'gemv_fast'.*version gemm",
    ),
    "MLX": (mlx, {"quantization": {"group_size": 64, "bits": 4}}, "MLX.*--dequantize"),
    "MLX, said twice": (mlx, {"quantization": {"bits": 4}, METHOD: {"bits": 4}}, "MLX"),
    "MLX, unsaid": (mlx, {}, "MLX"),
    "int8 of compressed-tensors, unsaid": (compressed_int8, {}, "I8.*quantised.*weight_scale"),
    "packed compressed-tensors, unsaid": (packed, {}, "compressed-tensors.*config.json"),
    "sparse compressed-tensors, unsaid": (
        parts("bitmask", "compressed", "row_offsets", "shape"),
        {},
        "compressed-tensors, sparse",
    ),
    "marlin of compressed-tensors": (
        packed,
        {METHOD: {"quant_method": "compressed-tensors", "format": "marlin-24"}},
        "format marlin-24 .compressed-tensors",
    ),
    "NVFP4 of ModelOpt, unsaid": (nvfp4, {}, "ModelOpt NVFP4.*hf_quant_config.json"),
    "NVFP4 of compressed-tensors, unsaid": (
        parts("weight_packed", "weight_scale", "weight_global_scale"),
        {},
        "NVFP4",
    ),
    "AWQ of ModelOpt": (
        lambda s, w: {f"{s}.weight": w, f"{s}.pre_quant_scale": torch.ones(w.shape[1])},
        {METHOD: {"quant_method": "modelopt"}},
        "ModelOpt AWQ",
    ),
    "AWQ of ModelOpt, by its config": (
        nvfp4,
        {METHOD: {"quant_method": "modelopt", "quant_algo": "NVFP4_AWQ"}},
        "quant_algo NVFP4_AWQ",
    ),
    "MXFP4 of gpt-oss": (
        parts("gate_up_proj_blocks", "gate_up_proj_scales"),
        {METHOD: {"quant_method": "mxfp4"}},
        "MXFP4 of gpt-oss",
    ),
    "AQLM": (parts("codes", "codebooks", "scales"), {}, "AQLM"),
    "VPTQ": (parts("centroids", "indices", "weight_scale"), {}, "VPTQ"),
    "QuIP#": (parts("Qidxs", "SU", "SV"), {}, "QuIP#"),
    "EXL2": (parts("q_weight", "q_scale", "q_groups", "q_invperm"), {}, "EXL2"),
    "EXL3": (parts("trellis", "suh", "svh"), {}, "EXL3"),
    "torchao": (parts("_weight_qdata", "_weight_scale"), {}, "torchao"),
    "quanto": (parts("weight._data", "weight._scale"), {}, "quanto"),
    "EETQ": (
        lambda s, w: {f"{s}.weight": int8(w), f"{s}.weight_scales": torch.ones(len(w))},
        {METHOD: {"quant_method": "eetq"}},
        "quantised .quant_method 'eetq'",
    ),
    "AutoRound without a packing": (gptq, auto_round(), "packing format None"),
    "AutoRound for LLM Compressor": (
        gptq,
        auto_round(packing_format="auto_round:llm_compressor"),
        "packing format 'auto_round:llm_compressor'.*Export again",
    ),
    "AutoRound, MLX": (gptq, auto_round(packing_format="mlx"), "packing format 'mlx'"),
    "AutoRound, MXFP4": (gptq, as_gptq(data_type="mx_fp"), "data_type 'mx_fp'"),
    "AutoRound with activations": (gptq, as_gptq(act_bits=8), "act_bits 8"),
    "AutoRound, rotated": (gptq, as_gptq(rotation_config={"r1": True}), "rotation_config"),
    "AutoRound, spun": (gptq, as_gptq(spinquant_config={"r1": True}), "spinquant_config"),
    "AutoRound of 16 bits": (gptq, as_gptq(bits=16), "of 16 bits"),
    "AutoRound, a layer of floats": (
        gptq,
        as_gptq(extra_config={"lm_head": {"bits": 8, "data_type": "fp"}}),
        "data_type 'fp'",
    ),
    "AutoRound, extra_config of text": (gptq, as_gptq(extra_config={"a": "b"}), "extra_config"),
    "AutoRound, AWQ of 6 bits": (
        awq,
        as_gptq(packing_format="auto_round:auto_awq", bits=6),
        "6 bits packed as AWQ",
    ),
    "a LoRA that is not merged": (lora, {}, "adapter.*merge_and_unload"),
    "unknown integers": (lambda s, w: {f"{s}.weight": int8(w)}, {}, "stored as I8.*quantised"),
    "unknown bytes": (
        lambda s, w: {f"{s}.weight": ints(*w.shape, dtype=torch.uint8)},
        {},
        "stored as U8",
    ),
    "bits": (lambda s, w: {f"{s}.weight": w > 0}, {}, "stored as BOOL"),
    "complex numbers": (lambda s, w: {f"{s}.weight": w * 1j}, {}, "stored as C64"),
    "FP8 without scales": (lambda s, w: {f"{s}.weight": w.to(FP8)}, {}, "scales of the FP8 weight"),
    "FP8 of an unknown scheme": (
        lambda s, w: {f"{s}.weight": w.to(FP8), f"{s}.weight_scale": torch.ones(1)},
        {METHOD: {"quant_method": "quark"}},
        "quant_method 'quark'",
    ),
    "scales alone": (
        lambda s, w: {f"{s}.weight": w.to(torch.float8_e8m0fnu)},
        {},
        "stored as F8_E8M0",
    ),
    "rotated compressed-tensors": (
        lambda s, w: {f"{s}.weight": w.to(FP8), f"{s}.weight_scale": torch.ones(1)},
        {METHOD: {"quant_method": "compressed-tensors", "transform_config": {"R1": {}}}},
        "rotated weights .compressed-tensors",
    ),
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return checkpoint_of("llama", SIZES, tmp_path / "hf").path


def quantise(path: Path, change: Callable[[str, torch.Tensor], State]) -> State:
    state: State = {}
    for name, tensor in load_file(path / "model.safetensors").items():
        projection = name.endswith("_proj.weight")
        state |= change(name.removesuffix(".weight"), tensor) if projection else {name: tensor}
    return state


def set_config(path: Path, fields: dict[str, Any]) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | fields))


@pytest.mark.parametrize("case", SCHEMES)
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_refused_by_name(tmp_path: Path, checkpoint: Path, kind: str, case: str) -> None:
    change, fields, message = SCHEMES[case]
    state = quantise(checkpoint, change)
    if kind == "bin":
        (checkpoint / "model.safetensors").unlink()
        torch.save(state, checkpoint / "pytorch_model.bin")
    else:
        save_file(state, checkpoint / "model.safetensors")
    set_config(checkpoint, fields)
    with pytest.raises((UnsupportedModelError, CheckpointError), match=message) as caught:
        plan_conversion(checkpoint)
    assert isinstance(caught.value, DeepmnnError)
    assert caught.value.hint
    with pytest.raises((UnsupportedModelError, CheckpointError), match=message):
        convert(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("file", "word"),
    [("quantize_config.json", "gptq"), ("quant_config.json", "awq")],
)
def test_a_file_beside_the_config_names_the_scheme(checkpoint: Path, file: str, word: str) -> None:
    state = quantise(checkpoint, lambda s, w: {f"{s}.weight": int8(w)})
    save_file(state, checkpoint / "model.safetensors")
    (checkpoint / file).write_text('{"bits": 4, "group_size": 128}')
    with pytest.raises(UnsupportedModelError, match=f"{file}: {word}"):
        plan_conversion(checkpoint)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool], ids=str)
@pytest.mark.parametrize("name", ["model.norm.weight", "model.embed_tokens.weight"])
def test_integers_are_never_weights(checkpoint: Path, name: str, dtype: torch.dtype) -> None:
    state = load_file(checkpoint / "model.safetensors")
    state[name] = state[name].to(dtype)
    save_file(state, checkpoint / "model.safetensors")
    source = open_source(checkpoint)
    with pytest.raises(UnsupportedModelError, match=f"{name}.*codes of a quantised model"):
        source.read(name)
    with pytest.raises(UnsupportedModelError, match=name):
        plan_conversion(checkpoint)


def test_integers_that_no_model_reads_do_no_harm(checkpoint: Path) -> None:
    state = load_file(checkpoint / "model.safetensors")
    extra = {
        "model.position_ids": torch.arange(5),
        "steps": torch.ones(1, dtype=torch.int64),
        "freqs_cis": torch.ones(2, 3, dtype=torch.complex64),
    }
    save_file(state | extra, checkpoint / "model.safetensors")
    assert set(plan_conversion(checkpoint).unused) == {"steps", "freqs_cis"}


@pytest.mark.parametrize("field", ["quantization_config", "compression_config", "quantization"])
@pytest.mark.parametrize("value", [3, "gptq", [], True, {"quant_method": None}, {"bits": 4}])
def test_a_config_that_speaks_of_an_unknown_scheme(
    checkpoint: Path, field: str, value: Any
) -> None:
    set_config(checkpoint, {field: value})
    with pytest.raises(ConfigError, match=r"quantised|an object"):
        plan_conversion(checkpoint)
    set_config(checkpoint, {field: None})
    assert plan_conversion(checkpoint).unused == ()
