"""How tensors are stored: ggml's types, by their numbers in a file."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from deepmnn.errors import MissingDependencyError
from deepmnn.formats import FORMATS, U8, KeptCodes
from deepmnn.graph.weights import F32
from deepmnn.source.entry import DTYPES, to_float32
from deepmnn.source.gguf import groups
from deepmnn.source.gguf.groups import Groups


@dataclass(frozen=True)
class TensorType:
    """A type.

    Attributes:
        number: in a file.
        name: as llama.cpp calls it.
        block: numbers that are stored together.
        nbytes: bytes of them.
        groups: the integers and factors of stored blocks, uint8 [blocks, nbytes]: KeptCodes of a
            type with a kept format, with a row for each block; None: plain numbers, or those of a
            table.
        dtype: of plain numbers, in safetensors' words; "" for blocks.
    """

    number: int
    name: str
    block: int
    nbytes: int
    groups: Callable[[U8], Groups | KeptCodes] | None = None
    dtype: str = ""

    @property
    def kept_format(self) -> str | None:
        """The kept format of its codes: the one of its name."""
        found = FORMATS.get(self.name.lower())
        return found.name if found is not None and found.is_kept else None

    @property
    def needs_package(self) -> bool:
        """Whether decoding looks numbers up in tables that only the `gguf` package has."""
        return self.groups is None and not self.dtype

    def check_readable(self) -> None:
        """Raises MissingDependencyError when the tables are not installed."""
        if self.needs_package and importlib.util.find_spec("gguf") is None:
            raise MissingDependencyError(
                f"tensors of type {self.name} need the tables of the gguf package",
                "",
                'Install them: pip install "deepmnn[gguf]"; or take another file of the model.',
            )

    def values(self, blocks: U8) -> F32:
        """The numbers of stored blocks, [blocks, block]: ggml's, to the bit.

        blocks: uint8 [blocks, nbytes].
        """
        if self.groups is not None:
            return self.groups(blocks).values()
        with np.errstate(invalid="ignore", over="ignore"):  # of damaged numbers
            if self.dtype:
                return to_float32(np.ascontiguousarray(blocks).view(DTYPES[self.dtype]))
            from gguf import GGMLQuantizationType, dequantize

            values: F32 = dequantize(blocks, GGMLQuantizationType(self.number))
        return values


TYPES = {
    kind.number: kind
    for kind in (
        TensorType(0, "F32", 1, 4, dtype="F32"),
        TensorType(1, "F16", 1, 2, dtype="F16"),
        TensorType(2, "Q4_0", 32, 18, groups.q4_0),
        TensorType(3, "Q4_1", 32, 20, groups.q4_1),
        TensorType(6, "Q5_0", 32, 22, groups.q5_0),
        TensorType(7, "Q5_1", 32, 24, groups.q5_1),
        TensorType(8, "Q8_0", 32, 34, groups.q8_0),
        TensorType(9, "Q8_1", 32, 36, groups.q8_1),
        TensorType(10, "Q2_K", 256, 84, groups.q2_k),
        TensorType(11, "Q3_K", 256, 110, groups.q3_k),
        TensorType(12, "Q4_K", 256, 144, groups.q4_k),
        TensorType(13, "Q5_K", 256, 176, groups.q5_k),
        TensorType(14, "Q6_K", 256, 210, groups.q6_k),
        TensorType(15, "Q8_K", 256, 292, groups.q8_k),
        TensorType(16, "IQ2_XXS", 256, 66),
        TensorType(17, "IQ2_XS", 256, 74),
        TensorType(18, "IQ3_XXS", 256, 98),
        TensorType(19, "IQ1_S", 256, 50),
        TensorType(20, "IQ4_NL", 32, 18, groups.iq4_nl),
        TensorType(21, "IQ3_S", 256, 110),
        TensorType(22, "IQ2_S", 256, 82),
        TensorType(23, "IQ4_XS", 256, 136, groups.iq4_xs),
        TensorType(24, "I8", 1, 1, dtype="I8"),
        TensorType(25, "I16", 1, 2, dtype="I16"),
        TensorType(26, "I32", 1, 4, dtype="I32"),
        TensorType(27, "I64", 1, 8, dtype="I64"),
        TensorType(28, "F64", 1, 8, dtype="F64"),
        TensorType(29, "IQ1_M", 256, 56),
        TensorType(30, "BF16", 1, 2, dtype="BF16"),
        TensorType(34, "TQ1_0", 256, 54, groups.tq1_0),
        TensorType(35, "TQ2_0", 256, 66, groups.tq2_0),
        TensorType(39, "MXFP4", 32, 17, groups.mxfp4),
        TensorType(40, "NVFP4", 64, 36, groups.nvfp4),
        TensorType(41, "Q1_0", 128, 18, groups.q1_0),
        TensorType(42, "Q2_0", 64, 18, groups.q2_0),
    )
}
"""Number → type."""

REMOVED = {
    4: "Q4_2",
    5: "Q4_3",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}
"""Number → name of types that no file has any more."""
