"""What the files of an exported model are called."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deepmnn.artifact.manifest import MANIFEST


@dataclass(frozen=True)
class Names:
    """What the files are called: as MNN's apps expect it, or after `stem`, NAME.mnn's NAME."""

    stem: str | None = None

    @property
    def model(self) -> str:
        """The network."""
        return f"{self.stem or 'llm'}.mnn"

    @property
    def weight(self) -> str:
        """Its weights."""
        return f"{self.model}.weight"

    @property
    def manifest(self) -> str:
        """deepmnn.json."""
        return self.of(MANIFEST)

    @property
    def sidecar(self) -> str:
        """The directory of Hugging Face's files."""
        return self.of("deepmnn")

    def of(self, name: str) -> str:
        """Any other file."""
        return name if self.stem is None else f"{self.stem}.{name}"


def locate(path: Path) -> tuple[Path, Names]:
    """The directory and the names of a folder, which its network may stand for, or of a NAME.mnn
    file.
    """
    if path.suffix != ".mnn" or path.is_dir():
        return path, Names()
    alone, whole = Names(path.stem), Names()
    in_folder = path.name == whole.model and not (path.parent / alone.manifest).exists()
    return path.parent, whole if in_folder else alone
