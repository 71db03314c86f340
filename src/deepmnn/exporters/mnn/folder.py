"""An MNN model folder, as MNN's runtime and its phone apps read it.

    config.json               what to load and how: MNN's runtime configuration
    llm_config.json           facts of the model, and its chat template
    llm.mnn, llm.mnn.weight   the network and its weights
    embeddings_*.bin          the embedding table, unless it is tied
    tokenizer.mtok            the tokenizer
    deepmnn/                  config.json, tokenizer.json, ... as Hugging Face has them
    deepmnn.json              the manifest: what it is, and the sizes and CRC-32 of all files but
                              config.json, which is the user's to change

A model may also lie beside other files: then NAME.mnn is the network and the other names begin
with NAME too (`Names`).
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from deepmnn.artifact.manifest import (
    MANIFEST,
    VERIFY_ALWAYS_BYTES,
    check_crc,
    check_size,
    check_stamp,
    is_file_record,
    is_unfinished,
)
from deepmnn.errors import ArtifactError
from deepmnn.graph.workload import Experts, Workload
from deepmnn.source.json_file import is_plain_name, read_object

FORMAT = "deepmnn-mnn"
FORMAT_VERSION = 3

_AGAIN = "Export the model again."
_COUNTS = {"vocab_size": 1, "cache_width": 0, "optimize_level": 0}
"""Fields and their least values."""

_MOST = (1 << 31) - 1
_TEXTS = ("deepmnn_version", "mnn_version", "model_type", "quant", "mla_form")
_OPENED = ("llm_model", "llm_weight", "llm_config", "tokenizer_file", "embedding_file")
"""Fields of MNN's configuration that name files."""


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


class MnnFolder:
    """An opened folder.

    Attributes:
        path: the folder, or the .mnn file.
        manifest: deepmnn.json.
        sidecar: the directory of Hugging Face's files.
        config: Hugging Face's config.json.
        runtime_config: the file to give to MNN.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path, self.manifest = path, manifest
        directory, names = locate(path)
        self.sidecar = directory / names.sidecar
        self.runtime_config = directory / names.of("config.json")
        self.config = read_object(self.sidecar / "config.json", ArtifactError)

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        return int(self.manifest["vocab_size"])

    @property
    def cache_width(self) -> int:
        """Elements that MNN caches for each token."""
        return int(self.manifest["cache_width"])

    @property
    def weights_nbytes(self) -> int:
        """Bytes of the network's weights."""
        _, names = locate(self.path)
        return int(self.manifest["files"][names.weight]["nbytes"])

    @property
    def workload(self) -> Workload:
        """What a token costs."""
        fields = dict(self.manifest["workload"])
        try:
            experts = tuple(Experts(**layer) for layer in fields.pop("experts"))
            numbers = [*fields.values()]
            for layer in experts:
                numbers += [layer.experts, layer.top_k, layer.nbytes, layer.macs]
            if not all(type(n) in (int, float) and 0 <= n < math.inf for n in numbers):
                raise ValueError("a figure is no number, or negative")
            if not all(type(layer.wanted) is bool for layer in experts):
                raise ValueError("who uses a layer's experts is neither true nor false")
            if not all(0 < layer.top_k <= layer.experts for layer in experts):
                raise ValueError("top_k is more than there are experts, or none")
            return Workload(**fields, experts=experts)
        except (KeyError, TypeError, ValueError) as fault:
            raise ArtifactError(
                f"{self.path}: the workload is damaged: {fault}", "", _AGAIN
            ) from None

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> MnnFolder:
        """Opens and checks a folder, or a NAME.mnn file and what belongs to it.

        Sizes are always checked, checksums of files up to 256 MB. Raises ArtifactError.
        """
        place = Path(path)
        try:
            directory, names = locate(place)
            manifest = _read_manifest(directory / names.manifest, names)
        except (OSError, ValueError) as fault:  # a name that no file can have
            raise ArtifactError(f"{str(path)!r:.200} cannot be read: {fault!s:.80}") from None
        for name, record in manifest["files"].items():
            file = directory / name
            check_size(file, record, _AGAIN)
            if record["nbytes"] <= VERIFY_ALWAYS_BYTES:
                check_crc(file, record, _AGAIN)
        _check_configs(directory, names, manifest)
        return cls(place, manifest)


