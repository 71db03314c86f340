"""GGUF's types of numbers: which tensor gets which, and its bytes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from deepmnn.errors import MissingDependencyError
from deepmnn.exporters.exported import LARGEST_F16, check_numbers
from deepmnn.exporters.gguf.blocks import KEPT_TYPES, as_type, blocks, types_of
from deepmnn.exporters.gguf.tensors import GgufTensor
from deepmnn.formats import F32, U8, named
from deepmnn.source.gguf.types import TYPES as READ
from deepmnn.source.source import Source

DEFAULT = "Q8_0"
TYPES = ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "BF16", "F16", "F32")
"""What --type may be."""

_FILE_TYPES = {"F32": "ALL_F32", "Q4_K": "MOSTLY_Q4_K_M", "Q5_K": "MOSTLY_Q5_K_M"}
_FILE_TYPES |= {"MXFP4": "MOSTLY_MXFP4_MOE"}
"""Type → general.file_type in the words of LlamaFileType; of others it is MOSTLY_ their name."""

_SIZES = {kind.name: (kind.block, kind.nbytes) for kind in READ.values()}
FLOATS = ("F32", "F16", "BF16")
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


def file_type(encoder_of: Mapping[str, Encoder], tensors: Sequence[GgufTensor], type: str) -> int:
    """general.file_type: the type that most numbers have whose codes are kept, or else `type`."""
    counts: Counter[str] = Counter()
    for tensor in tensors:
        if encoder_of[tensor.name].keeps:
            counts[encoder_of[tensor.name].type] += math.prod(tensor.shape)
    most = max(counts, key=counts.__getitem__, default=type)
    return int(library().LlamaFileType[_FILE_TYPES.get(most, f"MOSTLY_{most}")])


def encoders(
    tensors: Sequence[GgufTensor], wanted: str | None, source: Source
) -> dict[str, Encoder]:
    """The encoder of every tensor, by the tensor's name.

    Codes of the type `wanted` stay as they are; None: of any type. Other tensors get `wanted`, or
    DEFAULT, as llama.cpp's converter has it: vectors, norms, biases and routers stay float32, and a
    row that is not whole blocks gets F16. The head, which may be the embedding's table, gets Q8_0
    where the others get fewer bits, as llama.cpp's quantiser gives it more than them.

    Raises as `Source.codes`: codes with zero points are read to see which type holds them.
    """
    names = [tensor.name for tensor in tensors]
    head = _HEAD if _HEAD in names else _TABLE
    return {tensor.name: _encoder(tensor, wanted, head, source) for tensor in tensors}


def _encoder(tensor: GgufTensor, wanted: str | None, head: str, source: Source) -> Encoder:
    small = len(tensor.shape) == 1 or tensor.name.endswith(("_norm.weight", ".bias"))
    if small or tensor.name.endswith(".ffn_gate_inp.weight"):
        return Encoder("F32")
    format = tensor.kept_format(source)
    stored = _stored_types(tensor, format, source)
    type = wanted or next(iter(stored), DEFAULT)
    if type not in stored and tensor.shape[-1] % _SIZES[type][0]:
        type = "F16"
    elif type not in (*stored, *FLOATS) and tensor.name == head:
        type = "Q8_0"
    return Encoder(type, format, keeps=type in stored)


def _stored_types(tensor: GgufTensor, format: str | None, source: Source) -> list[str]:
    """The types that hold the source's codes as they are, the smallest first."""
    if format is None or tensor.transposed:
        return []
    if tensor.shape[-1] % KEPT_TYPES.get(format, KEPT_TYPES["q4_0"]).block:
        return []
    if format in KEPT_TYPES:
        return [KEPT_TYPES[format].name]
    each = [types_of(codes) for codes in tensor.codes(source)]
    return [type for type in each[0] if all(type in types for types in each)]


@dataclass(frozen=True)
class Encoder:
    """Makes bytes of a tensor.

    Args:
        type: of ggml.
        format: the kept format that the source has the tensor in, if it has it in one.
        keeps: those codes stay as they are; otherwise numbers are rounded.
    """

    type: str
    format: str | None = None
    keeps: bool = False

    @property
    def rounds_again(self) -> bool:
        """Whether codes become others."""
        return self.format is not None and not self.keeps and self.type not in FLOATS

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Of a tensor."""
        block, size = _SIZES[self.type]
        return math.prod(shape) // block * size

    def encode(self, tensor: GgufTensor, source: Source) -> Iterator[U8]:
        """The bytes of its rows, in order. Raises CheckpointError for what the type cannot hold."""
        if self.keeps:
            yield from self._kept(tensor, source)
        else:
            for numbers in tensor.pieces(source):
                yield from self._rounded(tensor.name, numbers)

    def _kept(self, tensor: GgufTensor, source: Source) -> Iterator[U8]:
        for codes in tensor.codes(source):
            made = as_type(codes, self.type)
            with np.errstate(over="ignore", invalid="ignore"):
                largest = made.group_scales() * np.float32(max(map(abs, named(made.format).levels)))
            for scales in (largest, made.group_shifts()):
                check_numbers(tensor.name, scales, math.inf, self.type)
            yield blocks(made).reshape(-1)

    def _rounded(self, name: str, numbers: F32) -> Iterator[U8]:
        largest = math.inf if self.type in ("F32", "BF16") else LARGEST_F16
        check_numbers(name, numbers, largest, self.type)
        kind = library().GGMLQuantizationType[self.type]
        rows = numbers.reshape(-1, numbers.shape[-1])
        step = max(1, _PIECE // rows.shape[1])
        for begin in range(0, len(rows), step):
            piece = np.ascontiguousarray(rows[begin : begin + step], np.float32)
            encoded = np.ascontiguousarray(library().quants.quantize(piece, kind))
            yield encoded.reshape(-1).view(np.uint8)
