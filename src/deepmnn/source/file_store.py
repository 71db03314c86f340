"""The tensors of a path: one file, or a Hugging Face directory of one file, of shards with an index
or of several files without.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from numpy.typing import NDArray

from deepmnn.errors import CheckpointError, TensorNotFoundError
from deepmnn.graph.weights import F32
from deepmnn.source.json_file import is_plain_name, read_object


class TensorEntry(Protocol):
    """What a file says of one tensor."""

    @property
    def dtype(self) -> str:
        """The stored type, in safetensors' words."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of its dimensions."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes as stored."""
        ...


class TensorFile(Protocol):
    """One file of named tensors."""

    path: Path

    @property
    def entries(self) -> Mapping[str, TensorEntry]:
        """Every tensor by name, in file order."""
        ...

    def stored(self, name: str) -> NDArray[Any]:
        """A tensor in its stored type."""
        ...

    def read(self, name: str) -> F32:
        """A tensor as float32."""
        ...

    def sample(self, name: str) -> bytes:
        """A little of a tensor's stored bytes."""
        ...


File = TypeVar("File", bound=TensorFile)


class FileStore(Generic[File]):
    """Tensors of a path by name. What files hold is read at once, the numbers on demand.

    A format is a subclass: its file names and `open_file`.
    """

    format_name: ClassVar[str]
    index: ClassVar[str]
    single: ClassVar[str]
    pattern: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file_of: dict[str, File] = {}
        if path.is_file():
            self._open_files([path])
        elif (path / self.index).exists():
            self._open_index()
        elif (path / self.single).exists():
            self._open_files([path / self.single])
        else:
            self._open_files(sorted(path.glob(self.pattern)))

    @classmethod
    def matches(cls, path: Path) -> bool:
        """Whether the path is a file of this format, or a directory that holds some."""
        if path.is_file():
            return path.suffix in cls.suffixes
        return (path / cls.index).exists() or any(path.glob(cls.pattern))

    def open_file(self, path: Path) -> File:
        """Opens one file. Raises CheckpointError."""
        raise NotImplementedError

    def names(self) -> list[str]:
        """Every tensor's name, in file order."""
        return list(self._file_of)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape. Raises TensorNotFoundError."""
        return self._file(name).entries[name].shape

    def dtype(self, name: str) -> str:
        """A tensor's safetensors dtype ("BF16", "F8_E4M3", ...). Raises TensorNotFoundError."""
        return self._file(name).entries[name].dtype

    def nbytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(file.entries[name].nbytes for name, file in self._file_of.items())

    def stored(self, name: str) -> NDArray[Any]:
        """A tensor in its stored type. Raises TensorNotFoundError."""
        return self._file(name).stored(name)

    def read(self, name: str) -> F32:
        """A tensor as float32, without any scale. Raises TensorNotFoundError."""
        return self._file(name).read(name)

    def sample(self, name: str) -> bytes:
        """A little of a tensor's stored bytes. Raises TensorNotFoundError."""
        return self._file(name).sample(name)

    def _file(self, name: str) -> File:
        if name not in self._file_of:
            raise TensorNotFoundError(
                f"{self.path} has no tensor {name!r}",
                "",
                "Check that config.json belongs to these weights and that no file is missing.",
            )
        return self._file_of[name]

    def _open_files(self, paths: list[Path]) -> None:
        for path in paths:
            file = self.open_file(path)
            for name in file.entries:
                if name in self._file_of:
                    raise CheckpointError(
                        f"tensor {name!r} is in {self._file_of[name].path.name} and {path.name}",
                        "each tensor in one file",
                        f"Keep one set of weights in the directory, or add {self.index}.",
                    )
                self._file_of[name] = file

    def _open_index(self) -> None:
        index = self.path / self.index
        weight_map = read_object(index, CheckpointError).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{index} has no weight_map", "tensor name → file name")
        files: dict[str, File] = {}
        for name, file_name in weight_map.items():
            if not is_plain_name(file_name):
                raise CheckpointError(
                    f"{index} puts tensor {name!r} in {file_name!r:.80}", "a file name beside it"
                )
            if file_name not in files:
                files[file_name] = self._open_shard(file_name)
            if name not in files[file_name].entries:
                raise TensorNotFoundError(
                    f"{index} puts tensor {name!r} in {file_name}, which does not have it",
                    "",
                    "The index and the shards are of different downloads; download again.",
                )
            self._file_of[name] = files[file_name]

    def _open_shard(self, file_name: str) -> File:
        path = self.path / file_name
        if not path.is_file():
            raise CheckpointError(
                f"shard {file_name} is missing in {self.path}",
                f"every file that {self.index} names",
                "The download is incomplete; download the missing file.",
            )
        return self.open_file(path)
