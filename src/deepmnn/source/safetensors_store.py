"""safetensors weights: one file or a Hugging Face directory."""

from __future__ import annotations

from pathlib import Path

from deepmnn.source.file_store import FileStore
from deepmnn.source.safetensors import SafetensorsFile


class SafetensorsStore(FileStore[SafetensorsFile]):
    """Tensors of safetensors files by name."""

    format_name = "safetensors (*.safetensors)"
    index = "model.safetensors.index.json"
    single = "model.safetensors"
    pattern = "*.safetensors"
    suffixes = (".safetensors",)

    def open_file(self, path: Path) -> SafetensorsFile:
        """Opens one file. Raises CheckpointError."""
        return SafetensorsFile(path)
