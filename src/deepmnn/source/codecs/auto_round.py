"""AutoRound weights, as the package auto-round exports them in a format of its own.

Tensors lie as GPTQ's or AWQ's do; `packing_format` says which:

    auto_round:auto_gptq, auto_round:gptq   GPTQ v1, a zero point stored as one less
    auto_round, auto_round:gptqmodel        GPTQ, a zero point stored as it is
    auto_round:auto_awq, auto_round:awq     AWQ, gemm

and may end in a kernel's name, auto_round:auto_gptq:exllamav2. GPTQ layers have up to 8 bits and
mostly no g_idx. `extra_config` gives some layers other bits and groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from deepmnn.source.codecs.awq import Awq
from deepmnn.source.codecs.coded import Coded, MatrixCodec
from deepmnn.source.codecs.gptq import Gptq
from deepmnn.source.codecs.settings import group_columns, integer, refuse, text
from deepmnn.source.store import Store

_GPTQ_V1 = ("auto_gptq", "gptq")
_GPTQ = ("", "gptqmodel")
_AWQ = ("auto_awq", "awq")
_KERNELS = ("exllamav2", "tritonv2")

_PLAIN = (16, 32)
_BITS = (2, 3, 4, 5, 6, 7, 8)
_AGAIN = (
    "Export again with auto-round in the format auto_gptq or auto_awq, or convert from the "
    "original checkpoint."
)


class AutoRound(MatrixCodec):
    """Whole numbers of AutoRound.

    Args:
        layout: reads the tensors.
    """

    scheme = "auto-round"

    def __init__(self, layout: Gptq | Awq) -> None:
        self._layout = layout

    @classmethod
    def recognise(cls, quantization: Mapping[str, Any] | None, store: Store) -> Self | None:
        """By quant_method, which older versions wrote as intel/auto-round."""
        method = None if quantization is None else text(quantization, "quant_method")
        if quantization is None or method not in (cls.scheme, f"intel/{cls.scheme}"):
            return None
        layout = _layout(quantization)
        said = [quantization, *_extra(quantization)]
        layers = [each for each in said if each.get("bits") not in _PLAIN]
        if not layers:
            raise refuse("AutoRound weights of 16 bits", "2 to 8 bits", _AGAIN)
        for settings in layers:
            _check_weights_alone(settings)
        bits = tuple(integer(each, "bits", _BITS) for each in layers)
        sizes = tuple(group_columns(each) for each in layers)
        if layout in _AWQ:
            if (other := next((n for n in bits if n != 4), None)) is not None:
                raise refuse(f"AutoRound weights of {other} bits packed as AWQ's", "4", _AGAIN)
            return cls(Awq(store, sizes))
        return cls(Gptq(store, bits, sizes, v2=layout in _GPTQ))

    def parts(self) -> dict[str, tuple[str, ...]]:
        """The layout's."""
        return self._layout.parts()

    def shape(self, name: str) -> tuple[int, ...]:
        """The layout's. Raises as `read`."""
        return self._layout.shape(name)

    def coded(self, name: str) -> Coded:
        """The layout's; raises as its."""
        return self._layout.coded(name)


def _layout(quantization: Mapping[str, Any]) -> str:
    """What follows auto_round in packing_format, without a kernel: one of those at the top."""
    field = "packing_format" if "packing_format" in quantization else "backend"  # until 0.4
    packing = text(quantization, field)
    family, *rest = (packing or "").split(":")
    layout = ":".join(part for part in rest if part not in _KERNELS)
    known = (*_GPTQ_V1, *_GPTQ, *_AWQ)
    if family != "auto_round" or layout not in known:
        expected = ", ".join(f"auto_round:{each}".rstrip(":") for each in known)
        raise refuse(
            f"AutoRound weights in the packing format {packing!r:.80} "
            f"(quantization_config.{field})",
            f"one of {expected}",
            _AGAIN,
        )
    return layout


def _extra(quantization: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The settings of layers that have others than config.json names for all."""
    extra = quantization.get("extra_config") or {}
    if not isinstance(extra, dict) or not all(isinstance(each, dict) for each in extra.values()):
        raise refuse(f"quantization_config.extra_config is {extra!r:.80}", "an object of objects")
    return [_of_all(quantization) | each for each in extra.values()]


def _of_all(quantization: Mapping[str, Any]) -> dict[str, Any]:
    return {field: quantization.get(field) for field in ("bits", "group_size")}


def _check_weights_alone(settings: Mapping[str, Any]) -> None:
    """Raises UnsupportedModelError unless a layer is whole numbers times a scale, and no more."""
    found = {
        "data_type": settings.get("data_type") not in (None, "int"),
        "act_bits": settings.get("act_bits") not in (None, *_PLAIN),
        "rotation_config": bool(settings.get("rotation_config")),
        "spinquant_config": bool(settings.get("spinquant_config")),
    }
    for field, unread in found.items():
        if unread:
            raise refuse(
                f"AutoRound weights with {field} {settings[field]!r:.80}",
                "weights in whole numbers, activations that are neither quantised nor rotated",
                _AGAIN,
            )
