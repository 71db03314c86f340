"""Writes an MNN model: as a folder of its own, or as NAME.* beside other files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from deepmnn.artifact.directory import OVERWRITE, DirectoryWriter, found_format, sync_directory
from deepmnn.errors import StorageError
from deepmnn.exporters.mnn.folder import FORMAT, Names


class FolderWriter(DirectoryWriter):
    """A DirectoryWriter for either place. With a stem, the network appears last.

    Raises StorageError.
    """

    format = FORMAT

    def __init__(self, target: Path, names: Names, overwrite: bool = False) -> None:
        super().__init__(target if names.stem is None else target / names.model, overwrite)
        self.names = names
        self.manifest = names.manifest

    def add_json(self, name: str, fields: dict[str, Any], keep: bool = True) -> None:
        """Writes a JSON file; keep: it goes into the manifest. Raises StorageError."""
        with self.stream(name, keep) as sink:
            sink.write(json.dumps(fields, indent=2, ensure_ascii=False).encode())

    def check_target(self) -> None:
        """Raises StorageError unless the target may be written."""
        if self.names.stem is None:
            super().check_target()
            return
        here = [path for path in self._finals() if path.exists()]
        if here and found_format(self.target.parent / self.names.manifest) != self.format:
            raise StorageError(
                f"{here[0]} already exists and belongs to no exported model",
                "a new name",
                "Choose another name.",
            )
        if here and not self.overwrite:
            raise StorageError(f"{here[0]} already exists", "a new name", OVERWRITE)

    def replace_target(self) -> None:
        """Moves what was written into place."""
        if self.names.stem is None:
            super().replace_target()
            return
        sync_directory(self.temp)
        for old in self._finals():  # the network first: from then on the old model does not load
            if old.is_dir():
                shutil.rmtree(old)
            elif old.name != self.names.manifest:  # it says whose the rest is, if this is killed
                old.unlink(missing_ok=True)
        first, last = self.names.manifest, self.names.model
        made = {path.name: path for path in self.temp.iterdir()}
        for name in (first, *sorted(made.keys() - {first, last}), last):
            made[name].rename(self.target.parent / name)
        sync_directory(self.target.parent)

    def _finals(self) -> list[Path]:
        """Everything that an export of this name may have put here; first the network."""
        directory = self.target.parent
        if not directory.is_dir():
            return []
        names = (self.names.model, self.names.weight, self.names.sidecar, self.names.manifest)
        others = ("config.json", "llm_config.json", "tokenizer.mtok")
        tables = (f"embeddings_{kind}.bin" for kind in ("bf16", "int4", "int8"))
        return [directory / name for name in (*names, *map(self.names.of, (*others, *tables)))]
