"""Quantised schemes that are known, and not read: refused by their own names.

Some checkpoints say in config.json how they are quantised, some in a file beside it, some nowhere;
the names of their tensors always do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepmnn.errors import UnsupportedModelError

_ORIGINAL = "Convert from the original checkpoint, before it was quantised."
_DEQUANTIZE = (
    "Convert from the original checkpoint, or write the numbers back with transformers: "
    "model.dequantize(), then model.save_pretrained(OUT)."
)


@dataclass(frozen=True)
class Scheme:
    """One scheme.

    Attributes:
        name: as its users call it.
        suffixes: a checkpoint that has tensors with each of these ends of a name is in this scheme.
        hint: what to do.
    """

    name: str
    suffixes: tuple[str, ...]
    hint: str = _ORIGINAL


ADAPTER = Scheme(
    "LoRA", (".lora_A",), "Merge it: model.merge_and_unload() of peft, then save_pretrained(OUT)."
)
SCHEMES = (
    ADAPTER,
    Scheme("GPTQ", (".qweight", ".qzeros", ".g_idx")),
    Scheme("FP-Quant", (".qweight", ".forward_hadamard_matrix")),
    Scheme("AWQ or GPTQ", (".qweight", ".qzeros")),
    Scheme("GPTQ, AWQ or another of packed integers", (".qweight",)),
    Scheme("bitsandbytes int8", (".SCB",), _DEQUANTIZE),
    Scheme("bitsandbytes 4-bit", (".absmax",), _DEQUANTIZE),
    Scheme("bitsandbytes 4-bit", (".quant_map",), _DEQUANTIZE),
    Scheme(
        "MLX",
        (".scales", ".biases"),
        "Convert from the original checkpoint, or write the numbers back: "
        "mlx_lm.convert --hf-path DIR --mlx-path OUT --dequantize",
    ),
    Scheme("NVFP4 (compressed-tensors)", (".weight_packed", ".weight_global_scale")),
    Scheme("compressed-tensors, packed integers", (".weight_packed",)),
    Scheme("compressed-tensors, sparse", (".bitmask",)),
    Scheme("ModelOpt NVFP4", (".weight_scale_2",)),
    Scheme("ModelOpt AWQ", (".pre_quant_scale",)),
    Scheme("MXFP4", ("_blocks", "_scales"), _DEQUANTIZE),
    Scheme("HQQ", (".W_q",)),
    Scheme("AQLM", (".codebooks", ".codes")),
    Scheme("VPTQ", (".centroids", ".indices")),
    Scheme("QuIP#", (".Qidxs",)),
    Scheme("EXL2", (".q_weight", ".q_scale")),
    Scheme("EXL3 or QTIP", (".trellis",)),
    Scheme("torchao", ("_qdata",)),
    Scheme("quanto", ("._data", "._scale")),
    Scheme("HIGGS", (".tables2",)),
    Scheme("SpQR", (".dense_weights",)),
    Scheme("Marlin", (".B", ".s", ".workspace")),
)
"""The schemes, those that say more of a checkpoint before those that say less."""

FILES = {
    "quantize_config.json": "GPTQ",
    "hf_quant_config.json": "ModelOpt",
    "quant_config.json": "AWQ",
    "quantization_config.json": "bitsandbytes or another",
}
"""Files beside config.json → whose they are."""


BLOCKS = ("quantization_config", "compression_config", "quantization")
"""Where config.json speaks of a scheme: transformers, older compressed-tensors, MLX."""


def quantization_of(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What config.json says of a scheme. Raises UnsupportedModelError when it is no object."""
    for name in BLOCKS:
        block = config.get(name)
        if block is not None and not isinstance(block, dict):
            raise UnsupportedModelError(
                f"{name} is {block!r:.80}", "an object", "Check config.json."
            )
        if block is not None:
            return block
    return None


def check_scheme(quantization: Mapping[str, Any], names: Iterable[str]) -> None:
    """Raises UnsupportedModelError when config.json, or the names of the tensors, are those of a
    scheme that is not read.
    """
    ends = {f".{part}" for name in names for part in name.split(".")[-3:]}
    ends |= {f"_{end.rpartition('_')[2]}" for end in ends}
    for scheme in SCHEMES:
        if all(suffix in ends for suffix in scheme.suffixes):
            raise UnsupportedModelError(
                f"these weights are already quantised in the scheme {scheme.name} "
                f"(their tensors are called …{', …'.join(scheme.suffixes)})"
                if scheme is not ADAPTER
                else "these weights come with an adapter (LoRA) that is not merged into them",
                "fp8 or unquantised weights",
                scheme.hint,
            )
    sparsity = quantization.get("sparsity_config")
    sparse = isinstance(sparsity, dict) and sparsity.get("format") not in (None, "dense")
    if sparse or quantization.get("transform_config"):
        raise UnsupportedModelError(
            f"these weights are {'sparse' if sparse else 'rotated'} (compressed-tensors: "
            f"{'sparsity_config' if sparse else 'transform_config'} in config.json)",
            "fp8 or unquantised weights",
            _ORIGINAL,
        )


def described(config: Mapping[str, Any], directory: Path) -> str:
    """What else is known of the scheme of tensors that are no numbers: "" if nothing is."""
    for name in BLOCKS:
        if isinstance(block := config.get(name), dict):
            words = [str(block[key]) for key in ("quant_method", "format", "bits") if key in block]
            return f"config.json: {name} {' '.join(words)[:80]}"
    files = [f"{name}: {whose}" for name, whose in FILES.items() if (directory / name).is_file()]
    return ", ".join(files)
