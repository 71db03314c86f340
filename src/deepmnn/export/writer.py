"""Writes an MNN model: as a folder of its own, or as NAME.* beside other files."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deepmnn.directory_writer import DirectoryWriter, Sink, sync_directory
from deepmnn.errors import StorageError
from deepmnn.export.folder import Names


class FolderWriter(DirectoryWriter):
    """A DirectoryWriter for either place. With a stem, the network appears last.

    Raises StorageError.
    """

    def __init__(self, target: Path, names: Names, overwrite: bool = False) -> None:
        super().__init__(target if names.stem is None else target / names.model, overwrite)
        self.names = names
        self.manifest = names.manifest

    @contextlib.contextmanager
    def stream(self, name: str, keep: bool = True) -> Iterator[Sink]:
        """A file to stream into; keep: it goes into the manifest."""
        sink = self.open(name)
        try:
            yield sink
        except BaseException:
            sink.abandon()
            raise
        record = sink.finish()
        if keep:
            self.record(name, record)

    def add_json(self, name: str, fields: dict[str, Any]) -> None:
        """Writes a JSON file. Raises StorageError."""
        self.add_file(name, json.dumps(fields, indent=2, ensure_ascii=False).encode())

    def check_target(self) -> None:
        """Raises StorageError unless the target may be written."""
        if self.names.stem is None:
            super().check_target()
            return
        here = [path for path in self._finals() if path.exists()]
        if here and not (self.target.parent / self.names.manifest).is_file():
            raise StorageError(
                f"{here[0]} already exists and belongs to no exported model",
                "a new name",
                "Choose another name.",
            )
        if here and not self.overwrite:
            raise StorageError(
                f"{here[0]} already exists", "a new name", "Overwrite it with --overwrite."
            )

    def replace_target(self) -> None:
        """Moves what was written into place."""
        if self.names.stem is None:
            super().replace_target()
            return
        sync_directory(self.temp)
        self.target.unlink(missing_ok=True)  # from here on the old model does not load
        for old in self._finals():
            shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
        made = sorted(self.temp.iterdir(), key=lambda path: path.name == self.names.model)
        for path in made:
            path.rename(self.target.parent / path.name)
        sync_directory(self.target.parent)

    def _finals(self) -> list[Path]:
        """Everything that an export of this name may have put here."""
        stem, directory = self.names.stem, self.target.parent
        if not directory.is_dir():
            return []
        names = (self.names.model, self.names.weight, self.names.sidecar, self.names.manifest)
        others = ("config.json", "llm_config.json", "tokenizer.mtok")
        tables = [*directory.glob(f"{stem}.embeddings_*.bin")]
        return [directory / name for name in (*names, *map(self.names.of, others))] + tables
