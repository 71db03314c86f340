"""deepmnn.json: what a converted model's directory holds, with sizes and checksums.

The manifest lists every other file with its size and CRC-32 (5 GB/s here, five times blake2b), and
carries the CRC-32 of itself. Checksums find damage, not malice.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from deepmnn.errors import ArtifactError, Words
from deepmnn.quant.recipe import Recipe
from deepmnn.source.json_file import KINDS, MAX_JSON_BYTES, is_plain_name, read_object
from deepmnn.source.regular_file import kind_of

FORMAT = "deepmnn"
FORMAT_VERSION = 7
"""2: w8 and w4 have a scale for each panel; before, for each group of columns.
3: program.bin 2: instructions say how weights are read, which caches they write and what they cost.
4: quantised panels are rotated, codes lie in planes of bits; no groups (program.bin 3).
5: latent attention has two matrices, and none of them transposed.
6: equal bytes are stored once, large weights begin with a page (program.bin 4).
7: a cache entry says how many tokens a row is for, and how many stay; layers of multi-token
prediction are a draft part, which runs (program.bin 5, graph.json 2).
"""
MANIFEST = "deepmnn.json"
GRAPH = "graph.json"
DRAFT = "draft.json"
PROGRAM = "program.bin"
RECIPE = "recipe.yaml"
CONFIG = "config.json"
REQUIRED = (CONFIG, GRAPH, PROGRAM)
TEMP_MARK = ".deepmnn-tmp-"
"""A directory with this in its name is a conversion under way, or one that was killed."""

MAX_FILES = 100
"""Small files of a model; a conversion writes a dozen."""

MAX_TEXT = 200
"""Characters of a text in a manifest."""

VERIFY_ALWAYS_BYTES = 256 << 20
"""Weights up to this size are checksummed whenever the artifact is opened (about 50 ms)."""

_PIECE = 8 << 20
AGAIN = "Convert the model again."
CONVERT_FIRST = Words(
    "Convert a checkpoint first: deepmnn.convert(CHECKPOINT, OUT)",
    "Convert a checkpoint first: deepmnn convert CHECKPOINT OUT",
)


class FileRecord(TypedDict):
    """Size and CRC-32 of a file."""

    nbytes: int
    crc32: int


class ShardRecord(FileRecord):
    """A weight file of the artifact, in the order that program.bin counts them."""

    file: str


class SharedRecord(TypedDict):
    """What is stored once, or not at all, and is in several weights: program.bin says where.

    nbytes: that are not in the weight files; zeros_nbytes: of these, zeros. experts: all of whose
    weights are there by another name, or zeros; weights: others of which that is true.
    """

    nbytes: int
    zeros_nbytes: int
    experts: int
    weights: int


class PassRecord(TypedDict):
    """What one pass did."""

    name: str
    rewrites: int
    nodes_before: int
    nodes_after: int


class Manifest(TypedDict):
    """deepmnn.json."""

    format: str
    format_version: int
    deepmnn_version: str
    model_type: str
    quant: str
    recipe: dict[str, Any]
    optimize_level: int
    nodes_level_0: int
    nodes: int
    passes: list[PassRecord]
    changes: NotRequired[list[str]]
    shards: list[ShardRecord]
    shared: NotRequired[SharedRecord]
    files: dict[str, FileRecord]
    crc32: int


def read_manifest(directory: Path) -> Manifest:
    """deepmnn.json of a directory, its own checksum and its fields' types checked."""
    if is_unfinished(directory):
        raise ArtifactError(f"{directory} is an unfinished conversion", "a converted model", AGAIN)
    if not directory.is_dir():
        raise ArtifactError(
            f"{directory} is {'a file' if directory.exists() else 'missing'}",
            "the directory of a converted model",
            CONVERT_FIRST,
        )
    path = directory / MANIFEST
    if not path.exists():
        raise ArtifactError(
            f"{path} is missing",
            "the directory of a converted model",
            CONVERT_FIRST,
        )
    fields = read_object(path, ArtifactError)
    if str(fields.get("format")).startswith(f"{FORMAT}-"):
        raise ArtifactError(
            f"{directory} is an export, {fields['format']!r:.40}",
            "a converted model",
            "Use the model that it was exported from.",
        )
    check_stamp(fields, path, (FORMAT, FORMAT_VERSION), AGAIN)
    _check_manifest(fields, path)
    manifest: Manifest = fields  # type: ignore[assignment]
    return manifest


def is_unfinished(directory: Path) -> bool:
    """Whether it is the workspace of a writer, or what is being written there."""
    path = directory.resolve()
    return TEMP_MARK in path.name or TEMP_MARK in path.parent.name


def check_stamp(fields: dict[str, Any], path: Path, stamp: tuple[str, int], again: str) -> None:
    """Raises ArtifactError unless a manifest has this format and version, and its own checksum."""
    if (fields.get("format"), fields.get("format_version")) != stamp:
        raise ArtifactError(
            f"{path} has format {fields.get('format')!r:.40} version "
            f"{fields.get('format_version')!r:.40}",
            f"{stamp[0]} version {stamp[1]}",
            f"{again.removesuffix('.')} with this version of deepmnn.",
        )
    if fields.get("crc32") != manifest_crc(fields):
        raise ArtifactError(f"{path} is damaged: its checksum is wrong", "", again)


