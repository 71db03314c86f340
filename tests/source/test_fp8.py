"""Block-scaled FP8 against the arithmetic done by hand in torch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from deepmnn.errors import CheckpointError, TensorNotFoundError, UnsupportedModelError
from deepmnn.source.codecs.fp8 import block_size
from deepmnn.source.open import open_source

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


def test_missing_or_wrong_scales(tmp_path: Path) -> None:
    codes, scales = to_fp8(torch.randn(130, 130), (128, 128))
    checkpoint = open_source(save(tmp_path, {"w": codes}, FP8))
    with pytest.raises(TensorNotFoundError, match="w_scale_inv"):
        checkpoint.read("w")
    for bad in (scales[:1], scales.flatten(), torch.zeros(2, 3)):
        checkpoint = open_source(save(tmp_path, {"w": codes, "w_scale_inv": bad.clone()}, FP8))
        with pytest.raises(CheckpointError, match="w_scale_inv"):
            checkpoint.read("w")
    flat = {"w": codes.flatten(), "w_scale_inv": scales}
    with pytest.raises(CheckpointError, match="w_scale_inv"):
        open_source(save(tmp_path, flat, FP8)).read("w")


@pytest.mark.parametrize("method", ["awq", "gptq", "bitsandbytes", "compressed-tensors", None, 3])
def test_other_quantisations_are_refused(tmp_path: Path, method: Any) -> None:
    path = save(tmp_path, {"w": torch.ones(2)}, {"quant_method": method})
    with pytest.raises(UnsupportedModelError, match="already quantised"):
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
