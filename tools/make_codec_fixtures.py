"""Writes weights that the libraries of quantised schemes made, for test_made_elsewhere.py to read.

    PYTHONPATH=src:tests python tools/make_codec_fixtures.py SCHEME OUT

in an environment with the scheme's library (they clash with each other, and with what the tests
need): gptqmodel 7.7, autoawq 0.2.9, auto-round 0.16.1, bitsandbytes 0.50, nvidia-modelopt 0.47, hqq
0.2.8, and compressed-tensors 0.10.2 for what newer versions of it no longer write.
OUT/SCHEME.safetensors holds small matrices, and what the library makes of them again: a sha256 of
float32, or the numbers.
OUT/SCHEME-MODEL_TYPE is a whole tiny model with the logits of transformers on those numbers.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import sys
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

State = dict[str, torch.Tensor]
Quantise = Callable[[torch.Tensor], tuple[State, torch.Tensor]]
"""A weight → the parts it is stored in, by the ends of their names, and its numbers again."""


@dataclass(frozen=True)
class Case:
    """One way to store a matrix.

    Attributes:
        config: quantization_config.
        quantise: what the library does.
        shape: of the matrix.
        exact: the library multiplies once, so that its numbers are known by a checksum.
    """

    config: dict[str, Any]
    quantise: Quantise
    shape: tuple[int, int] = (32, 96)
    exact: bool = True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scheme", choices=SCHEMES)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    cases = dict(SCHEMES[options.scheme]())
    write_matrices(options.out / f"{options.scheme}.safetensors", cases)
    if options.scheme in WHOLE:
        model_type, case = WHOLE[options.scheme]
        for each in MODELS:
            write_model(
                options.out / f"{options.scheme}-{each}", each, cases[case], each == model_type
            )


def write_matrices(path: Path, cases: dict[str, Case]) -> None:
    tensors: State = {}
    configs, sums = {}, {}
    for number, (name, case) in enumerate(cases.items()):
        generator = torch.Generator().manual_seed(number)
        weight = torch.randn(case.shape, generator=generator) * 0.1
        parts, values = case.quantise(weight.half().float())
        tensors |= {f"{name}.{part}": each.contiguous() for part, each in parts.items()}
        configs[name] = case.config
        values = values.float() + 0.0  # no zeros below zero
        sums[name] = hashlib.sha256(values.contiguous().numpy().tobytes()).hexdigest()
        if not case.exact:
            sums[name] = ""
            tensors[f"{name}.expected"] = values.contiguous()
        error = (values - weight).abs().max() / weight.abs().max()
        print(f"{name}: {sums[name][:12]}, {error:.3f} off, {sorted(parts)}")
        assert error < 1, "the library's numbers are not near those it was given"
    metadata = {"configs": json.dumps(configs), "sha256": json.dumps(sums)}
    save_file(tensors, path, metadata)


# ----------------------------------------------------------------------------- whole models

_SIZES = {
    "vocab_size": 32,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
}
_MLA = _SIZES | {
    "num_hidden_layers": 2,
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 32,
    "v_head_dim": 16,
}
MODELS = {
    "qwen2": _SIZES,
    "deepseek_v2": _MLA,
    "deepseek_v3": _MLA | {"n_group": 2, "topk_group": 1, "num_nextn_predict_layers": 0},
}
IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 31]


def write_model(path: Path, model_type: str, case: Case, kept: bool) -> None:
    """A tiny model whose projections are quantised; logits of transformers on the numbers that the
    library gives back. Asserts that deepmnn's are the same; removed again unless it is `kept`.
    """
    import shutil

    import numpy as np
    import transformers
    from safetensors.torch import load_file

    from deepmnn.models import build
    from deepmnn.source.open import open_source
    from parity import reference, relative_error, run_schedule
    from tiny_models import checkpoint_of

    plain = path.with_name(path.name + "-plain")
    tiny = checkpoint_of(model_type, MODELS[model_type], plain)
    state: State = {}
    numbers: State = {}
    for name, tensor in load_file(plain / "model.safetensors").items():
        half = tensor.half()
        state[name], numbers[name] = half, half.float()
        if "_proj" in name and name.endswith(".weight"):
            parts, numbers[name] = case.quantise(half.float())
            del state[name]
            stem = name.removesuffix("weight")
            state |= {stem + part: each.contiguous() for part, each in parts.items()}
    save_file(
        {k: v.contiguous() for k, v in numbers.items()},
        plain / "model.safetensors",
        {"format": "pt"},
    )
    oracle = transformers.AutoModelForCausalLM.from_pretrained(
        plain, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        logits = oracle(input_ids=torch.tensor([IDS])).logits[0].float().numpy()
    path.mkdir(exist_ok=True)
    save_file(state, path / "model.safetensors")
    fields = {"model_type": model_type} | MODELS[model_type]
    fields |= {k: tiny.config[k] for k in ("rope_parameters", "rms_norm_eps") if k in tiny.config}
    (path / "config.json").write_text(json.dumps(fields | {"quantization_config": case.config}))
    np.save(path / "logits.npy", logits)
    got = run_schedule(reference(build(tiny.config), open_source(path)), [IDS], [(len(IDS),)])[0]
    error = relative_error(got, logits)
    print(f"{path.name}: logits {error:.1e} off")
    source = open_source(path)
    for name, tensor in numbers.items():
        np.testing.assert_allclose(source.read(name), tensor.numpy(), rtol=3e-7, err_msg=name)
    assert error < 1e-4
    shutil.rmtree(plain)
    if not kept:
        shutil.rmtree(path)


# ------------------------------------------------------------------------------- the schemes


def gptq() -> Iterator[tuple[str, Case]]:
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.quantization.config import QuantizeConfig
    from gptqmodel.quantization.quantizer import Quantizer
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    def layer(bits: int, size: int, sym: bool, act_order: bool, v2: bool) -> Quantise:
        def quantise(weight: torch.Tensor) -> tuple[State, torch.Tensor]:
            rows, cols = weight.shape
            config = QuantizeConfig(bits=bits, group_size=size, sym=sym)
            width = cols if size == -1 else size
            g_idx = torch.arange(cols) // width
            if act_order:
                g_idx = g_idx[torch.randperm(cols, generator=torch.Generator().manual_seed(7))]
            scales, zeros = [], []
            for group in range(-(-cols // width)):
                quantizer = Quantizer(config)
                quantizer.configure(perchannel=True)
                quantizer.find_params(weight[:, g_idx == group], weight=True)
                scales.append(quantizer.scale.reshape(-1, 1).half().float())
                zeros.append(quantizer.zero.reshape(-1, 1))
            module = TorchLinear(bits, size, sym, act_order, cols, rows, bias=False)
            linear = torch.nn.Linear(cols, rows, bias=False)
            linear.weight.data = weight
            module.pack_original(linear, torch.cat(scales, 1), torch.cat(zeros, 1), g_idx.int())
            stored = {
                name: getattr(module, name).clone() for name in ("qweight", "scales", "g_idx")
            }
            stored["g_idx"] = stored["g_idx"].int()
            module.scales = module.scales.float()
            values = module.dequantize_weight().T.float()
            if not v2:
                convert_gptq_v2_to_v1_format_module(module, config)
            return stored | {"qzeros": module.qzeros.clone()}, values

        return quantise

    def case(bits: int, size: int, sym: bool = True, act: bool = False, v2: bool = False) -> Case:
        config = {
            "quant_method": "gptq",
            "bits": bits,
            "group_size": size,
            "sym": sym,
            "desc_act": act,
            "checkpoint_format": "gptq_v2" if v2 else "gptq",
            "meta": {"quantizer": ["gptqmodel:7.7.0"]},
        }
        return Case(config, layer(bits, size, sym, act, v2), (32, 128 if size == 64 else 96))

    yield "4 bits, groups of 32", case(4, 32)
    yield "4 bits, act-order", case(4, 32, act=True)
    yield "4 bits, asymmetric, v2", case(4, 32, sym=False, v2=True)
    yield "4 bits, asymmetric", case(4, 32, sym=False)
    yield "4 bits, rows, asymmetric, act-order, v2", case(4, -1, sym=False, act=True, v2=True)
    yield "2 bits", case(2, 32)
    yield "2 bits, asymmetric", case(2, 32, sym=False)
    yield "3 bits, v2", case(3, 32, sym=False, v2=True)
    yield "3 bits", case(3, 32)
    yield "8 bits", case(8, 64)
    yield "8 bits, asymmetric, act-order", case(8, 32, sym=False, act=True)


def awq() -> Iterator[tuple[str, Case]]:
    root = _bare("awq", "awq.utils", "awq.modules", "awq.modules.linear")
    _stub("awq.utils.module", try_import=lambda name: (None, "not here"))
    _stub("awq.utils.utils", get_best_device=lambda: "cpu")
    packing = importlib.import_module("awq.utils.packing_utils")
    gemm = importlib.import_module("awq.modules.linear.gemm")
    source = (root / "quantize" / "quantizer.py").read_text()
    names = {"torch": torch, "nn": torch.nn, **vars(typing)}
    exec("class AwqQuantizer" + source.split("class AwqQuantizer")[1], names)
    quantizer: Any = names["AwqQuantizer"]

    def layer(size: int) -> Quantise:
        def quantise(weight: torch.Tensor) -> tuple[State, torch.Tensor]:
            settings = types.SimpleNamespace(group_size=size, zero_point=True, w_bit=4)
            linear = torch.nn.Linear(weight.shape[1], len(weight), bias=False)
            linear.weight.data, scales, zeros = quantizer.pseudo_quantize_tensor(
                settings, weight.clone()
            )
            width = weight.shape[1] if size == -1 else size
            made = gemm.WQLinear_GEMM.from_linear(
                linear, 4, width, False, scales.T.contiguous(), zeros.T.contiguous()
            )
            values = packing.dequantize_gemm(
                made.qweight, made.qzeros, made.scales.float(), 4, width
            )
            parts = {name: getattr(made, name) for name in ("qweight", "qzeros", "scales")}
            return parts, values.T

        return quantise

    for size in (32, 96, -1):
        config = {
            "quant_method": "awq",
            "bits": 4,
            "group_size": size,
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": None,
        }
        yield f"groups of {size}", Case(config, layer(size))


def auto_round() -> Iterator[tuple[str, Case]]:
    from auto_round.data_type.int import quant_tensor_asym, quant_tensor_sym
    from auto_round.export.export_to_autoround.export import (
        dynamic_import_quant_linear_for_packing as packer,
    )
    from auto_round.export.export_to_awq.utils import dequantize_gemm

    def layer(packing: str, bits: int, size: int, sym: bool) -> Quantise:
        def quantise(weight: torch.Tensor) -> tuple[State, torch.Tensor]:
            rows, cols = weight.shape
            quant = quant_tensor_sym if sym else quant_tensor_asym
            near, scales, zeros = quant(weight.clone(), bits=bits, group_size=size)
            scales = scales.reshape(rows, -1)
            zeros = zeros.reshape(rows, -1) if isinstance(zeros, torch.Tensor) else int(zeros)
            linear = torch.nn.Linear(cols, rows, bias=False)
            linear.weight.data = near
            kind = packer(packing, bits, size, sym)
            width = cols if size == -1 else size
            if "awq" in packing:
                turned = zeros.T.contiguous() if isinstance(zeros, torch.Tensor) else zeros
                made = kind.from_linear(linear, bits, size, False, scales.T.contiguous(), turned)
                values = dequantize_gemm(
                    made.qweight, made.qzeros, made.scales.float(), bits, width
                ).T
            else:
                made = kind(bits, size, cols, rows, bias=False)
                made.device = torch.device("cpu")
                made.pack(linear, scales, zeros, None, device="cpu")
                values = made.float()(torch.eye(cols)).T
            names = ("qweight", "qzeros", "scales", "g_idx")
            parts = {name: getattr(made, name) for name in names if hasattr(made, name)}
            return parts | {"scales": parts["scales"].half()}, values

        return quantise

    def case(packing: str, bits: int, size: int, sym: bool = True, **extra: Any) -> Case:
        config = {
            "quant_method": "auto-round",
            "packing_format": packing,
            "bits": bits,
            "group_size": size,
            "sym": sym,
            "data_type": "int",
            "block_name_to_quantize": "model.layers",
            "autoround_version": "0.16.1",
        }
        shape = (32, 128 if size == 64 else 96)
        return Case(config | extra, layer(packing, bits, size, sym), shape)

    for bits in (2, 3, 4, 5, 6, 7, 8):
        yield f"{bits} bits", case("auto_round:auto_gptq", bits, 32)
    yield "4 bits, rows", case("auto_round:auto_gptq", 4, -1)
    yield "4 bits, groups of 64", case("auto_round:auto_gptq", 4, 64)
    yield "4 bits, asymmetric", case("auto_round", 4, 32, sym=False)
    yield "3 bits, asymmetric", case("auto_round", 3, 32, sym=False)
    yield "4 bits, g_idx", case("auto_round:gptqmodel", 4, 32, sym=False)
    yield "awq", case("auto_round:auto_awq", 4, 32)
    yield "awq, asymmetric", case("auto_round:auto_awq", 4, 96, sym=False)
    others = {"extra_config": {"layer": {"bits": 8, "group_size": 64}}}
    mixed = case("auto_round:auto_gptq", 8, 64)
    settings = mixed.config | {"bits": 4, "group_size": 32} | others
    yield "8 bits, 4 elsewhere", Case(settings, mixed.quantise, mixed.shape)


def _bare(*packages: str) -> Path:
    """Lets modules of packages be imported without what the packages' own __init__ would import (an
    older transformers, solvers). Returns the directory of the first.
    """
    for name in packages:
        parent, _, last = name.rpartition(".")
        if parent:
            path = Path(next(iter(importlib.import_module(parent).__path__))) / last
        else:
            found = importlib.util.find_spec(name)
            assert found is not None
            path = Path(next(iter(found.submodule_search_locations or ())))
        module = types.ModuleType(name)
        module.__path__ = [str(path)]
        sys.modules[name] = module
    return Path(next(iter(sys.modules[packages[0]].__path__)))


def _stub(name: str, **fields: Any) -> None:
    """A module with nothing but what is asked of it here."""
    module = types.ModuleType(name)
    module.__dict__.update(fields)
    sys.modules[name] = module


def bitsandbytes() -> Iterator[tuple[str, Case]]:
    import bitsandbytes.functional as bnb
    from bitsandbytes.backends.default import ops

    def int8(weight: torch.Tensor) -> tuple[State, torch.Tensor]:
        codes, scb, _ = bnb.int8_vectorwise_quant(weight.half())
        values = bnb.int8_vectorwise_dequant(codes, scb)
        parts = {"weight": codes, "SCB": scb, "weight_format": torch.tensor(0, dtype=torch.uint8)}
        return parts, values

    def four(kind: str, double: bool, storage: torch.dtype = torch.uint8) -> Quantise:
        def quantise(weight: torch.Tensor) -> tuple[State, torch.Tensor]:
            codes, state = bnb.quantize_4bit(
                weight,
                quant_type=kind,
                compress_statistics=double,
                blocksize=64,
                quant_storage=storage,
            )
            parts = {f"weight.{name}": each for name, each in state.as_dict(packed=True).items()}
            scales = state.absmax
            if double:
                scales = bnb.dequantize_blockwise(scales, state.state2) + state.offset
            # Not dequantize_4bit: 0.50's CPU kernel is wrong where blocks do not divide rows.
            values = ops._dequantize_4bit_compute(
                codes.view(torch.uint8).reshape(-1),
                scales,
                state.code,
                64,
                state.shape,
                torch.float32,
            )
            return {"weight": codes} | parts, values

        return quantise

    common = {"quant_method": "bitsandbytes", "llm_int8_skip_modules": ["lm_head"]}
    yield "int8", Case(common | {"load_in_8bit": True}, int8, (16, 48), exact=False)
    for kind in ("nf4", "fp4"):
        config = common | {"load_in_4bit": True, "bnb_4bit_quant_type": kind}
        yield kind, Case(config, four(kind, False), (32, 64))
        yield f"{kind}, rows that end in blocks", Case(config, four(kind, False), (33, 77 + 1))
        double = config | {"bnb_4bit_use_double_quant": True}
        yield f"{kind}, twice", Case(double, four(kind, True), (300, 64))
    yield "nf4, stored as bf16", Case(common, four("nf4", True, torch.bfloat16), (32, 96))


def modelopt() -> Iterator[tuple[str, Case]]:
    inner = "modelopt.torch.quantization"
    _bare("modelopt.torch", inner, f"{inner}.backends")
    from modelopt.torch.quantization.qtensor import FP8QTensor, MXFP4QTensor, NVFP4QTensor

    def nvfp4(weight: torch.Tensor) -> tuple[State, torch.Tensor]:
        made, scale, scale_2 = NVFP4QTensor.quantize(weight.clone(), 16)
        values = made.dequantize(
            dtype=torch.float32, scale=scale, double_scale=scale_2, block_sizes={-1: 16}
        )
        parts = {"weight": made._quantized_data, "weight_scale": scale, "weight_scale_2": scale_2}
        return parts | {"input_scale": torch.ones(())}, values

    def mxfp4(weight: torch.Tensor) -> tuple[State, torch.Tensor]:
        made, scale = MXFP4QTensor.quantize(weight.clone(), 32)
        values = made.dequantize(dtype=torch.float32, scale=scale, block_sizes={-1: 32})
        return {
            "weight": made._quantized_data,
            "weight_scale": scale.reshape(len(weight), -1),
        }, values

    def fp8(scale_of: Callable[[torch.Tensor], torch.Tensor], blocks: Any = None) -> Quantise:
        def quantise(weight: torch.Tensor) -> tuple[State, torch.Tensor]:
            scale = scale_of(weight)
            made = FP8QTensor.quantize(weight, scale, block_sizes=blocks)[0]
            values = made.dequantize(dtype=torch.float32, scale=scale, block_sizes=blocks)
            return {"weight": made._quantized_data, "weight_scale": scale}, values

        return quantise

    def config(algorithm: str) -> dict[str, Any]:
        return {"quant_method": "modelopt", "quant_algo": algorithm, "ignore": ["lm_head"]}

    yield "NVFP4", Case(config("NVFP4") | {"group_size": 16}, nvfp4)
    yield "MXFP4", Case(config("W4A8_MXFP4_FP8"), mxfp4)
    yield "FP8", Case(config("FP8"), fp8(lambda w: w.abs().amax() / 448))


def hqq() -> Iterator[tuple[str, Case]]:
    _bare("hqq", "hqq.core")
    _stub("termcolor", colored=lambda words, *_: words)
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    def layer(bits: int, size: int, axis: int, as_float: bool = False) -> Quantise:
        def quantise(weight: torch.Tensor) -> tuple[State, torch.Tensor]:
            linear = torch.nn.Linear(weight.shape[1], len(weight), bias=False)
            linear.weight.data = weight
            config = BaseQuantizeConfig(
                nbits=bits, group_size=size, axis=axis, view_as_float=as_float
            )
            made = HQQLinear(linear, config, compute_dtype=torch.float32, device="cpu")
            state = {name: torch.as_tensor(each) for name, each in made.state_dict().items()}
            return state, made.dequantize()

        return quantise

    config = {"quant_method": "hqq", "quant_config": {}, "skip_modules": ["lm_head"]}
    yield "4 bits", Case(config, layer(4, 32, 1))
    yield "4 bits, groups across rows", Case(config, layer(4, 64, 1), (32, 80))
    yield "4 bits, axis 0", Case(config, layer(4, 32, 0))
    yield "4 bits, as floats", Case(config, layer(4, 32, 1, as_float=True))
    yield "8 bits", Case(config, layer(8, 96, 1))
    yield "3 bits", Case(config, layer(3, 32, 1))
    yield "3 bits, axis 0", Case(config, layer(3, 32, 0))
    yield "2 bits", Case(config, layer(2, 16, 1))
    yield "1 bit", Case(config, layer(1, 8, 1))


def compressed() -> Iterator[tuple[str, Case]]:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.compressors.quantized_compressors.pack_quantized import (
        PackedQuantizationCompressor,
    )
    from compressed_tensors.compressors.sparse_compressors.sparse_24_bitmask import (
        Sparse24BitMaskTensor,
    )
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.utils import calculate_qparams

    def g_idx(weight: torch.Tensor) -> tuple[State, torch.Tensor]:
        args = QuantizationArgs(num_bits=4, strategy="group", group_size=32, actorder="group")
        order = torch.arange(weight.shape[1]) // 32
        order = order[torch.randperm(len(order), generator=torch.Generator().manual_seed(7))].int()
        groups = torch.stack([weight[:, order == g] for g in range(weight.shape[1] // 32)], 1)
        scale, zero = calculate_qparams(groups.amin(2), groups.amax(2), args)
        compressor = BaseCompressor.load_from_registry("pack-quantized")
        assert isinstance(compressor, PackedQuantizationCompressor)
        parts = compressor.compress_weight(weight, scale, args, zero, order)
        parts |= {"weight_scale": scale, "weight_g_idx": order}
        return parts, compressor.decompress_weight(parts, args)

    def sparse(weight: torch.Tensor) -> tuple[State, torch.Tensor]:
        made = Sparse24BitMaskTensor.from_dense(weight)
        parts = made.dict(name_prefix="", device="cpu")
        return {name.lstrip("."): each for name, each in parts.items()}, made.decompress()

    group = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
    groups = {"group_0": {"targets": ["Linear"], "weights": group | {"actorder": "group"}}}
    common = {"quant_method": "compressed-tensors"}
    yield "act-order", Case(common | {"format": "pack-quantized", "config_groups": groups}, g_idx)
    sparsity = {"format": "sparse-24-bitmask", "targets": ["Linear"]}
    yield "sparse", Case(common | {"sparsity_config": sparsity}, sparse)


SCHEMES: dict[str, Callable[[], Iterator[tuple[str, Case]]]] = {
    "gptq": gptq,
    "awq": awq,
    "auto_round": auto_round,
    "bitsandbytes": bitsandbytes,
    "modelopt": modelopt,
    "hqq": hqq,
    "compressed": compressed,
}
WHOLE = {
    # scheme → the model that is kept, and how its projections are stored
    "gptq": ("deepseek_v3", "4 bits, act-order"),
    "awq": ("qwen2", "groups of 32"),
    "auto_round": ("deepseek_v2", "4 bits, asymmetric"),
    "bitsandbytes": ("deepseek_v2", "nf4, twice"),
    "modelopt": ("deepseek_v3", "NVFP4"),
    "hqq": ("qwen2", "4 bits"),
}

if __name__ == "__main__":
    main()
