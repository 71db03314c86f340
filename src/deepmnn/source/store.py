"""The raw tensors of a path by name, as they are stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from deepmnn.errors import TensorNotFoundError
from deepmnn.graph.weights import F32
from deepmnn.source.entry import Entry
from deepmnn.source.tensor_names import EMBEDDING, HEAD, plain_names, unstack_experts
from deepmnn.source.weight_files import read_weights


class Store:
    """Tensors under the names that Hugging Face gives them. What files hold is known at once, the
    numbers are read on demand. Everything that takes a name raises TensorNotFoundError for an
    unknown one, CheckpointError for a damaged file.

    Args:
        path: a file of weights, or a directory.
        tied: the head is the embedding, and may be the one of the two that is stored.

    Raises CheckpointError when there are none, or when they are incomplete or damaged.
    """

    def __init__(self, path: Path, tied: bool = False) -> None:
        self.path = path
        raw = read_weights(path)
        names = plain_names(raw, path)
        self._entries = unstack_experts({names[name]: entry for name, entry in raw.items()})
        if tied and EMBEDDING not in self._entries and HEAD in self._entries:
            self._entries[EMBEDDING] = self._entries.pop(HEAD)

    def names(self) -> list[str]:
        """Every tensor's name, in the order of the files."""
        return list(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        return self._entry(name).shape

    def dtype(self, name: str) -> str:
        """A tensor's stored type, in safetensors' words ("BF16", "F8_E4M3", ...)."""
        return self._entry(name).dtype

    def nbytes(self) -> int:
        """Bytes of all tensors as stored; those that several tensors share count once."""
        places = {(entry.file.path, *entry.place) for entry in self._entries.values()}
        return sum(end - begin for _, begin, end in places)

    def stored(self, name: str) -> NDArray[Any]:
        """A tensor in its stored type: what holds packed codes loses none of them."""
        return self._entry(name).stored()

    def read(self, name: str) -> F32:
        """A tensor as float32, without any scale."""
        return self._entry(name).read()

    def sample(self, name: str) -> bytes:
        """A little of a tensor's stored bytes, at the same places in all tensors of one size."""
        return self._entry(name).sample()

    def _entry(self, name: str) -> Entry:
        if name not in self._entries:
            raise TensorNotFoundError(
                f"{self.path} has no tensor {name!r:.200}",
                "",
                "Check that config.json belongs to these weights and that no file is missing.",
            )
        return self._entries[name]
