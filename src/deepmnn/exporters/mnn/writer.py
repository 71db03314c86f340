"""Writes an MNN model: as a folder of its own, or as NAME.* beside other files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deepmnn.artifact.directory import DirectoryWriter
from deepmnn.artifact.manifest import FileRecord
from deepmnn.artifact.renames import locked, rename_new, sync_directory
from deepmnn.artifact.target import (
    OVERWRITE,
    Target,
    check_name,
    check_not_read,
    found_format,
    real_path,
)
from deepmnn.artifact.workspace import Workspace
from deepmnn.artifact.written import Checksums, Written
from deepmnn.errors import StorageError
from deepmnn.exporters.mnn.folder import FORMAT
from deepmnn.exporters.mnn.names import Names


class FolderWriter(DirectoryWriter):
    """A DirectoryWriter for either place.

    Args:
        target: the folder; with a stem in `names`, the directory that the files go into.
        overwrite: replaces an export that is there, as long as it is as it was written.
        sources: what is read meanwhile; nothing of it may lie in the folder.

    Raises StorageError.
    """

    def __init__(
        self, target: Path, names: Names, overwrite: bool = False, sources: Sequence[Path] = ()
    ) -> None:
        place = (
            Target(target, FORMAT, overwrite, sources)
            if names.stem is None
            else NamedFiles(target, names, overwrite, sources)
        )
        super().__init__(place, names.manifest)
        self._settings: dict[str, FileRecord] = {}

    def add_json(self, name: str, fields: dict[str, Any]) -> None:
        """Writes a JSON file. Raises StorageError."""
        self.add_file(name, _json(fields))

    def add_settings(self, name: str, fields: dict[str, Any]) -> None:
        """Writes a JSON file that the user may change: the manifest tells it as it was written."""
        self._settings[name] = self.write_file(name, _json(fields))

    def commit(self, description: Mapping[str, Any]) -> None:
        """As DirectoryWriter's."""
        super().commit({**description, "settings": self._settings})


class NamedFiles:
    """A model beside the user's files: NAME.mnn, and what belongs to it under names like it.

    Its files cannot be swapped in one step. The old network goes first and the new one comes last:
    what loads is whole, the old model or the new one.

    Args: those of FolderWriter.
    """

    def __init__(
        self, directory: Path, names: Names, overwrite: bool, sources: Sequence[Path]
    ) -> None:
        self.names = names
        self.path = real_path(directory) / names.model
        self.overwrite, self.sources = overwrite, sources
        self._checksums: Checksums = {}

    def check(self) -> None:
        """Raises StorageError unless it may be written."""
        check_name(self.path)
        here = [path for path in self._finals() if path.exists() or path.is_symlink()]
        if not here:
            return
        manifest = self.path.parent / self.names.manifest
        if found_format(manifest) != FORMAT:
            raise StorageError(
                f"{here[0]} already exists and belongs to no exported model",
                "a new name",
                "Choose another name.",
            )
        if not self.overwrite:
            raise StorageError(f"{here[0]} already exists", "a new name", OVERWRITE)
        written = Written(manifest, self._checksums)
        written.check(here)
        check_not_read(written, self.sources)

    def put(self, workspace: Workspace) -> None:
        """Moves what was written into place."""
        home, new = self.path.parent, workspace.new
        sync_directory(new)
        with locked(home):
            self.check()
            manifest = home / self.names.manifest
            if manifest.exists():
                Written(manifest, self._checksums).remove(self.names.model)
            made = {path.name: path for path in new.iterdir()}
            first, last = self.names.manifest, self.names.model
            rename_new(made[first], manifest)
            try:
                for name in (*sorted(made.keys() - {first, last}), last):
                    rename_new(made[name], home / name)
            except BaseException:
                Written(manifest).remove(last)
                raise
        sync_directory(home)

    def _finals(self) -> list[Path]:
        """Everything that an export of this name may put here."""
        names = (self.names.model, self.names.weight, self.names.sidecar, self.names.manifest)
        others = ("config.json", "llm_config.json", "tokenizer.mtok")
        tables = (f"embeddings_{kind}.bin" for kind in ("bf16", "int4", "int8"))
        home = self.path.parent
        return [home / name for name in (*names, *map(self.names.of, (*others, *tables)))]


def _json(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, indent=2, ensure_ascii=False).encode()
