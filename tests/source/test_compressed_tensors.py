"""compressed-tensors' formats against the library itself, matrix by matrix and as whole models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from compressed_tensors.compressors import BaseCompressor
from safetensors.torch import save_file

from deepmnn.errors import CheckpointError, TensorNotFoundError, UnsupportedModelError
from deepmnn.models import build
from deepmnn.source.open import open_source
from parity import prompts_for, reference, relative_error, run_schedule
from source.compressed import State, compress, compress_model, config_of, scheme_of, write
from tiny_models import LLAMA, MLA, checkpoint_of

INT, FLOAT = {"type": "int"}, {"type": "float"}
MX = FLOAT | {"strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}


def grouped(size: int) -> dict[str, Any]:
    return {"strategy": "group", "group_size": size}


CASES: dict[str, tuple[str, tuple[int, int], dict[str, Any]]] = {
    # format, shape of the weight, its QuantizationArgs
    "int4, groups of 32": ("pack-quantized", (48, 96), INT | {"num_bits": 4} | grouped(32)),
    "int4, groups of 128": ("pack-quantized", (48, 256), INT | {"num_bits": 4} | grouped(128)),
    "int4, groups, asymmetric": (
        "pack-quantized",
        (41, 96),
        INT | {"num_bits": 4, "symmetric": False} | grouped(32),
    ),
    "int4, rows": ("pack-quantized", (40, 77), INT | {"num_bits": 4, "strategy": "channel"}),
    "int4, rows, asymmetric": (
        "pack-quantized",
        (41, 77),
        INT | {"num_bits": 4, "strategy": "channel", "symmetric": False},
    ),
    "int4, tensor": ("pack-quantized", (40, 77), INT | {"num_bits": 4, "strategy": "tensor"}),
    "int4, tensor, asymmetric": (
        "pack-quantized",
        (40, 77),
        INT | {"num_bits": 4, "strategy": "tensor", "symmetric": False},
    ),
    "int8, groups, asymmetric": (
        "pack-quantized",
        (41, 96),
        INT | {"num_bits": 8, "symmetric": False} | grouped(32),
    ),
    **{
        f"int{bits}, rows": (
            "pack-quantized",
            (33, 301),
            INT | {"num_bits": bits, "strategy": "channel", "symmetric": bits % 2 == 0},
        )
        for bits in (2, 3, 5, 6, 7)
    },
    "W8A8": ("int-quantized", (40, 77), INT | {"num_bits": 8, "strategy": "channel"}),
    "W8A8, asymmetric": (
        "int-quantized",
        (40, 77),
        INT | {"num_bits": 8, "strategy": "channel", "symmetric": False},
    ),
    "W8A8, tensor": ("int-quantized", (40, 77), INT | {"num_bits": 8, "strategy": "tensor"}),
    "W8A8, groups": ("naive-quantized", (40, 96), INT | {"num_bits": 8} | grouped(32)),
    "FP8, tensor": ("float-quantized", (40, 77), FLOAT | {"num_bits": 8, "strategy": "tensor"}),
    "FP8, rows": ("naive-quantized", (40, 77), FLOAT | {"num_bits": 8, "strategy": "channel"}),
    "FP8, groups": ("float-quantized", (40, 96), FLOAT | {"num_bits": 8} | grouped(32)),
    "FP8, blocks": (
        "float-quantized",
        (130, 77),
        FLOAT | {"num_bits": 8, "strategy": "block", "block_structure": [64, 32]},
    ),
    "MXFP8": ("mxfp8-quantized", (40, 96), MX | {"num_bits": 8}),
    "MXFP4": ("mxfp4-pack-quantized", (40, 96), MX | {"num_bits": 4}),
    "NVFP4": (
        "nvfp4-pack-quantized",
        (40, 96),
        FLOAT
        | {"num_bits": 4, "strategy": "tensor_group", "group_size": 16}
        | {"scale_dtype": "torch.float8_e4m3fn"},
    ),
}


def weight_of(shape: tuple[int, int], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.1


def of_layer(parts: State, name: str = "w") -> State:
    return {f"{name}.{part}": tensor for part, tensor in parts.items()}


@pytest.mark.parametrize("case", CASES)
def test_the_librarys_numbers_bit_for_bit(tmp_path: Path, case: str) -> None:
    form, shape, args = CASES[case]
    scheme = scheme_of(form, **args)
    parts, want = compress(weight_of(shape), scheme)
    state = of_layer(parts) | {"w.input_scale": torch.ones(1), "norm": torch.ones(3)}
    source = open_source(write(tmp_path / "hf", state, config_of(scheme)))
    assert sorted(source.names()) == ["norm", "w.weight"]
    assert source.shape("w.weight") == shape
    np.testing.assert_array_equal(source.read("w.weight"), want.numpy(), strict=True)
    assert source.sample("w.weight")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", ["int4, groups, asymmetric", "W8A8", "FP8, rows"])
def test_scales_of_half_the_bits(tmp_path: Path, case: str, dtype: torch.dtype) -> None:
    """The library rounds each number to the scale's type; these are not rounded."""
    form, shape, args = CASES[case]
    scheme = scheme_of(form, **args)
    parts, _ = compress(weight_of(shape), scheme)
    parts["weight_scale"] = parts["weight_scale"].to(dtype)
    source = open_source(write(tmp_path / "hf", of_layer(parts), config_of(scheme)))
    want = BaseCompressor.get_value_from_registry(form).decompress(parts, scheme)["weight"]
    got = torch.from_numpy(source.read("w.weight"))
    assert (got != 0).any()
    torch.testing.assert_close(got.to(dtype), want, rtol=0, atol=0)


