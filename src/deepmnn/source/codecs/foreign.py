"""Quantised schemes that are known, and not read: refused by their own names.

Some checkpoints say in config.json how they are quantised, some in a file beside it, some nowhere;
the names of their tensors always do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from deepmnn.errors import UnsupportedModelError

_ORIGINAL = "Convert from the original checkpoint, before it was quantised."
_DEQUANTIZE = (
    "Convert from the original checkpoint, or write the numbers back with transformers: "
    "model.dequantize(), then model.save_pretrained(OUT)."
)
_SAY = "Put {file} of the same checkpoint beside its weights, or convert from the original one."


@dataclass(frozen=True)
class Scheme:
    """One scheme.

    Attributes:
        name: as its users call it.
        suffixes: a checkpoint that has tensors with each of these ends of a name is in this scheme.
        hint: what to do.
        expected: what is missing.
    """

    name: str
    suffixes: tuple[str, ...]
    hint: str = _ORIGINAL
    expected: str = "a scheme that is read (docs/quantised-checkpoints.md), or unquantised weights"


ADAPTER = Scheme(
    "LoRA",
    (".lora_A",),
    "Merge it: model.merge_and_unload() of peft, then save_pretrained(OUT).",
    "merged weights",
)
UNREAD = (
    ADAPTER,
    Scheme("FP-Quant", (".qweight", ".forward_hadamard_matrix")),
    Scheme(
        "MLX",
        (".scales", ".biases"),
        "Convert from the original checkpoint, or write the numbers back: "
        "mlx_lm.convert --hf-path DIR --mlx-path OUT --dequantize",
    ),
    Scheme("ModelOpt AWQ", (".pre_quant_scale",)),
    Scheme("MXFP4 of gpt-oss", ("_blocks", "_scales"), _DEQUANTIZE),
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
"""What is never read, those that say more of a checkpoint before those that say less."""

_IN_CONFIG = "quantization_config in config.json, which says how"
UNSAID = (
    Scheme(
        "GPTQ",
        (".qweight", ".qzeros", ".g_idx"),
        _SAY.format(file="quantize_config.json"),
        f"{_IN_CONFIG}, or quantize_config.json",
    ),
    Scheme(
        "AWQ or GPTQ",
        (".qweight", ".qzeros"),
        _SAY.format(file="quant_config.json or quantize_config.json"),
        f"{_IN_CONFIG}, or quant_config.json",
    ),
    Scheme("GPTQ, AWQ or another of packed integers", (".qweight",)),
    Scheme(
        "ModelOpt NVFP4",
        (".weight_scale_2",),
        _SAY.format(file="hf_quant_config.json"),
        f"{_IN_CONFIG}, or hf_quant_config.json",
    ),
    *(
        Scheme(
            f"compressed-tensors{kind}",
            suffixes,
            _SAY.format(file="config.json"),
            _IN_CONFIG,
        )
        for kind, suffixes in (
            (", NVFP4", (".weight_packed", ".weight_global_scale")),
            (", packed integers", (".weight_packed",)),
            (", sparse", (".compressed", ".bitmask")),
        )
    ),
)
"""What is read where config.json, or a file beside it, says that it is this and how."""


def check_scheme(schemes: Iterable[Scheme], names: Iterable[str]) -> None:
    """Raises UnsupportedModelError when the names of tensors are those of one of the schemes."""
    ends = {f".{part}" for name in names for part in name.split(".")[-3:]}
    ends |= {f"_{end.rpartition('_')[2]}" for end in ends}
    for scheme in schemes:
        if all(suffix in ends for suffix in scheme.suffixes):
            raise UnsupportedModelError(
                f"these weights are already quantised in the scheme {scheme.name} "
                f"(their tensors are called …{', …'.join(scheme.suffixes)})"
                if scheme is not ADAPTER
                else "these weights come with an adapter (LoRA) that is not merged into them",
                scheme.expected,
                scheme.hint,
            )
