"""What a conversion reads: a model as somebody else stored it, whatever its files look like."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from deepmnn.formats import Codes, KeptCodes
from deepmnn.graph.weights import F32, digest_of


class Source(ABC):
    """A model's config and its tensors, by the names and in the shapes of Hugging Face.

    Tensors are read on demand, one at a time. A reader of other files is a subclass, opened by
    `open_source`.

    Attributes:
        config: the fields of config.json.
        paths: the directories and files that it is read from.
        changes: what was done to the model's own numbers, in order: "rotated" and "smoothed"
            (quant/rotated_source.py, smoothed_source.py) leave its logits as they are, and change
            values on the way there.
    """

    config: dict[str, Any]
    paths: tuple[Path, ...] = ()
    changes: tuple[str, ...] = ()

    @abstractmethod
    def names(self) -> list[str]:
        """Every tensor's name; what only decodes another tensor (scales, say) is none."""

    @abstractmethod
    def __contains__(self, name: object) -> bool:
        """Whether there is a tensor of that name."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape. Raises TensorNotFoundError."""

    @abstractmethod
    def read(self, name: str) -> F32:
        """A tensor's numbers. Raises TensorNotFoundError, or CheckpointError for damaged files."""

    def codes(self, name: str) -> Codes | KeptCodes | None:
        """A tensor as codes of one of our formats, where it is stored as that; else None.

        They stand for exactly the numbers that `read` gives, but for scales that float16 does not
        hold: then each is within 2^-11 of those. Raises as `read`.
        """
        return None

    def kept_format(self, name: str) -> str | None:
        """The kept format that `codes` gives a tensor in, without reading any; None for another, or
        none. Raises as `read`.
        """
        return None

    def stored_as(self, name: str) -> str:
        """How a tensor is stored, in the words of its files: "BF16", "Q6_K", "gptq"; "" where it is
        not. Raises TensorNotFoundError.
        """
        return ""

    @abstractmethod
    def sample(self, name: str) -> bytes:
        """A little of what is stored of a tensor, at the same places in all tensors of one size:
        tells most unequal tensors apart without reading them. Raises TensorNotFoundError.
        """

    def digest(self, name: str) -> bytes:
        """A hash that two tensors of one shape share only if their numbers are equal. Raises as
        `read`.
        """
        return digest_of(self.read(name))

    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of all tensors as stored; 0 where none are."""

    def left_out(self) -> list[str]:
        """Files that would change the model, and are not read: adapters beside its weights."""
        return []

    @abstractmethod
    def side_files(self) -> dict[str, bytes]:
        """config.json, then the files of the tokenizer, the chat template and the generation
        settings under Hugging Face's names (side_files.py), as far as there are any.
        """