def locate(path: Path) -> tuple[Path, Names]:
    """The directory and the names of a folder, or of a NAME.mnn file."""
    is_file = path.suffix == ".mnn" and not path.is_dir()
    return (path.parent, Names(path.stem)) if is_file else (path, Names())


def is_exported(path: Path) -> bool:
    """Whether `open` would find an MNN model here, sound or not."""
    directory, names = locate(path)
    manifest = directory / names.manifest
    return manifest.is_file() and read_object(manifest, ArtifactError).get("format") == FORMAT


def _read_manifest(path: Path, names: Names) -> dict[str, Any]:
    if is_unfinished(path.parent):
        raise ArtifactError(f"{path.parent} is an unfinished export", "an exported model", _AGAIN)
    if not path.is_file():
        raise ArtifactError(
            f"{path} is missing",
            "a model exported for MNN",
            "Export a converted model first: deepmnn export PATH OUT",
        )
    fields = read_object(path, ArtifactError)
    check_stamp(fields, path, (FORMAT, FORMAT_VERSION), _AGAIN)
    _check_fields(fields, path)
    sidecar = f"{names.sidecar}/config.json"
    for name in (names.model, names.weight, names.of("llm_config.json"), sidecar):
        if name not in fields["files"]:
            raise ArtifactError(f"{path} does not list {name}", "every file of the model", _AGAIN)
    return fields


def _check_fields(fields: dict[str, Any], path: Path) -> None:
    """Raises ArtifactError unless every field of the manifest has its type and is in range."""
    containers = {"files": dict, "workload": dict}
    kinds = {**dict.fromkeys(_COUNTS, int), **dict.fromkeys(_TEXTS, str), **containers}
    for key, kind in kinds.items():
        if type(fields.get(key)) is not kind:
            found = f"{path}: {key} is {fields.get(key)!r:.80}"
            raise ArtifactError(found, f"a {kind.__name__}", _AGAIN)
    for key, least in _COUNTS.items():
        if not least <= fields[key] <= _MOST:
            raise ArtifactError(f"{path}: {key} is {fields[key]!r:.80}", f"{least} to {_MOST}")
    for name, record in fields["files"].items():
        if not _is_inside(name) or not is_file_record(record):
            raise ArtifactError(f"{path}: file {name!r:.80} is listed as {record!r:.80}")


def _check_configs(directory: Path, names: Names, manifest: dict[str, Any]) -> None:
    """Raises ArtifactError unless MNN will open only files that were checked, at sane sizes."""
    merged: dict[str, Any] = {}  # as MNN does it
    for file in map(names.of, ("config.json", "llm_config.json")):
        merged |= read_object(directory / file, ArtifactError)
    for field in _OPENED:
        name = merged.get(field)
        if name is None and field == "embedding_file" and "tie_embeddings" in merged:
            continue
        if not isinstance(name, str) or name not in manifest["files"]:
            raise ArtifactError(
                f"{directory / names.of('config.json')}: {field} is {name!r:.80}",
                "a file that the manifest lists",
                _AGAIN,
            )
    for field in ("hidden_size", "layer_nums"):  # MNN divides by them
        value = merged.get(field)
        if type(value) is not int or not 1 <= value <= _MOST:
            found = f"{directory / names.of('llm_config.json')}: {field} is {value!r:.80}"
            raise ArtifactError(found, f"1 to {_MOST}", _AGAIN)


def _is_inside(name: str) -> bool:
    """A file here, or in a directory here."""
    parts = PurePosixPath(name).parts
    return len(parts) in (1, 2) and all(map(is_plain_name, parts)) and "/".join(parts) == name
