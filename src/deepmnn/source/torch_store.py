"""PyTorch weights: one .pt, .pth or .bin file, or a Hugging Face directory of .bin files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from deepmnn.errors import CheckpointError
from deepmnn.source.file_store import FileStore
from deepmnn.source.torch_file import TorchFile

EMBEDDING = "model.embed_tokens.weight"
"""Every model we run has this tensor: what comes before it is a wrapper's prefix."""


class TorchStore(FileStore[TorchFile]):
    """Tensors of PyTorch files by name, without a wrapper's prefix ("module." of DDP, "_orig_mod."
    of torch.compile, a trainer's "model.").
    """

    format_name = "PyTorch (pytorch_model*.bin; other names as a file: .pt, .pth, .bin, .ckpt)"
    index = "pytorch_model.bin.index.json"
    single = "pytorch_model.bin"
    pattern = "pytorch_model*.bin"
    suffixes = (".pt", ".pth", ".bin", ".ckpt")

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        prefix = wrapper_prefix(self._file_of)
        if not prefix:
            return
        names = {name: name.removeprefix(prefix) for name in self._file_of}
        if len(set(names.values())) < len(names):
            raise CheckpointError(
                f"{path} has tensors of the same name with and without {prefix!r}",
                "one model's weights",
                "Save one model's state dict.",
            )
        for file in set(self._file_of.values()):
            file.remove_prefix(prefix)
        self._file_of = {names[name]: file for name, file in self._file_of.items()}

    def open_file(self, path: Path) -> TorchFile:
        """Opens one file. Raises CheckpointError or MissingDependencyError."""
        return TorchFile(path)

    def nbytes(self) -> int:
        """Bytes of all tensors as stored; those that several tensors share count once."""
        entries = {(file.path, file.entries[name].storage) for name, file in self._file_of.items()}
        return sum(end - begin for _, (begin, end) in entries)


def wrapper_prefix(names: Iterable[str]) -> str:
    """What comes before EMBEDDING, "" where the names are as Hugging Face has them."""
    prefixes = [name.removesuffix(EMBEDDING) for name in names if name.endswith(EMBEDDING)]
    return min(prefixes, key=len, default="")
