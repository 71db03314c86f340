"""What files of weights look like to the rest of this room: tensors by name, as they are stored."""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray

from deepmnn.graph.weights import F32


class Store(Protocol):
    """The raw tensors of a path, in one kind of file. Everything that takes a name raises
    TensorNotFoundError for an unknown one, CheckpointError for a damaged file.
    """

    def names(self) -> list[str]:
        """Every tensor's name."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        ...

    def dtype(self, name: str) -> str:
        """A tensor's stored type, in safetensors' words ("BF16", "F8_E4M3", ...)."""
        ...

    def nbytes(self) -> int:
        """Bytes of all tensors as stored."""
        ...

    def sample(self, name: str) -> bytes:
        """A little of a tensor's stored bytes, at the same places in all tensors of one size."""
        ...

    def stored(self, name: str) -> NDArray[Any]:
        """A tensor in its stored type: what holds packed codes loses none of them."""
        ...

    def read(self, name: str) -> F32:
        """A tensor as float32."""
        ...
