"""GGUF's types of numbers: which tensor gets which, and numbers as its bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from deepmnn.errors import MissingDependencyError
from deepmnn.exporters.exported import LARGEST_F16, check_numbers
from deepmnn.exporters.gguf.tensors import GgufTensor
from deepmnn.formats import F32, U8

DEFAULT = "Q8_0"
FILE_TYPES = {
    "Q8_0": "MOSTLY_Q8_0",
    "Q5_1": "MOSTLY_Q5_1",
    "Q5_0": "MOSTLY_Q5_0",
    "Q4_1": "MOSTLY_Q4_1",
    "Q4_0": "MOSTLY_Q4_0",
    "BF16": "MOSTLY_BF16",
    "F16": "MOSTLY_F16",
    "F32": "ALL_F32",
}
"""What --type may be → general.file_type, as gguf's LlamaFileType calls it."""

_FLOATS = ("F32", "F16", "BF16")
_HEAD, _TABLE = "output.weight", "token_embd.weight"

_PIECE = 1 << 22
"""Numbers that are encoded together."""


def library() -> ModuleType:
    """The gguf package. Raises MissingDependencyError."""
    try:
        import gguf
    except ImportError:
        raise MissingDependencyError(
            "the package gguf, which writes GGUF files, is not installed",
            hint="Run: pip install gguf",
        ) from None
    module: ModuleType = gguf
    return module


def encoders(tensors: Sequence[GgufTensor], wanted: str) -> dict[str, Encoder]:
    """The encoder of every tensor in a file of the type `wanted`, by the tensor's name.

    As llama.cpp's converter has it: vectors, norms, biases and routers stay float32, and a row that
    is not whole blocks gets F16. The head, which may be the embedding's table, gets Q8_0 where the
    others get fewer bits, as llama.cpp's quantiser gives it more than them.
    """
    names = [tensor.name for tensor in tensors]
    head = _HEAD if _HEAD in names else _TABLE
    return {tensor.name: Encoder(_type(tensor, wanted, head)) for tensor in tensors}


def _type(tensor: GgufTensor, wanted: str, head: str) -> str:
    small = len(tensor.shape) == 1 or tensor.name.endswith(("_norm.weight", ".bias"))
    if small or tensor.name.endswith(".ffn_gate_inp.weight"):
        return "F32"
    if wanted in _FLOATS:
        return wanted
    block, _ = library().GGML_QUANT_SIZES[library().GGMLQuantizationType[wanted]]
    if tensor.shape[-1] % block:
        return "F16"
    return "Q8_0" if tensor.name == head else wanted


@dataclass(frozen=True)
class Encoder:
    """Makes bytes of numbers.

    Args:
        type: a name of FILE_TYPES.
    """

    type: str

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Of a tensor."""
        block, size = library().GGML_QUANT_SIZES[library().GGMLQuantizationType[self.type]]
        return int(math.prod(shape) // block * size)

    def encode(self, name: str, numbers: F32) -> Iterator[U8]:
        """The bytes of rows [..., n], in order. Raises CheckpointError for what the type cannot
        hold.
        """
        check_numbers(
            name, numbers, math.inf if self.type in ("F32", "BF16") else LARGEST_F16, self.type
        )
        kind = library().GGMLQuantizationType[self.type]
        rows = numbers.reshape(-1, numbers.shape[-1])
        step = max(1, _PIECE // rows.shape[1])
        for begin in range(0, len(rows), step):
            piece = np.ascontiguousarray(rows[begin : begin + step], np.float32)
            encoded = np.ascontiguousarray(library().quants.quantize(piece, kind))
            yield encoded.reshape(-1).view(np.uint8)
