"""Which files of a path hold the model's weights.

As in transformers, safetensors come before PyTorch's files, and one whole file before the shards of
an index. But an index may be of another build, a file a leftover: what is incomplete gives way to
what is whole. Adapters, originals in another layout and what file managers leave are no weights.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepmnn.errors import CheckpointError, TensorNotFoundError
from deepmnn.source.entry import Entry
from deepmnn.source.json_file import is_plain_name, read_object
from deepmnn.source.regular_file import kind_of
from deepmnn.source.safetensors import read_safetensors
from deepmnn.source.torch_file import read_torch

Tensors = dict[str, Entry]

_ADAPTER = r"adapter_(model|config)\b.*|(.*[-_.])?lora[-_.].*"
_ADAPTERS = re.compile(_ADAPTER, re.IGNORECASE)
_OTHERS = re.compile(rf"\..*|consolidated.*|optimizer.*|scheduler.*|{_ADAPTER}", re.IGNORECASE)
"""Files that are no weights of the model."""

_SHARD = re.compile(r"(.*)-(\d{5,6})-of-(\d{5,6})(\..*)")
_UNFINISHED = (".aria2", ".st", ".part", ".partial", ".incomplete", ".crdownload", ".download")
"""What downloaders put behind the name of a file that is not whole, or of their notes on it."""


@dataclass(frozen=True)
class Kind:
    """A kind of weight files.

    Attributes:
        name: in messages.
        index, single: what transformers calls the index of shards, and one whole file.
        pattern: of other names, in the order they are tried.
        suffixes: of a file by itself.
        read: the tensors of one file. Raises CheckpointError.
    """

    name: str
    index: str
    single: str
    patterns: tuple[str, ...]
    suffixes: tuple[str, ...]
    read: Callable[[Path], Tensors]


KINDS = (
    Kind(
        "safetensors (*.safetensors)",
        "model.safetensors.index.json",
        "model.safetensors",
        ("model*.safetensors", "*.safetensors"),
        (".safetensors",),
        read_safetensors,
    ),
    Kind(
        "PyTorch (pytorch_model*.bin; other names as a file: .pt, .pth, .bin, .ckpt)",
        "pytorch_model.bin.index.json",
        "pytorch_model.bin",
        ("pytorch_model*.bin",),
        (".pt", ".pth", ".bin", ".ckpt"),
        read_torch,
    ),
)
"""Kinds of weight files in the order they are tried."""


def has_weights(path: Path) -> bool:
    """Whether there is anything that looks like weights, sound or not."""
    if not os.path.isdir(path):
        return os.path.lexists(path) and any(path.suffix in kind.suffixes for kind in KINDS)
    return bool(adapters(path)) or any(_has(path, kind) for kind in KINDS)


def check_path(path: Path) -> None:
    """Raises CheckpointError for what cannot be a checkpoint, with config.json or without."""
    if not os.path.isdir(path):
        _kind(path)
    elif adapters(path) and not any(_has(path, kind) for kind in KINDS):
        raise _nothing(path)


def read_weights(path: Path) -> Tensors:
    """The tensors of a file, or of the weights in a directory, by their names there.

    Raises CheckpointError when there are none, or when they are incomplete or damaged.
    """
    if not os.path.isdir(path):
        return _read_files(_kind(path), [path])
    missing: list[CheckpointError] = []
    for kind in KINDS:
        if (found := _named(path, kind, missing)) is not None:
            return found
    if missing:
        raise missing[0]
    for kind in KINDS:
        if files := _loose(path, kind):
            _check_whole(files)
            return _read_files(kind, files)
    raise _nothing(path)


def adapters(path: Path) -> list[str]:
    """The files of LoRA adapters that lie in a directory."""
    return sorted(name for name in _names(path) if _ADAPTERS.fullmatch(name))


def _kind(file: Path) -> Kind:
    for kind in KINDS:
        if file.suffix in kind.suffixes and os.path.lexists(file):
            return kind
    raise CheckpointError(
        f"{file} is {'a file' if os.path.lexists(file) else 'missing'}",
        f"a checkpoint directory with config.json and weights, or weights: {_kinds()}",
    )


# ------------------------------------------------------------ files as transformers names them


def _named(path: Path, kind: Kind, missing: list[CheckpointError]) -> Tensors | None:
    """One whole file, or the shards of an index; None when there is neither. A shard that is
    missing is added to `missing`: another kind of files may be whole.

    The file is taken unless it lacks tensors that a complete index names: then it is no model, but
    something that was left there.
    """
    index = _read_index(path / kind.index) if os.path.lexists(path / kind.index) else None
    files = dict.fromkeys(index.values()) if index else ()
    absent = [file for file in files if not os.path.isfile(path / file)]
    single = path / kind.single
    if os.path.lexists(single) and not os.path.isdir(single):
        if index is None or absent:
            return _read_files(kind, [single])
        if (whole := _read_whole(kind, single, index)) is not None:
            return whole
    if index is None:
        return None
    if not absent:
        return _read_shards(path, kind, index)
    missing.append(_missing_shard(path, kind, absent[0]))
    return _read_renamed(path, kind, index)


def _read_whole(kind: Kind, single: Path, index: dict[str, str]) -> Tensors | None:
    """One file, if it has all that an index names."""
    try:
        tensors = _read_files(kind, [single])
    except CheckpointError:
        return None
    return tensors if index.keys() <= tensors.keys() else None


def _read_renamed(path: Path, kind: Kind, index: dict[str, str]) -> Tensors | None:
    """Files under other names than those of an index, some of whose own are missing: all that it
    names must be in them, unless it is of another build, and none of its files is there.
    """
    try:
        tensors = _read_files(kind, _loose(path, kind))
    except CheckpointError:
        return None
    foreign = not any(os.path.isfile(path / file) for file in index.values())
    return tensors if tensors and (foreign or index.keys() <= tensors.keys()) else None


def _read_index(index: Path) -> dict[str, str]:
    """Tensor → file."""
    weight_map = read_object(index, CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map", "tensor name → file name")
    for name, file in weight_map.items():
        if not is_plain_name(file):
            raise CheckpointError(
                f"{index} puts tensor {name!r:.200} in {file!r:.80}", "a file name beside it"
            )
    return weight_map


def _read_shards(path: Path, kind: Kind, index: dict[str, str]) -> Tensors:
    """All tensors of the files that an index names; of two of one name the one that it names."""
    files = {file: _read(kind, path / file) for file in dict.fromkeys(index.values())}
    for name, file in index.items():
        if name not in files[file]:
            raise TensorNotFoundError(
                f"{path / kind.index} puts tensor {name!r:.200} in {file}, which does not have it",
                "",
                "The index and the shards are of different downloads; download again.",
            )
    others = [
        {name: entry for name, entry in tensors.items() if name not in index}
        for tensors in files.values()
    ]
    return {name: files[file][name] for name, file in index.items()} | _merged(others)


def _missing_shard(path: Path, kind: Kind, file: str) -> CheckpointError:
    what = kind_of(path / file)
    return CheckpointError(
        f"shard {file:.300} is {what or 'missing'} in {path}",
        f"every file that {kind.index} names",
        "The download is incomplete; download the missing file.",
    )


# ------------------------------------------------------------------------- files of any other name


def _loose(path: Path, kind: Kind) -> list[Path]:
    """Files that may be weights, of the first pattern that some have."""
    for pattern in kind.patterns:
        if files := [file for file in _called(path, pattern) if os.path.isfile(file)]:
            return _whole_sets(files)
    return []


def _called(path: Path, pattern: str) -> list[Path]:
    return [file for file in sorted(path.glob(pattern)) if not _OTHERS.fullmatch(file.name)]


def _has(path: Path, kind: Kind) -> bool:
    """Whether something is called like this kind of weights."""
    return os.path.lexists(path / kind.index) or any(_called(path, p) for p in kind.patterns)


def _whole_sets(files: list[Path]) -> list[Path]:
    """Without sets of shards that are not whole, if there is one that is."""
    sets = _sets(files)
    cut = [file for members in sets if _count(members[0]) > len(members) for file in members]
    whole = any(_count(members[0]) == len(members) for members in sets)
    return [file for file in files if file not in cut] if whole else files


def _check_whole(files: list[Path]) -> None:
    """Raises CheckpointError for shards of which others are missing."""
    for members in _sets(files):
        if _count(members[0]) > len(members):
            raise CheckpointError(
                f"{members[0].parent} has {len(members)} of the shards of {members[0].name:.200}",
                f"all {_count(members[0])}",
                "The download is incomplete; download the missing files.",
            )


def _sets(files: list[Path]) -> list[list[Path]]:
    """Shards ("model-00001-of-00002.safetensors") of the same build, together."""
    sets: dict[tuple[str | Any, ...], list[Path]] = {}
    for file in files:
        if found := _SHARD.fullmatch(file.name):
            sets.setdefault(found.group(1, 3, 4), []).append(file)
    return list(sets.values())


def _count(shard: Path) -> int:
    """How many shards the build has, by the name of one."""
    found = _SHARD.fullmatch(shard.name)
    return int(found[3]) if found else 1


# --------------------------------------------------------------------------------- one file


def _read_files(kind: Kind, files: list[Path]) -> Tensors:
    """The tensors of several files, each in one of them."""
    return _merged(_read(kind, file) for file in files)


def _merged(parts: Iterable[Tensors]) -> Tensors:
    tensors: Tensors = {}
    for part in parts:
        for name in tensors.keys() & part.keys():
            first, second = tensors[name].file.path, part[name].file.path
            raise CheckpointError(
                f"tensor {name!r:.200} is in {first.name} and {second.name}",
                "each tensor in one file",
                f"Keep one set of weights in the directory, or name the one to convert: {second}",
            )
        tensors |= part
    return tensors


def _read(kind: Kind, file: Path) -> Tensors:
    """The tensors of one file, unless a downloader still works on it."""
    for suffix in _UNFINISHED:
        if os.path.lexists(f"{file}{suffix}"):
            raise CheckpointError(
                f"{file} is not whole: {file.name}{suffix} lies beside it",
                "a finished download",
                "Let the download end, or start it again.",
            )
    return kind.read(file)


def _kinds() -> str:
    return ", ".join([*(kind.name for kind in KINDS), "GGUF (*.gguf)"])


# --------------------------------------------------------------------------------- no weights


def _nothing(path: Path) -> CheckpointError:
    """Says what lies there instead of weights."""
    names = _names(path)
    if adapters(path):
        return CheckpointError(
            f"{path} holds an adapter (LoRA), and not the model that it adapts",
            "a model",
            "Merge them: peft.AutoPeftModelForCausalLM.from_pretrained(DIR).merge_and_unload()"
            ".save_pretrained(OUT), and convert OUT.",
        )
    hub = ".cache/huggingface/download"  # where huggingface_hub keeps what is not whole
    for name in [*names, *_names(path / hub)]:
        if name.endswith(_UNFINISHED):
            return CheckpointError(
                f"{path} holds {name:.200}, an unfinished download",
                "weights",
                "Let the download end, or start it again.",
            )
    for name in names:
        if name.endswith((".safetensors", ".bin")) and (what := kind_of(path / name)):
            return CheckpointError(f"{path / name} is {what}", "a file of weights")
    listing = ", ".join(f"{name:.80}" for name in names[:8]) + (", …" if names[8:] else "")
    return CheckpointError(
        f"{path} holds {listing or 'no files'}", f"weights in one of these formats: {_kinds()}"
    )


def _names(directory: Path) -> list[str]:
    """The names in a directory, in letters that any terminal prints; none if it cannot be read."""
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return []
    return [os.fsencode(name).decode("utf-8", "backslashreplace") for name in names]
