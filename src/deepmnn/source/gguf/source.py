"""A GGUF file as a source: its config, its tensors and its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deepmnn.errors import TensorNotFoundError
from deepmnn.formats import KeptCodes
from deepmnn.graph.weights import F32
from deepmnn.source.gguf.config import config_of
from deepmnn.source.gguf.contents import read_contents
from deepmnn.source.gguf.splits import files_of
from deepmnn.source.gguf.tokenizer import tokenizer_files
from deepmnn.source.gguf.weights import Weight, weights_of
from deepmnn.source.side_files import CONFIG, TOKENIZER, read_config, read_side_files
from deepmnn.source.source import Source


class GgufSource(Source):
    """A model in one GGUF file, or in the parts of a split one.

    Args:
        path: the file, or one of the parts.
        config: a config.json to read instead of the file's metadata; the tokenizer beside it, if
            there is one, is read instead of the file's, too.

    Raises CheckpointError, UnsupportedModelError (an architecture or a type that is not read),
    TokenizerError (a tokenizer that is not) or MissingDependencyError (the tables of a type).
    """

    def __init__(self, path: Path, config: Path | None = None) -> None:
        self.paths = (*files_of(path), *([] if config is None else [config]))
        self._path = path
        contents = read_contents(path)
        made = config_of(contents, path)
        self.config: dict[str, Any] = made if config is None else read_config(config)
        arch = contents.metadata["general.architecture"]
        self._weights = weights_of(contents.tensors, made, arch)
        for weight in self._weights.values():
            for tensor in weight.tensors:
                tensor.type.check_readable()
        self._nbytes = sum(tensor.nbytes for tensor in contents.tensors.values())
        self._files = {} if config is None else read_side_files(config.parent, config)
        if TOKENIZER not in self._files:
            self._files |= tokenizer_files(contents.metadata, path)
        if config is None:
            self._files[CONFIG] = json.dumps(made, indent=2).encode()

    def names(self) -> list[str]:
        """Every tensor's name."""
        return list(self._weights)

    def __contains__(self, name: object) -> bool:
        return name in self._weights

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape. Raises TensorNotFoundError."""
        return self._weight(name).shape

    def read(self, name: str) -> F32:
        """A tensor as float32. Raises TensorNotFoundError, or CheckpointError for a file that has
        changed meanwhile.
        """
        return self._weight(name).read()

    def codes(self, name: str) -> KeptCodes | None:
        """A tensor as the file stores it, in a kept format; None for other types, and for what is
        made of several tensors. Raises as `read`.
        """
        return self._weight(name).codes()

    def kept_format(self, name: str) -> str | None:
        """The kept format of `codes`. Raises TensorNotFoundError."""
        return self._weight(name).kept_format

    def stored_as(self, name: str) -> str:
        """Its type, by ggml's name; all of them if it is made of several. Raises
        TensorNotFoundError.
        """
        types = (tensor.type.name for tensor in self._weight(name).tensors)
        return ", ".join(dict.fromkeys(types))

    def sample(self, name: str) -> bytes:
        """Of all that a tensor is stored in. Raises TensorNotFoundError."""
        return b"".join(tensor.sample() for tensor in self._weight(name).tensors)

    def digest(self, name: str) -> bytes:
        """Of what is stored, which takes far less time than its numbers would. Raises as `read`."""
        return self._weight(name).digest()

    def nbytes(self) -> int:
        """Bytes of all tensors of the file."""
        return self._nbytes

    def side_files(self) -> dict[str, bytes]:
        """config.json, tokenizer.json and tokenizer_config.json, made of the file's metadata."""
        return self._files

    def _weight(self, name: str) -> Weight:
        if name not in self._weights:
            raise TensorNotFoundError(
                f"{self._path} has no tensor {name!r:.200}",
                "",
                "The file is not of the architecture that it names, or incomplete.",
            )
        return self._weights[name]