# ----------------------------------------------------------------------------- whole models

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": LLAMA | SIZES,
    "deepseek_v2": MLA
    | SIZES
    | {"num_key_value_heads": 4, "moe_intermediate_size": 32, "q_lora_rank": 32}
    | {"kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16},
    "qwen2": LLAMA | SIZES | {"num_hidden_layers": 3},
}


def scheme_for(name: str) -> Any:
    """Attention in NVFP4, the rest in int4 or FP8; the head, embedding and routers as they are."""
    if "_proj" not in name:
        return None
    if "self_attn" in name:
        return ATTENTION
    return DOWN if "down_proj" in name else REST


ATTENTION = scheme_of("nvfp4-pack-quantized", ("re:.*self_attn.*",), **CASES["NVFP4"][2])
DOWN = scheme_of("float-quantized", ("re:.*down_proj",), num_bits=8, strategy="channel", **FLOAT)
REST = scheme_of("pack-quantized", num_bits=4, symmetric=False, **INT, **grouped(32))


@pytest.mark.parametrize("model_type", MODELS)
def test_mixed_schemes_give_the_logits_of_the_librarys_numbers(
    tmp_path: Path, model_type: str
) -> None:
    tiny = checkpoint_of(model_type, MODELS[model_type], tmp_path / "plain")
    state, plain = compress_model(tiny.path, scheme_for)
    groups = config_of(ATTENTION, DOWN, REST, ignore=("lm_head", "re:.*mlp.gate$"))
    source = open_source(write(tmp_path / "hf", state, groups, tiny.config))
    assert sorted(source.names()) == sorted(plain)
    for name, tensor in plain.items():
        np.testing.assert_array_equal(source.read(name), tensor.numpy(), strict=True)
    save_file(plain, tiny.path / "model.safetensors", {"format": "pt"})
    oracle = transformers.AutoModelForCausalLM.from_pretrained(
        tiny.path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    prompt = prompts_for([23], tiny.config["vocab_size"])[0]
    with torch.no_grad():
        want = oracle(input_ids=torch.tensor([prompt])).logits[0].numpy()
    got = run_schedule(reference(build(tiny.config), source), [prompt], [(23,)])[0]
    assert relative_error(got, want) <= 1e-4
    assert relative_error(got, tiny.logits(prompt)) > 1e-3


# ---------------------------------------------------------------------------- damaged files


def damaged(case: str, change: dict[str, Any], **config: Any) -> tuple[State, dict[str, Any]]:
    """A case of CASES with some tensors changed (None: taken away)."""
    form, shape, args = CASES[case]
    scheme = scheme_of(form, **args)
    parts, _ = compress(weight_of(shape), scheme)
    for name, make in change.items():
        made = make(parts.get(name)) if callable(make) else make
        parts.pop(name, None)
        if made is not None:
            parts[name] = made.contiguous()
    return of_layer(parts), config_of(scheme) | config


INT4 = "int4, groups, asymmetric"
DAMAGED: dict[str, tuple[tuple[State, dict[str, Any]], str]] = {
    "no scales": (damaged(INT4, {"weight_scale": None}), "w.weight_scale"),
    "no shape": (damaged(INT4, {"weight_shape": None}), "w.weight_shape"),
    "scales of a group too few": (
        damaged(INT4, {"weight_scale": lambda s: s[:, 1:]}),
        r"w.weight_scale.*\[41, 2\]",
    ),
    "scales of integers": (damaged(INT4, {"weight_scale": lambda s: s.int()}), "stored as I32"),
    "scales that are NaN": (damaged(INT4, {"weight_scale": lambda s: s * np.nan}), "NaN"),
    "scales that are infinite": (damaged(INT4, {"weight_scale": lambda s: s / 0}), "infinite"),
    "another shape": (
        damaged(INT4, {"weight_shape": torch.tensor([41, 97])}),
        "w.weight_packed|w.weight_shape",
    ),
    "a negative shape": (damaged(INT4, {"weight_shape": torch.tensor([-1, 96])}), "a shape"),
    "a huge shape": (damaged(INT4, {"weight_shape": torch.tensor([1 << 60, 96])}), "a shape"),
    "a shape of three": (damaged(INT4, {"weight_shape": torch.tensor([1, 2, 3])}), "weight_shape"),
    "words of floats": (damaged(INT4, {"weight_packed": lambda w: w.float()}), "stored as F32"),
    "no words": (damaged(INT4, {"weight_packed": lambda w: w[:0]}), "a matrix"),
    "zero points of another shape": (
        damaged(INT4, {"weight_zero_point": lambda z: z[:1]}),
        "weight_zero_point",
    ),
    "a g_idx that is too short": (
        damaged(INT4, {"weight_g_idx": torch.zeros(3, dtype=torch.int32)}),
        "weight_g_idx",
    ),
    "a g_idx out of range": (
        damaged(INT4, {"weight_g_idx": torch.full((96,), 3, dtype=torch.int32)}),
        "holds groups 3 to 3.*0 to 2",
    ),
    "NVFP4 without its global scale": (
        damaged("NVFP4", {"weight_global_scale": None}),
        "weight_global_scale",
    ),
    "NVFP4 with a global scale of 0": (
        damaged("NVFP4", {"weight_global_scale": torch.zeros(1)}),
        "infinite",
    ),
    "MXFP4 with exponents of NaN": (
        damaged("MXFP4", {"weight_scale": lambda s: torch.full_like(s, 255)}),
        "NaN",
    ),
    "FP8 without scales": (damaged("FP8, rows", {"weight_scale": None}), "w.weight_scale"),
    "blocks of another size": (
        damaged("FP8, blocks", {"weight_scale": torch.ones(2, 2)}),
        r"\[2, 2\].*blocks of \[64, 32\]",
    ),
    "groups that nothing says the size of": (
        damaged("FP8, groups", {}, config_groups={}),
        "blocks, of which it says nothing",
    ),
    "bits that nothing says": (damaged(INT4, {}, config_groups={}), "no bits"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_what_does_not_fit_is_refused(tmp_path: Path, case: str) -> None:
    (state, config), message = DAMAGED[case]
    source = open_source(write(tmp_path / "hf", state, config))
    errors = (CheckpointError, TensorNotFoundError, UnsupportedModelError)
    with pytest.raises(errors, match=message) as caught:
        source.read("w.weight")
    assert caught.value.hint or caught.value.expected
    with pytest.raises(errors, match=message):
        source.codes("w.weight")


def weights(**fields: Any) -> dict[str, Any]:
    return {"config_groups": {"g": {"targets": ["Linear"], "weights": fields}}}


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "rotated": ({"transform_config": {"config_groups": {}, "R1": 1}}, "rotated"),
    "marlin": ({"format": "marlin-24"}, "marlin-24.*Quantise again"),
    "FP6": ({"format": "mxfp6-pack-quantized"}, "mxfp6"),
    "of one group": ({"config_groups": {"g": {"format": "marlin-24"}}}, "marlin-24"),
    "unknown sparsity": ({"sparsity_config": {"format": "dance"}}, "dance"),
    "sparsity of a wrong type": ({"sparsity_config": 3}, "sparsity_config"),
    "groups of a wrong type": ({"config_groups": [1]}, "config_groups"),
    "a group of a wrong type": ({"config_groups": {"g": 3}}, "config_groups"),
    "weights of a wrong type": ({"config_groups": {"g": {"weights": 3}}}, "config_groups"),
    "bits": (weights(num_bits=9), "num_bits.*9"),
    "bits of a wrong type": (weights(num_bits="4"), "num_bits"),
    "no bits": (weights(num_bits=None), "num_bits"),
    "group_size": (weights(num_bits=4, strategy="group", group_size=0), "group_size"),
    "blocks": (weights(num_bits=8, strategy="block", block_structure="1x" + "9" * 5000), "block"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configs_that_are_refused(tmp_path: Path, case: str) -> None:
    fields, message = CONFIGS[case]
    config = {"quant_method": "compressed-tensors"} | fields
    with pytest.raises(UnsupportedModelError, match=message):
        open_source(write(tmp_path / "hf", {"x": torch.ones(2)}, config))


@pytest.mark.parametrize("g_idx", [torch.full((96,), -1), torch.arange(96) // 32])
def test_a_g_idx_in_order_changes_nothing(tmp_path: Path, g_idx: torch.Tensor) -> None:
    state, config = damaged(INT4, {})
    want = open_source(write(tmp_path / "hf", state, config)).read("w.weight")
    state["w.weight_g_idx"] = g_idx.int()
    read = open_source(write(tmp_path / "hf", state, config)).read("w.weight")
    np.testing.assert_array_equal(read, want, strict=True)


def test_a_huge_block_takes_no_memory(tmp_path: Path) -> None:
    state, config = damaged("FP8, rows", {"weight_scale": torch.ones(1, 3)})
    weights = config["config_groups"]["group_0"]["weights"]
    weights |= {"strategy": "block", "block_structure": [(1 << 31) - 1, 32]}
    read = open_source(write(tmp_path / "hf", state, config)).read("w.weight")
    assert read.shape == (40, 77)


@pytest.mark.parametrize("case", ["W8A8", "FP8, rows"])
def test_sparse_and_quantised(tmp_path: Path, case: str) -> None:
    """As sparse-24-bitmask stores the codes of int-quantized and float-quantized."""
    state, config = damaged(case, {})
    codes = state["w.weight"].view(torch.int8).clone()
    codes[:, 1::2] = 0
    state["w.weight"] = codes.view(state["w.weight"].dtype)
    dense = open_source(write(tmp_path / "dense", state, config)).read("w.weight")
    mask = np.packbits(codes.numpy() != 0, axis=1, bitorder="little")
    state |= {
        "w.compressed": codes[codes != 0].view(state.pop("w.weight").dtype),
        "w.bitmask": torch.from_numpy(mask),
        "w.shape": torch.tensor([[codes.shape[0]], [codes.shape[1]]]),
    }
    config["sparsity_config"] = {"format": "sparse-24-bitmask"}
    source = open_source(write(tmp_path / "sparse", state, config))
    assert source.names() == ["w.weight"]
    np.testing.assert_array_equal(source.read("w.weight"), dense, strict=True)
    state["w.compressed"] = state["w.compressed"][1:].clone()
    source = open_source(write(tmp_path / "sparse", state, config))
    with pytest.raises(CheckpointError, match=r"the ones in 'w\.bitmask'"):
        source.read("w.weight")


def test_only_the_kv_cache_is_quantised(tmp_path: Path) -> None:
    """Plain weights, and scales that nothing needs: read as they are."""
    config = {
        "quant_method": "compressed-tensors",
        "config_groups": {},
        "kv_cache_scheme": {"num_bits": 8, "type": "float", "strategy": "tensor"},
    }
    state = {"w.weight": torch.ones(2, 3), "w.k_scale": torch.ones(1)}
    source = open_source(write(tmp_path / "hf", state, config))
    np.testing.assert_array_equal(source.read("w.weight"), np.ones((2, 3)))