def manifest_crc(fields: dict[str, Any]) -> int:
    """CRC-32 of a manifest without its own crc32 field, written canonically."""
    rest = {key: value for key, value in fields.items() if key != "crc32"}
    return zlib.crc32(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode())


def file_crc(path: Path, forget: bool = False) -> int:
    """CRC-32 of a file, as long as it is when it is opened. Raises OSError.

    forget: nothing of it stays in the system's cache of files, as far as the system can do that.
    """
    crc = 0
    with path.open("rb", buffering=0) as file:
        left = os.fstat(file.fileno()).st_size
        while left and (chunk := file.read(min(left, _PIECE))):
            crc = zlib.crc32(chunk, crc)
            left -= len(chunk)
            if forget and hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return crc


def check_changes(fields: dict[str, Any], path: Path) -> None:
    """Raises ArtifactError unless "changes" is missing or a list of texts: `Source.changes`."""
    changes = fields.get("changes", [])
    if type(changes) is not list or not all(type(change) is str for change in changes):
        raise ArtifactError(f"{path}: changes is {changes!r:.80}", "a list of texts", AGAIN)


def _check_manifest(fields: dict[str, Any], path: Path) -> None:
    """Raises ArtifactError unless every field of `Manifest` has its type."""
    counts = dict.fromkeys(("optimize_level", "nodes_level_0", "nodes"), int)
    texts = dict.fromkeys(("deepmnn_version", "model_type", "quant"), str)
    containers = {"passes": list, "shards": list, "files": dict, "recipe": dict}
    for key, kind in {**counts, **texts, **containers}.items():
        if type(fields.get(key)) is not kind:
            raise ArtifactError(f"{path}: {key} is {fields.get(key)!r:.80}", KINDS[kind])
    check_texts({key: fields[key] for key in texts}, path, AGAIN)
    if len(fields["files"]) > MAX_FILES:
        raise ArtifactError(f"{path} lists {len(fields['files'])} files", f"at most {MAX_FILES}")
    check_changes(fields, path)
    for record in fields["passes"]:
        sizes = ("rewrites", "nodes_before", "nodes_after")
        if not _has(record, str, "name") or not _has(record, int, *sizes):
            raise ArtifactError(f"{path}: a pass is {record!r:.80}")
        check_texts({"the name of a pass": record["name"]}, path, AGAIN)
    counts_of = tuple(SharedRecord.__annotations__)
    if "shared" in fields and not _has(fields["shared"], int, *counts_of):
        raise ArtifactError(f"{path}: shared is {fields['shared']!r:.80}", ", ".join(counts_of))
    Recipe.from_json(fields["recipe"], f"{path}: recipe", ArtifactError)
    records = [*fields["files"].values(), *fields["shards"]]
    names = [*fields["files"], *(_name_of(record) for record in fields["shards"])]
    for name, record in zip(names, records, strict=True):
        if not is_plain_name(name) or not is_file_record(record):
            raise ArtifactError(f"{path}: file {name!r:.80} is listed as {record!r:.80}")
    for name, record in fields["files"].items():
        if record["nbytes"] > MAX_JSON_BYTES:
            raise ArtifactError(
                f"{path}: {name!r:.80} has {record['nbytes']} bytes", f"at most {MAX_JSON_BYTES}"
            )
    if len(set(names)) != len(names):
        raise ArtifactError(f"{path} lists a file twice")
    missing = [name for name in REQUIRED if name not in fields["files"]]
    if missing:
        raise ArtifactError(f"{path} does not list {missing[0]}", ", ".join(REQUIRED), AGAIN)


def check_texts(texts: dict[str, str], path: Path, again: str) -> None:
    """Raises ArtifactError unless they are short and can be printed as they are."""
    for key, text in texts.items():
        if not text.isprintable() or len(text) > MAX_TEXT:
            raise ArtifactError(
                f"{path}: {key} is {text!r:.80}", f"at most {MAX_TEXT} printable characters", again
            )


def _name_of(record: object) -> object:
    return record.get("file") if isinstance(record, dict) else None


def is_file_record(record: object) -> bool:
    """Whether it has the fields of a FileRecord."""
    return _has(record, int, "nbytes", "crc32")


def _has(record: object, kind: type, *keys: str) -> bool:
    return isinstance(record, dict) and all(type(record.get(key)) is kind for key in keys)


def check_size(path: Path, record: FileRecord, again: str = AGAIN) -> None:
    """Raises ArtifactError, with `again` as its advice, unless the file is as long as recorded."""
    try:
        found = path.stat().st_size if path.is_file() else None
    except (OSError, ValueError) as fault:
        raise ArtifactError(f"{path} cannot be read: {fault}") from None
    if found is None:
        what = kind_of(path) or "missing"
        raise ArtifactError(f"{path} is {what}", "every file that deepmnn.json lists", again)
    if found != record["nbytes"]:
        raise ArtifactError(f"{path} has {found} bytes", f"{record['nbytes']}", again)


def check_crc(path: Path, record: FileRecord, again: str = AGAIN, *, forget: bool = False) -> None:
    """Raises ArtifactError, with `again` as its advice, unless the file's checksum is recorded.

    forget: as of `file_crc`.
    """
    try:
        found = file_crc(path, forget)
    except OSError as fault:
        raise ArtifactError(f"{path} cannot be read: {fault}") from None
    if found != record["crc32"]:
        raise ArtifactError(
            f"{path} is damaged: its checksum is {found:08x}", f"{record['crc32']:08x}", again
        )
