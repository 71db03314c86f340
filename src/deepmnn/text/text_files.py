"""The small files that a model's text side is made of, by name."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from deepmnn.errors import DeepmnnError
from deepmnn.source.json_file import parse_object, read_small
from deepmnn.source.source import Source


class TextFiles:
    """tokenizer.json, chat_template.jinja, generation_config.json, ... of one model.

    Args:
        directory: where they are.
        names: those that belong to the model: what lies beside them is not read, since nothing has
            checked it. None: all that are there.
    """

    def __init__(self, directory: str | Path, names: Collection[str] | None = None) -> None:
        self.directory = Path(directory)
        self._names = names

    def __contains__(self, name: str) -> bool:
        belongs = self._names is None or name in self._names
        return belongs and (self.directory / name).is_file()

    def read(self, name: str, error: type[DeepmnnError]) -> bytes:
        """A file that the model has. Raises `error` when it cannot be read."""
        return read_small(self.directory / name, error)

    def text(self, name: str, error: type[DeepmnnError]) -> str | None:
        """The file, None when the model has none. Raises `error` when it cannot be read."""
        if name not in self:
            return None
        try:
            return self.read(name, error).decode()
        except UnicodeDecodeError as fault:
            path = self.directory / name
            raise error(f"{path} cannot be read: {fault}", "a UTF-8 text file") from None

    def fields(self, name: str, error: type[DeepmnnError]) -> dict[str, Any]:
        """The fields of a JSON object, none when the model has no such file. Raises `error`."""
        if name not in self:
            return {}
        return parse_object(self.read(name, error), str(self.directory / name), error)


class SourceFiles(TextFiles):
    """Those of a source, which a conversion copies.

    Args:
        source: the model.
        path: what its user calls it.
    """

    def __init__(self, source: Source, path: Path) -> None:
        self._files = source.side_files()
        super().__init__(path)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def read(self, name: str, error: type[DeepmnnError]) -> bytes:
        """A file that the source has."""
        return self._files[name]
