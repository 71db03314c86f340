"""Kept codes as compressed-tensors stores them: the codes and scales of the source, as they are.

Integers are `pack-quantized`: codes u of 4 or 8 bits in int32 words, which stand for
u − 2^(bits − 1), as zero points do; MXFP4 is `mxfp4-pack-quantized`. source/codecs/
compressed_tensors.py has the layouts, and reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepmnn.formats import PANEL_COLS, PART_COLS, KeptCodes, named
from deepmnn.source.source import Source
from deepmnn.source.tensor_names import EMBEDDING, HEAD

SCHEME = "compressed-tensors"
_INTEGERS, _MXFP4 = "pack-quantized", "mxfp4-pack-quantized"
_SYMMETRIC = {"q4_0": 4, "q8_0": 8}
"""Formats of GGUF that are integers around the middle of their range → their bits."""

_PLAIN = (EMBEDDING, HEAD, ".mlp.gate.weight")
"""Ends the names of matrices whose codes few programs read."""

Fields = dict[str, tuple[str, tuple[int, ...]]]
"""Tensor → its type in safetensors' words, and its shape."""


@dataclass(frozen=True)
class Scheme:
    """How one matrix is stored; equal ones are a group of config_groups.

    Attributes:
        bits: of a code.
        group_size: columns that share a scale; 0: the whole row.
        symmetric: whether all zero points are the middle of the range.
        format: in the library's words.
    """

    bits: int
    group_size: int
    symmetric: bool = True
    format: str = _INTEGERS

    @classmethod
    def of(cls, source: Source, name: str) -> Scheme | None:
        """That of a tensor; None where it has no codes, or none that the library describes.

        Codes are read where zero points, or scales of whole rows, must be seen.
        """
        format = None if name.endswith(_PLAIN) else source.kept_format(name)
        if format is None or len(source.shape(name)) != 2:
            return None
        columns = source.shape(name)[1]
        if format == "mxfp4":
            return cls(4, PART_COLS, format=_MXFP4) if columns % PART_COLS == 0 else None
        if format in _SYMMETRIC:
            return cls(_SYMMETRIC[format], PART_COLS) if columns % PART_COLS == 0 else None
        groups = named(format).groups
        codes = source.codes(name) if groups is not None and groups.shift == "zero" else None
        if groups is None or not isinstance(codes, KeptCodes):
            return None
        bits = named(format).bits
        if codes.shifts.max() >> bits:
            return None
        whole = groups.columns == PANEL_COLS and all(
            (of_groups == of_groups[:, :1]).all() for of_groups in (codes.scales, codes.shifts)
        )
        if not whole and columns % groups.columns:
            return None
        symmetric = bool((codes.shifts == 1 << (bits - 1)).all())
        return cls(bits, 0 if whole else groups.columns, symmetric)

    def fields(self, name: str, shape: tuple[int, int]) -> Fields:
        """The tensors that a weight [rows, cols] is stored in."""
        stem = name.removesuffix("weight")
        rows, cols = shape
        groups = cols // self.group_size if self.group_size else 1
        if self.format == _MXFP4:
            return {
                f"{stem}weight_packed": ("U8", (rows, cols // 2)),
                f"{stem}weight_scale": ("U8", (rows, groups)),
            }
        found: Fields = {
            f"{stem}weight_packed": ("I32", (rows, -(-cols * self.bits // 32))),
            f"{stem}weight_scale": ("F16", (rows, groups)),
            f"{stem}weight_shape": ("I64", (2,)),
        }
        if not self.symmetric:
            packed = (-(-rows * self.bits // 32), groups)
            found[f"{stem}weight_zero_point"] = ("I32", packed)
        return found

    def arrays(self, codes: KeptCodes, shape: tuple[int, int]) -> list[NDArray[Any]]:
        """The same tensors' numbers, in that order."""
        rows, cols = shape
        if self.format == _MXFP4:
            return [_pairs(codes.codes[:, :cols]), codes.scales]
        groups = cols // self.group_size if self.group_size else 1
        found = [
            _words(codes.codes[:, :cols], self.bits),
            np.ascontiguousarray(codes.scales[:, :groups].astype("<f2", copy=False)),
            np.array([rows, cols], "<i8"),
        ]
        if not self.symmetric:
            zeros = _words(codes.shifts[:, :groups].T, self.bits).T
            found.append(np.ascontiguousarray(zeros))
        return found

    def to_json(self, targets: list[str]) -> dict[str, Any]:
        """A group of config_groups."""
        integers = self.format == _INTEGERS
        weights = {
            "num_bits": self.bits,
            "type": "int" if integers else "float",
            "symmetric": self.symmetric,
            "strategy": "group" if self.group_size else "channel",
            "group_size": self.group_size or None,
            "dynamic": False,
        }
        if not integers:
            weights |= {"scale_dtype": "torch.uint8", "zp_dtype": "torch.uint8"}
        return {"targets": targets, "weights": weights, "format": self.format}


def settings(schemes: Mapping[str, Scheme], shapes: Mapping[str, tuple[int, ...]]) -> Any:
    """quantization_config of config.json.

    The largest group's target is every Linear; the others' modules are named, and so are the
    matrices that are plain numbers.
    """
    modules: dict[Scheme, list[str]] = {}
    for name, scheme in schemes.items():
        modules.setdefault(scheme, []).append(_module(name))
    largest = max(modules, key=lambda scheme: len(modules[scheme]))
    plain = {n for n, shape in shapes.items() if len(shape) == 2 and n not in schemes} | {HEAD}
    formats = {scheme.format for scheme in modules}
    return {
        "quant_method": SCHEME,
        "quantization_status": "compressed",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "config_groups": {
            f"group_{number}": scheme.to_json(["Linear"] if scheme is largest else names)
            for number, (scheme, names) in enumerate(modules.items())
        },
        "ignore": sorted(_module(name) for name in plain - {EMBEDDING}),
    }


def _module(name: str) -> str:
    return name.removesuffix(".weight")


def _words(codes: NDArray[Any], bits: int) -> NDArray[np.int32]:
    """Codes [rows, n] in words [rows, ⌈n · bits / 32⌉], the first in the lowest bits."""
    padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % (32 // bits))))
    data = _pairs(padded) if bits == 4 else padded
    words: NDArray[np.int32] = np.ascontiguousarray(data).view("<i4")
    return words


def _pairs(codes: NDArray[Any]) -> NDArray[np.uint8]:
    """Two codes of 4 bits in a byte, the first in the low half."""
    packed: NDArray[np.uint8] = codes[:, ::2] | codes[:, 1::2] << np.uint8(4)
    return packed
