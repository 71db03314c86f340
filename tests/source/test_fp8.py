"""Block-scaled FP8 against the arithmetic done by hand in torch."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import PretrainedConfig
from transformers.integrations.finegrained_fp8 import FP8Experts

from deepmnn.artifact.reader import Artifact
from deepmnn.conversion.convert import convert
from deepmnn.errors import CheckpointError, TensorNotFoundError, UnsupportedModelError
from deepmnn.source.codecs.fp8 import block_size
from deepmnn.source.open import open_source
from tiny_models import INDEXED, checkpoint_of

E4M3 = torch.float8_e4m3fn
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}


def to_fp8(weight: torch.Tensor, block: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight in e4m3 and scale_inv, as DeepSeek publishes them."""
    rows, cols = weight.shape
    scales = torch.zeros(-(-rows // block[0]), -(-cols // block[1]))
    codes = torch.zeros(rows, cols)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            part = np.s_[i * block[0] : (i + 1) * block[0], j * block[1] : (j + 1) * block[1]]
            scales[i, j] = weight[part].abs().max() / 448
            codes[part] = weight[part] / scales[i, j]
    return codes.to(torch.float8_e4m3fn), scales


def by_hand(codes: torch.Tensor, scales: torch.Tensor, block: tuple[int, int]) -> np.ndarray:
    rows, cols = codes.shape
    wide = scales.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return (codes.to(torch.float32) * wide[:rows, :cols]).numpy()


def save(path: Path, tensors: dict[str, torch.Tensor], quantization: Any) -> Path:
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"quantization_config": quantization}))
    return path


@pytest.mark.parametrize("block", [(128, 128), (64, 32)])
@pytest.mark.parametrize("shape", [(128, 128), (300, 129), (1, 1), (127, 257), (256, 1)])
def test_ragged_blocks_bit_for_bit(
    tmp_path: Path, shape: tuple[int, int], block: tuple[int, int]
) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    codes, scales = to_fp8(weight, block)
    tensors = {"w.weight": codes, "w.weight_scale_inv": scales, "norm": torch.ones(3)}
    config = FP8 | ({} if block == (128, 128) else {"weight_block_size": list(block)})
    checkpoint = open_source(save(tmp_path, tensors, config))
    assert sorted(checkpoint.names()) == ["norm", "w.weight"]
    read = checkpoint.read("w.weight")
    np.testing.assert_array_equal(read, by_hand(codes, scales, block), strict=True)
    assert np.abs(read - weight.numpy()).max() < 0.07 * weight.abs().max()


@pytest.mark.parametrize("quantization", [FP8, None])
def test_missing_scales(tmp_path: Path, quantization: Any) -> None:
    checkpoint = open_source(save(tmp_path, {"w": torch.ones(130, 130).to(E4M3)}, quantization))
    for call in (checkpoint.read, checkpoint.shape):
        with pytest.raises(TensorNotFoundError, match="w_scale_inv"):
            call("w")


def test_wrong_scales(tmp_path: Path) -> None:
    codes, scales = to_fp8(torch.randn(130, 130), (128, 128))
    for bad in (scales[:1], scales.flatten(), torch.zeros(2, 3), torch.zeros(129, 1)):
        checkpoint = open_source(save(tmp_path, {"w": codes, "w_scale_inv": bad.clone()}, FP8))
        with pytest.raises(CheckpointError, match="w_scale_inv"):
            checkpoint.read("w")
    flat = {"w": codes.flatten(), "w_scale_inv": scales}
    with pytest.raises(CheckpointError, match="w_scale_inv"):
        open_source(save(tmp_path, flat, FP8)).read("w")


LAYOUTS: dict[str, tuple[str, tuple[int, ...], dict[str, Any] | None]] = {
    # name of the scales, their shape for a weight [300, 200], quantization_config
    "tensor, AutoFP8": ("w.weight_scale", (), {"quant_method": "fp8"}),
    "tensor, as a vector": ("w.weight_scale", (1,), {"quant_method": "fp8"}),
    "tensor, as a matrix": ("w.weight_scale", (1, 1), None),
    "tensor, transformers": ("w.weight_scale_inv", (), FP8 | {"weight_block_size": None}),
    "tensor, unsaid": ("w.weight_scale", (), None),
    "channel, FBGEMM": ("w.weight_scale", (300, 1), {"quant_method": "fbgemm_fp8"}),
    "channel, as a vector": ("w.weight_scale", (300,), {"quant_method": "fbgemm_fp8"}),
    "channel, unsaid": ("w.weight_scale", (300, 1), None),
    "block, DeepSeek": ("w.weight_scale_inv", (3, 2), FP8 | {"weight_block_size": [128, 128]}),
    "block, DeepSeek by default": ("w.weight_scale_inv", (3, 2), FP8),
    "block, DeepSeek unsaid": ("w.weight_scale_inv", (3, 2), None),
    "block, short name": ("w.scale", (3, 2), FP8 | {"weight_block_size": [128, 128]}),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e8m0fnu], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_scales_as_others_call_them(tmp_path: Path, layout: str, dtype: torch.dtype) -> None:
    """Each value is the code times the one scale that belongs to its row and column."""
    name, shape, quantization = LAYOUTS[layout]
    generator = torch.Generator().manual_seed(2)
    codes = (torch.randn(300, 200, generator=generator) * 100).to(E4M3)
    scales = torch.exp2(torch.randint(-6, 3, shape, generator=generator).float()).to(dtype)
    tensors = {"w.weight": codes, name: scales, "w.input_scale": torch.ones(1)}
    checkpoint = open_source(save(tmp_path, tensors, quantization))
    assert sorted(checkpoint.names()) == ["w.input_scale", "w.weight"]
    matrix = scales.float().reshape(shape if len(shape) == 2 else (-1, 1))
    blocks = {(1, 1): (300, 200), (300, 1): (1, 200), (3, 2): (128, 128)}
    want = by_hand(codes, matrix, blocks[tuple(matrix.shape)])
    np.testing.assert_array_equal(checkpoint.read("w.weight"), want, strict=True)


