"""An MNN model folder, as MNN's runtime and its phone apps read it.

    config.json               what to load and how: MNN's runtime configuration
    llm_config.json           facts of the model, and its chat template
    llm.mnn, llm.mnn.weight   the network and its weights
    embeddings_*.bin          the embedding table, unless it is tied
    tokenizer.mtok            the tokenizer
    deepmnn/                  config.json, tokenizer.json, ... as Hugging Face has them
    deepmnn.json              the manifest: what it is, and every other file's size and CRC-32

A model may also lie beside other files: then NAME.mnn is the network and the other names begin
with NAME too (`Names`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from deepmnn.artifact import (
    MANIFEST,
    TEMP_MARK,
    VERIFY_ALWAYS_BYTES,
    check_crc,
    check_size,
    manifest_crc,
)
from deepmnn.checkpoint.json_file import is_plain_name, read_object
from deepmnn.errors import ArtifactError
from deepmnn.workload import Experts, Workload

FORMAT = "deepmnn-mnn"
FORMAT_VERSION = 1

_AGAIN = "Export the model again."
_COUNTS = ("vocab_size", "cache_width", "optimize_level")
_TEXTS = ("deepmnn_version", "mnn_version", "model_type", "quant", "mla_form")


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
            return Workload(**{**fields, "experts": tuple(Experts(**e) for e in fields["experts"])})
        except (KeyError, TypeError) as fault:
            raise ArtifactError(f"{self.path}: the workload is damaged: {fault}") from None

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> MnnFolder:
        """Opens and checks a folder, or a NAME.mnn file and what belongs to it.

        Sizes are always checked, checksums of files up to 256 MB. Raises ArtifactError.
        """
        place = Path(path)
        directory, names = locate(place)
        manifest = _read_manifest(directory / names.manifest)
        for name, record in manifest["files"].items():
            file = directory / name
            check_size(file, record)
            if record["nbytes"] <= VERIFY_ALWAYS_BYTES:
                check_crc(file, record)
        return cls(place, manifest)


def locate(path: Path) -> tuple[Path, Names]:
    """The directory and the names of a folder, or of a NAME.mnn file."""
    return (path.parent, Names(path.stem)) if path.suffix == ".mnn" else (path, Names())


def is_exported(path: Path) -> bool:
    """Whether `open` would find an MNN model here, sound or not."""
    directory, names = locate(path)
    manifest = directory / names.manifest
    return manifest.is_file() and read_object(manifest, ArtifactError).get("format") == FORMAT


def _read_manifest(path: Path) -> dict[str, Any]:
    if TEMP_MARK in path.resolve().parent.name:
        raise ArtifactError(f"{path.parent} is an unfinished export", "an exported model", _AGAIN)
    if not path.is_file():
        raise ArtifactError(
            f"{path} is missing",
            "a model exported for MNN",
            "Export a converted model first: deepmnn export PATH OUT",
        )
    fields = read_object(path, ArtifactError)
    if fields.get("format") != FORMAT or fields.get("format_version") != FORMAT_VERSION:
        raise ArtifactError(
            f"{path} has format {fields.get('format')!r:.40} version "
            f"{fields.get('format_version')!r:.40}",
            f"{FORMAT} version {FORMAT_VERSION}",
            "Export the model again with this version of deepmnn.",
        )
    if fields.get("crc32") != manifest_crc(fields):
        raise ArtifactError(f"{path} is damaged: its checksum is wrong", "", _AGAIN)
    kinds = {
        **dict.fromkeys(_COUNTS, int),
        **dict.fromkeys(_TEXTS, str),
        "files": dict,
        "workload": dict,
    }
    for key, kind in kinds.items():
        if type(fields.get(key)) is not kind:
            found = f"{path}: {key} is {fields.get(key)!r:.80}"
            raise ArtifactError(found, f"a {kind.__name__}", _AGAIN)
    for name, record in fields["files"].items():
        if not _is_inside(name) or not _is_record(record):
            raise ArtifactError(f"{path}: file {name!r:.80} is listed as {record!r:.80}")
    return fields


def _is_inside(name: str) -> bool:
    """A file here, or in a directory here."""
    parts = PurePosixPath(name).parts
    return len(parts) in (1, 2) and all(map(is_plain_name, parts)) and "/".join(parts) == name


def _is_record(record: object) -> bool:
    return isinstance(record, dict) and all(
        type(record.get(key)) is int for key in ("nbytes", "crc32")
    )
