"""A converted model as a source: what was rounded once hands on its codes."""

from __future__ import annotations

from deepmnn.artifact.reader import Artifact
from deepmnn.formats import Codes, named
from deepmnn.graph.ir import Weight
from deepmnn.graph.tensors import tensors
from deepmnn.graph.weights import F32
from deepmnn.models import build_parts
from deepmnn.quant.layout import unpack_codes
from deepmnn.source.source import Source


class ConvertedSource(Source):
    """A model converted at level 0, where every weight is a tensor of the checkpoint.

    Numbers come from the checkpoint; `read_names` says which were asked for.
    """

    def __init__(self, artifact: Artifact, checkpoint: Source) -> None:
        self.config = checkpoint.config
        self.read_names: list[str] = []
        self._artifact, self._checkpoint = artifact, checkpoint
        stored = artifact.parts().weights
        self._weights: dict[str, Weight] = {}
        for weight in build_parts(self.config).weights.values():
            (tensor,) = tensors(weight.expr)
            if weight.name in stored:  # a copy is stored once
                self._weights[tensor.name] = stored[weight.name]

    def names(self) -> list[str]:
        return self._checkpoint.names()

    def __contains__(self, name: object) -> bool:
        return name in self._checkpoint

    def shape(self, name: str) -> tuple[int, ...]:
        return self._checkpoint.shape(name)

    def sample(self, name: str) -> bytes:
        return self._checkpoint.sample(name)

    def nbytes(self) -> int:
        return self._artifact.weights_nbytes

    def side_files(self) -> dict[str, bytes]:
        return self._checkpoint.side_files()

    def read(self, name: str) -> F32:
        self.read_names.append(name)
        return self._checkpoint.read(name)

    def codes(self, name: str) -> Codes | None:
        weight = self._weights[name]
        if not named(weight.format).is_quantized:
            return None
        rows, cols = weight.shape
        whole = unpack_codes(self._artifact.tensor(weight.name), weight.format, cols)
        return Codes(weight.format, whole.levels[:rows], whole.scales[:rows])