UNCLEAR: dict[str, tuple[dict[str, torch.Tensor], Any, str]] = {
    "two scales": (
        {"w.weight_scale": torch.ones(1), "w.weight_scale_inv": torch.ones(1)},
        FP8,
        "one tensor of scales",
    ),
    "a second scale": (
        {"w.weight_scale": torch.ones(4), "w.weight_offset": torch.ones(1)},
        None,
        "one tensor of scales",
    ),
    "zero points": (
        {"w.weight_scale": torch.ones(4), "w.weight_zero_point": torch.zeros(4).to(torch.int8)},
        None,
        "weight_zero_point",
    ),
    "exponents": (
        {"w.weight_scale": torch.full((4, 2), 127, dtype=torch.uint8)},
        FP8 | {"scale_fmt": "ue8m0"},
        "weight_scale.*U8",
    ),
    "blocks of unknown size": (
        {"w.weight_scale": torch.ones(2, 2)},
        None,
        "blocks, of which it says nothing",
    ),
    "scales that are NaN": ({"w.weight_scale": torch.full((4,), np.nan)}, FP8, "NaN"),
    "scales that are infinite": ({"w.weight_scale": torch.full((4,), np.inf)}, FP8, "infinite"),
}


@pytest.mark.parametrize("case", UNCLEAR)
def test_scales_of_unclear_meaning(tmp_path: Path, case: str) -> None:
    tensors, quantization, message = UNCLEAR[case]
    path = save(tmp_path, {"w.weight": torch.ones(4, 64).to(E4M3)} | tensors, quantization)
    with pytest.raises((CheckpointError, UnsupportedModelError), match=message):
        open_source(path).read("w.weight")


def test_block_sizes() -> None:
    assert block_size(FP8) == (128, 128)
    assert block_size(FP8 | {"weight_block_size": [64, 32]}) == (64, 32)
    assert block_size(FP8 | {"weight_block_size": None}) is None
    assert block_size({"quant_method": "fbgemm_fp8"}) is None


def test_a_config_left_from_before(tmp_path: Path) -> None:
    """Numbers that were written back, beside the config of the FP8 checkpoint."""
    weight = torch.randn(5, 6).bfloat16()
    checkpoint = open_source(save(tmp_path, {"w": weight}, FP8))
    np.testing.assert_array_equal(checkpoint.read("w"), weight.float().numpy())


@pytest.mark.parametrize("method", ["quark", "eetq", "aqlm", "fbgemm_fp8", None, 3])
def test_other_quantisations_are_refused(tmp_path: Path, method: Any) -> None:
    path = save(tmp_path, {"w": torch.ones(2)}, {"quant_method": method})
    with pytest.raises(UnsupportedModelError, match=r"already quantised|quant_method is 3"):
        open_source(path)


@pytest.mark.parametrize("block", [[128], [0, 128], [128, -1], "128", [128.0, 128], [True]])
def test_bad_block_sizes(block: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="weight_block_size"):
        block_size(FP8 | {"weight_block_size": block})


@pytest.mark.parametrize("quantization", [3, "fp8", [], True])
def test_quantization_config_of_a_wrong_type(tmp_path: Path, quantization: Any) -> None:
    path = save(tmp_path, {"w": torch.ones(2)}, quantization)
    with pytest.raises(UnsupportedModelError, match="quantization_config"):
        open_source(path)


