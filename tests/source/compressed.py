"""Weights that the library compressed-tensors makes, and what it makes of them again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.config import CompressionFormat
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import dequantize
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from safetensors.torch import load_file, save_file

State = dict[str, torch.Tensor]


def scheme_of(
    form: str, targets: tuple[str, ...] = ("Linear",), **weights: Any
) -> QuantizationScheme:
    """A group of config_groups; weights: fields of QuantizationArgs."""
    args = QuantizationArgs(**weights)
    return QuantizationScheme(targets=list(targets), weights=args, format=form)


def ranges(weight: torch.Tensor, args: QuantizationArgs) -> tuple[torch.Tensor, torch.Tensor]:
    """The least and the largest number of what shares a scale."""
    if args.strategy == "tensor":
        return weight.min().reshape(1), weight.max().reshape(1)
    if args.strategy == "channel":
        return weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    if args.strategy == "block":
        high, wide = args.block_structure
        rows, cols = (-(-n // size) for n, size in zip(weight.shape, (high, wide), strict=True))
        padded = torch.zeros(rows * high, cols * wide)
        padded[: weight.shape[0], : weight.shape[1]] = weight
        blocks = padded.reshape(rows, high, cols, wide)
        return blocks.amin((1, 3)), blocks.amax((1, 3))
    groups = weight.reshape(len(weight), -1, args.group_size)
    return groups.amin(2), groups.amax(2)


def compress(weight: torch.Tensor, scheme: QuantizationScheme) -> tuple[State, torch.Tensor]:
    """A weight as the library stores it, by the names of its parts; and decompressed, float32."""
    args = scheme.weights
    low, high = ranges(weight, args)
    whole = generate_gparam(low.amin(), high.amax()) if args.strategy == "tensor_group" else None
    scale, zero = calculate_qparams(low, high, args, global_scale=whole)
    scale = scale.to(torch.float32)
    state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero}
    if whole is not None:
        state["weight_global_scale"] = whole.reshape(1)
    compressor = BaseCompressor.get_value_from_registry(scheme.format)
    packed = compressor.compress(state, scheme)
    packed = {name: tensor.contiguous() for name, tensor in packed.items()}
    if whole is None:
        return packed, compressor.decompress(packed, scheme)["weight"].to(torch.float32)
    codes = unpack_fp4_from_uint8(packed["weight_packed"], *weight.shape, dtype=torch.float32)
    scale = packed["weight_scale"].to(torch.float32)  # decompress() rounds all of it to bf16
    return packed, dequantize(codes, scale, args=args, global_scale=whole, dtype=torch.float32)


def config_of(*schemes: QuantizationScheme, ignore: tuple[str, ...] = ()) -> dict[str, Any]:
    """quantization_config as the library writes it."""
    forms = {CompressionFormat(scheme.format).value for scheme in schemes}
    config = QuantizationConfig(
        config_groups={f"group_{i}": scheme for i, scheme in enumerate(schemes)},
        format=forms.pop() if len(forms) == 1 else "mixed-precision",
        quantization_status="compressed",
        ignore=list(ignore),
    )
    fields: dict[str, Any] = json.loads(config.model_dump_json())
    return fields


def write(
    path: Path, state: State, quantization: Any, config: dict[str, Any] | None = None
) -> Path:
    """A checkpoint of these tensors."""
    path.mkdir(exist_ok=True)
    save_file(state, path / "model.safetensors")
    fields = (config or {}) | {"quantization_config": quantization}
    (path / "config.json").write_text(json.dumps(fields))
    return path


def compress_model(
    path: Path, scheme_for: Callable[[str], QuantizationScheme | None]
) -> tuple[State, State]:
    """The tensors of a checkpoint, those with a scheme compressed; and all of them decompressed."""
    state, plain = {}, load_file(path / "model.safetensors")
    for name, tensor in list(plain.items()):
        scheme = scheme_for(name.removesuffix(".weight"))
        if scheme is None or not name.endswith(".weight"):
            state[name] = tensor
            continue
        parts, plain[name] = compress(tensor, scheme)
        state |= {f"{name.removesuffix('weight')}{part}": each for part, each in parts.items()}
    return state, plain
