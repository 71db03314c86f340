"""A model that has been opened as a side of a comparison."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from deepmnn.artifact.restored import RestoredSource
from deepmnn.conversion.stage import Stored
from deepmnn.formats import VECTOR
from deepmnn.graph.ir import Graph
from deepmnn.graph.tensors import tensors
from deepmnn.inspect.check.line import Line
from deepmnn.inspect.side import Side
from deepmnn.inspect.sides.options import SideOptions
from deepmnn.inspect.sides.staged import StagedSide
from deepmnn.source.source import Source
from deepmnn.text.text_files import TextFiles
from deepmnn.text.tokenizer import FILE, Tokenizer


@dataclass(frozen=True)
class Subject:
    """An opened model.

    Attributes:
        name: as it was given.
        side: runs it.
        config: the fields of config.json.
        tensors: its numbers under Hugging Face's names; None: MNN's weights are not read back.
        text_files: the tokenizer's and other small files.
        stored: the bytes of a weight of its graph; None: it has no graph of ours.
        level: of optimisation; None likewise.
        options: how it runs; the backend is known.
        program: whether program.bin is the graph; None where the engine runs none.
        quant: how its numbers are stored, as an exported folder says, whose graph does not tell;
            None: the graph does, or they are exact.
        is_nearest: whether its weights are known to be rounded to nearest, not by a calibration.
    """

    name: str
    side: Side
    config: dict[str, Any]
    tensors: Source | None
    text_files: TextFiles
    stored: Stored | None
    level: int | None
    options: SideOptions
    program: Line | None = None
    quant: str | None = None
    is_nearest: bool = False

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        return self.side.vocab_size

    @property
    def has_tokenizer(self) -> bool:
        """Whether it came with one."""
        return FILE in self.text_files

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises TokenizerError when there is none."""
        return Tokenizer(self.text_files)

    def formats(self, tensor: str) -> set[str]:
        """In which its numbers of a tensor are stored; floats of a checkpoint are what they are."""
        if isinstance(self.tensors, RestoredSource):
            return self.tensors.stored_formats(tensor)
        return self._formats.get(tensor, {VECTOR.name})

    def formats_told(self, tensor: str) -> set[str]:
        """The same for people: of a folder for MNN, which has no formats of ours, its recipe."""
        return self.formats(tensor) if self.quant is None else {f"{self.quant} by MNN"}

    @cached_property
    def _formats(self) -> dict[str, set[str]]:
        """Tensor → the formats of the graph's weights that are made of it."""
        found: dict[str, set[str]] = {}
        graph = self.side.graph if isinstance(self.side, StagedSide) else Graph("")
        for weight in graph.weights.values():
            for tensor in tensors(weight.expr):
                found.setdefault(tensor.name, set()).add(weight.format)
        return found
