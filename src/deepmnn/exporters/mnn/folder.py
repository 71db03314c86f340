"""An MNN model folder, as MNN's runtime and its phone apps read it.

    config.json               what to load and how: MNN's runtime configuration
    llm_config.json           facts of the model, and its chat template
    llm.mnn, llm.mnn.weight   the network and its weights
    embeddings_*.bin          the embedding table, unless it is tied
    tokenizer.mtok            the tokenizer
    deepmnn/                  config.json, tokenizer.json, ... as Hugging Face has them
    deepmnn.json              the manifest: what it is, and the sizes and CRC-32 of all files;
                              those of config.json, which is the user's to change, as it was written

A model may also lie beside other files: then NAME.mnn is the network and the other names begin
with NAME too (`Names`).
"""

from __future__ import annotations

import math
import os
from pathlib import Path, PurePosixPath
from typing import Any

from deepmnn.artifact.manifest import (
    MAX_FILES,
    VERIFY_ALWAYS_BYTES,
    check_changes,
    check_crc,
    check_size,
    check_stamp,
    check_texts,
    is_file_record,
    is_unfinished,
)
from deepmnn.artifact.written import is_inside
from deepmnn.errors import ArtifactError, Words
from deepmnn.exporters.mnn.contents import check_contents
from deepmnn.exporters.mnn.names import Names, locate
from deepmnn.graph.workload import Experts, Workload
from deepmnn.source.json_file import KINDS, read_object
from deepmnn.text.text_files import TextFiles

FORMAT = "deepmnn-mnn"
FORMAT_VERSION = 3

_AGAIN = "Export the model again."
_COUNTS = {"vocab_size": 1, "cache_width": 0, "optimize_level": 0}
"""Fields and their least values."""

_MOST = (1 << 31) - 1
_TEXTS = ("deepmnn_version", "mnn_version", "model_type", "quant", "mla_form")


class MnnFolder:
    """An opened folder.

    Attributes:
        path: the folder, or the .mnn file.
        manifest: deepmnn.json.
        sidecar: the directory of Hugging Face's files.
        config: Hugging Face's config.json.
        runtime_config: the file to give to MNN.
        text_files: the tokenizer's and other small files, of those that the manifest lists.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path, self.manifest = path, manifest
        directory, names = locate(path)
        self.sidecar = directory / names.sidecar
        self.runtime_config = directory / names.of("config.json")
        self.config = read_object(self.sidecar / "config.json", ArtifactError)
        listed = [PurePosixPath(name) for name in manifest["files"]]
        self.text_files = TextFiles(
            self.sidecar, {file.name for file in listed if str(file.parent) == names.sidecar}
        )

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
            made = Workload(**fields, experts=experts)
            if made.scored_width > made.cache_width:
                raise ValueError("more is scored than the cache holds")
            return made
        except (KeyError, TypeError, ValueError) as fault:
            raise ArtifactError(
                f"{self.path}: the workload is damaged: {fault}", "", _AGAIN
            ) from None

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> MnnFolder:
        """Opens and checks a folder, or a NAME.mnn file and what belongs to it.

        Sizes are always checked, checksums of files up to 256 MB, and that what MNN will read is
        what `export` writes (contents.py). Raises ArtifactError.
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
        check_contents(directory, names, manifest)
        return cls(place, manifest)


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
            Words(
                "Export a converted model first: deepmnn.export(PATH, OUT)",
                "Export a converted model first: deepmnn export PATH OUT",
            ),
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
    containers = {"files": dict, "settings": dict, "workload": dict}
    kinds = {**dict.fromkeys(_COUNTS, int), **dict.fromkeys(_TEXTS, str), **containers}
    for key, kind in kinds.items():
        if type(fields.get(key)) is not kind:
            found = f"{path}: {key} is {fields.get(key)!r:.80}"
            raise ArtifactError(found, KINDS[kind], _AGAIN)
    for key, least in _COUNTS.items():
        if not least <= fields[key] <= _MOST:
            raise ArtifactError(f"{path}: {key} is {fields[key]!r:.80}", f"{least} to {_MOST}")
    check_texts({key: fields[key] for key in _TEXTS}, path, _AGAIN)
    check_changes(fields, path)
    if len(fields["files"]) > MAX_FILES:
        raise ArtifactError(f"{path} lists {len(fields['files'])} files", f"at most {MAX_FILES}")
    for name, record in {**fields["settings"], **fields["files"]}.items():
        if not is_inside(name) or name.count("/") > 1 or not is_file_record(record):
            raise ArtifactError(f"{path}: file {name!r:.80} is listed as {record!r:.80}")
