"""What a quantised scheme of checkpoints is to the rest of the room."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from deepmnn.formats import Codes, KeptCodes
from deepmnn.graph.weights import F32
from deepmnn.source.store import Store


class Codec(ABC):
    """Makes the model's tensors of the raw ones in which a scheme stores them.

    Attributes:
        scheme: its name, as config.json's quant_method has it.
    """

    scheme: ClassVar[str]

    @classmethod
    @abstractmethod
    def recognise(cls, quantization: Mapping[str, Any] | None, store: Store) -> Self | None:
        """The codec of a checkpoint, None when it is of another scheme.

        Args:
            quantization: quantization_config of config.json, None when there is none.
            store: the raw tensors.

        Raises UnsupportedModelError for a variant of the scheme that is not read.
        """

    @abstractmethod
    def parts(self) -> dict[str, tuple[str, ...]]:
        """Tensor of the model → the raw tensors that it is made of. What is not listed is stored
        plainly.
        """

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a listed tensor."""

    @abstractmethod
    def read(self, name: str) -> F32:
        """The numbers of a listed tensor. Raises TensorNotFoundError or CheckpointError."""

    def codes(self, name: str) -> Codes | KeptCodes | None:
        """A listed tensor as codes of one of our formats that stand for the same numbers, where
        float16 holds their scales (coded.py); None where no format can hold it.
        """
        return None

    def kept_format(self, name: str) -> str | None:
        """The kept format that `codes` gives a listed tensor in, without reading codes; or None.
        Raises as `read`.
        """
        return None