def stacked_experts(
    rows: int, cols: int, block: tuple[int, int]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Two experts of DeepSeek's files, and the same as transformers holds them in memory."""
    torch.manual_seed(0)
    plain, parts = {}, {}
    for expert in range(2):
        for name, shape in {"gate": (rows, cols), "up": (rows, cols), "down": (cols, rows)}.items():
            made = to_fp8(torch.randn(shape) * (1 + expert), block)
            parts[expert, name] = made
            stem = f"model.layers.0.mlp.experts.{expert}.{name}_proj.weight"
            plain |= {stem: made[0], stem + "_scale_inv": made[1]}
    stacked = {}
    for part, suffix in enumerate(("", "_scale_inv")):
        gate_up = [torch.cat([parts[e, n][part] for n in ("gate", "up")]) for e in range(2)]
        down = [parts[expert, "down"][part] for expert in range(2)]
        for name, tensors in {"gate_up_proj": gate_up, "down_proj": down}.items():
            stacked[f"model.layers.0.mlp.experts.{name}{suffix}"] = torch.stack(tensors)
    return plain, stacked


@pytest.mark.parametrize(
    ("rows", "cols", "block"),
    [(256, 130, (128, 128)), (64, 40, (128, 128)), (192, 96, (64, 32)), (96, 64, (1, 64))],
)
def test_stacked_experts(tmp_path: Path, rows: int, cols: int, block: tuple[int, int]) -> None:
    """model.state_dict() of transformers 5, whose FP8Experts has these names and shapes."""
    plain, stacked = stacked_experts(rows, cols, block)
    sizes = {"num_local_experts": 2, "hidden_size": cols, "moe_intermediate_size": rows}
    with torch.device("meta"):
        experts = FP8Experts(PretrainedConfig(**sizes, hidden_act="silu"), block)
    for name, tensor in experts.state_dict().items():
        assert stacked[f"model.layers.0.mlp.experts.{name}"].shape == tensor.shape
    config = FP8 | {"weight_block_size": list(block)}
    for folder in ("plain", "stacked"):
        (tmp_path / folder).mkdir()
    want = open_source(save(tmp_path / "plain", plain, config))
    found = open_source(save(tmp_path / "stacked", stacked, config))
    assert sorted(found.names()) == sorted(want.names())
    for name in want.names():
        np.testing.assert_array_equal(found.read(name), want.read(name), err_msg=name)


@pytest.mark.parametrize(
    ("scales", "shape"),
    [
        ("gate_up_proj_scale_inv", (2, 3, 2)),  # the second block is of both
        ("gate_up_proj_scale_inv", (2, 2, 2)),  # of 128 rows, or of 96
        ("gate_up_proj_scale_inv", (2,)),
        ("gate_up_proj_scale", (2, 1, 192)),
        ("gate_up_proj_weight_scale", (2, 1, 1)),
        ("others", (1,)),
    ],
)
def test_stacked_experts_with_other_scales_are_refused(
    tmp_path: Path, scales: str, shape: tuple[int, ...]
) -> None:
    stem = "model.layers.0.mlp.experts."
    tensors = {f"{stem}gate_up_proj": torch.ones(2, 192, 200).to(E4M3)}
    save(tmp_path, tensors | {stem + scales: torch.ones(shape)}, FP8)
    beside = "no scales" if scales == "others" else re.escape(f"{scales}' {list(shape)}")
    with pytest.raises(UnsupportedModelError, match=rf"stacked FP8 experts .*{beside}") as fault:
        open_source(tmp_path)
    assert "save_pretrained" in str(fault.value)


def test_deepseek_v32_with_scales_of_powers_of_two(tmp_path: Path) -> None:
    """scale_fmt "ue8m0": blocks of 128 × 128 with scales of one byte, also in the indexer."""
    fields = INDEXED | {"hidden_size": 260, "q_lora_rank": 130, "n_group": 1, "topk_group": 1}
    tiny = checkpoint_of("deepseek_v32", fields, tmp_path / "float")
    tensors, expected = {}, {}
    for name in tiny.names():
        weight = torch.from_numpy(tiny.read(name))
        tensors[name], expected[name] = weight.clone(), weight.numpy()
        if weight.ndim == 2 and re.search(r"_proj|wq_b|wk", name) and "weights_proj" not in name:
            _, scales = to_fp8(weight, (128, 128))
            exponents = torch.ceil(torch.log2(scales))  # so that no number is above 448
            wide = (2.0**exponents).repeat_interleave(128, 0).repeat_interleave(128, 1)
            codes = (weight / wide[: weight.shape[0], : weight.shape[1]]).to(E4M3)
            bytes_of_scales = (exponents + 127).to(torch.uint8)
            tensors[name] = codes
            tensors[f"{name}_scale_inv"] = bytes_of_scales.view(torch.float8_e8m0fnu)
            powers = np.exp2(bytes_of_scales.numpy().astype(np.float32) - 127)
            spread = powers.repeat(128, axis=0).repeat(128, axis=1)
            spread = spread[: weight.shape[0], : weight.shape[1]]
            expected[name] = codes.to(torch.float32).numpy() * spread
    path = tmp_path / "fp8"
    path.mkdir()
    save_file(tensors, path / "model.safetensors")
    quantization = FP8 | {"weight_block_size": [128, 128], "scale_fmt": "ue8m0"}
    (path / "config.json").write_text(
        json.dumps(tiny.config | {"quantization_config": quantization})
    )
    source = open_source(path)
    assert {"model.layers.0.self_attn.indexer.wq_b.weight_scale_inv"} <= tensors.keys()
    for name, wanted in expected.items():
        np.testing.assert_array_equal(source.read(name), wanted, strict=True)
    convert(path, tmp_path / "model", "fp32")
    restored = Artifact.open(tmp_path / "model")
    assert restored.graph().op_counts()["sparse_mla_attention"] == 2
