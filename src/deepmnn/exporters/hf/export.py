"""A source → a Hugging Face directory that transformers and vLLM load.

config.json, tokenizer files, ...       as the source has them; config.json names the new dtype
model.safetensors                       the tensors that the model reads; or, in larger models,
model-0000i-of-0000N.safetensors        shards of them, and
model.safetensors.index.json            which tensor lies in which
deepmnn.json                            what was written, so that only that is ever replaced
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from deepmnn.artifact.directory import DirectoryWriter
from deepmnn.artifact.shards import Shard, plan_shards
from deepmnn.artifact.target import Target
from deepmnn.conversion.naive import naive_parts
from deepmnn.conversion.write import Progress
from deepmnn.errors import RequestError, UnsupportedModelError, argument
from deepmnn.exporters.exported import LARGEST_F16, Exported, check_numbers, check_type, unread
from deepmnn.exporters.hf.compressed import SCHEME, Fields, Scheme, settings
from deepmnn.formats import KeptCodes
from deepmnn.source.codecs.settings import BLOCKS
from deepmnn.source.entry import DTYPES
from deepmnn.source.open import EXPORTED
from deepmnn.source.side_files import CONFIG
from deepmnn.source.source import Source
from deepmnn.source.tensor_names import HEAD

FORMAT_VERSION = 1
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DEFAULT = "bf16"

_FLOAT32 = ".e_score_correction_bias"
"""Ends the names of tensors that DeepSeek publishes in float32, and libraries keep so."""


@dataclass(frozen=True)
class Type:
    """How numbers are stored.

    Attributes:
        dtype: of numpy.
        code: in safetensors' words.
        torch_dtype: in config.json's words.
        largest: what it holds.
    """

    dtype: np.dtype[Any]
    code: str
    torch_dtype: str
    largest: float


_BF16_MAX = (2 - 2**-7) * 2.0**127
TYPES = {
    "bf16": Type(np.dtype(ml_dtypes.bfloat16), "BF16", "bfloat16", _BF16_MAX),
    "fp16": Type(np.dtype("<f2"), "F16", "float16", LARGEST_F16),
    "fp32": Type(np.dtype("<f4"), "F32", "float32", math.inf),
}
"""What --type may be, besides compressed-tensors."""


def export_hf(
    source: Source,
    target: str | os.PathLike[str],
    *,
    type: str = DEFAULT,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Writes a model as a plain Hugging Face directory.

    Needs memory for one tensor. Written to a temporary directory and renamed when complete.

    Args:
        source: the model (conversion/kept.py opens one by any name).
        target: the directory to create.
        type: "bf16", "fp16" or "fp32": numbers, rounded to nearest. "compressed-tensors": codes of
            the source as they are (compressed.py), and bf16 where it has none that this holds.
        overwrite: replaces an earlier export.
        progress: called after each tensor.

    Raises UnsupportedModelError (DeepSeek-V4),
    RequestError (the type; or a model without codes that it holds), CheckpointError,
    ConfigError or StorageError.
    """
    began = time.monotonic()
    wanted = check_type(type, (*TYPES, SCHEME))
    if source.config.get("model_type") == "deepseek_v4":
        raise UnsupportedModelError(
            "a model of type deepseek_v4",
            "one whose tensors transformers reads under the names that it has in memory",
            "Use the checkpoint that it was converted from.",
        )
    chosen = TYPES.get(wanted, TYPES[DEFAULT])
    shapes = naive_parts(source)[0].shapes
    schemes = _schemes(source, shapes) if wanted == SCHEME else {}
    fields = {name: _fields(name, shapes[name], chosen, schemes.get(name)) for name in shapes}
    sizes = {name: sum(map(_nbytes, fields[name].values())) for name in shapes}
    shards = plan_shards(sizes.items())
    if len(shards) == 1:
        shards[0].file = SINGLE
    total = sum(sizes.values())
    with DirectoryWriter(Target(target, EXPORTED, overwrite, source.paths)) as writer:
        writer.check_space(total)
        done = 0
        for shard in shards:
            with writer.stream(shard.file) as sink:
                sink.write(_header(shard, fields))
                for name, nbytes in shard.weights:
                    for data in _stored(source, name, _type(name, chosen), schemes.get(name)):
                        sink.write(data)
                    done += nbytes
                    if progress is not None:
                        progress(done, total, name)
        if len(shards) > 1:
            writer.add_file(INDEX, _index(shards, fields, total))
        files = source.side_files() | {CONFIG: _config(source, shapes, chosen, schemes)}
        for name, content in files.items():
            writer.add_file(name, content)
        writer.commit({"format": EXPORTED, "format_version": FORMAT_VERSION})
    contents = f"{len(shapes)} tensors, {chosen.torch_dtype}"
    if schemes:
        contents += f", codes of {len(schemes)} as they were"
    note = _note(source, shapes, schemes, DEFAULT if schemes else wanted)
    return Exported(Path(target), total, contents, note, time.monotonic() - began)


def check_hf(target: str | os.PathLike[str], overwrite: bool, sources: Sequence[Path]) -> None:
    """Raises what `export_hf` raises for a target that it may not write."""
    Target(target, EXPORTED, overwrite, sources).check()


def _type(name: str, chosen: Type) -> Type:
    """The type of one tensor."""
    return TYPES["fp32"] if name.endswith(_FLOAT32) else chosen


def _schemes(source: Source, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Scheme]:
    """How the codes of matrices are stored; those that are numbers are left out."""
    found = {name: Scheme.of(source, name) for name in shapes}
    numbers = {_experts(name) for name, scheme in found.items() if scheme is None}
    schemes = {
        name: scheme
        for name, scheme in found.items()
        if scheme is not None and _experts(name) not in numbers
    }
    if not schemes:
        raise RequestError(
            argument("type", f" is {SCHEME}, and no matrix is in integers or MXFP4"),
            "a model that somebody else quantised to them",
            f"Export numbers: {', '.join(TYPES)}.",
        )
    return schemes


def _experts(name: str) -> str:
    """The experts of one layer, which other programs stack: their matrices have codes all or none.
    Of another matrix its own name.
    """
    layer, experts, _ = name.partition(".experts.")
    return layer + experts


def _fields(name: str, shape: tuple[int, ...], chosen: Type, scheme: Scheme | None) -> Fields:
    """What a tensor of the model is stored in."""
    if scheme is None:
        return {name: (_type(name, chosen).code, shape)}
    rows, cols = shape
    return scheme.fields(name, (rows, cols))


def _nbytes(field: tuple[str, tuple[int, ...]]) -> int:
    code, shape = field
    return math.prod(shape) * DTYPES[code].itemsize


def _header(shard: Shard, fields: Mapping[str, Fields]) -> bytes:
    """safetensors' length and JSON, padded so that numbers are aligned."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for weight, _ in shard.weights:
        for name, field in fields[weight].items():
            end = position + _nbytes(field)
            offsets = [position, end]
            entries[name] = {"dtype": field[0], "shape": list(field[1]), "data_offsets": offsets}
            position = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _stored(source: Source, name: str, type: Type, scheme: Scheme | None) -> Iterator[memoryview]:
    """The bytes of what a tensor is stored in. Raises CheckpointError."""
    if scheme is None:
        numbers = source.read(name)
        check_numbers(name, numbers, type.largest, type.torch_dtype)
        yield _bytes(numbers.astype(type.dtype))
        return
    codes = source.codes(name)
    assert isinstance(codes, KeptCodes)
    check_numbers(name, codes.group_scales(), math.inf, SCHEME)
    rows, cols = source.shape(name)
    for array in scheme.arrays(codes, (rows, cols)):
        yield _bytes(array)


def _bytes(array: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _index(shards: Sequence[Shard], fields: Mapping[str, Fields], total: int) -> bytes:
    weight_map = {
        field: shard.file for shard in shards for name, _ in shard.weights for field in fields[name]
    }
    return _json({"metadata": {"total_size": total}, "weight_map": weight_map})


def _config(
    source: Source,
    shapes: Mapping[str, tuple[int, ...]],
    chosen: Type,
    schemes: Mapping[str, Scheme],
) -> bytes:
    """config.json. It names no code that is not here (auto_map)."""
    gone = {*BLOCKS, "dtype", "torch_dtype", "auto_map"}
    fields = {name: value for name, value in source.config.items() if name not in gone}
    if fields.get("tie_word_embeddings") is True and HEAD in shapes:
        fields["tie_word_embeddings"] = False
    model = "".join(part.title() for part in str(fields["model_type"]).split("_"))
    fields.setdefault("architectures", [f"{model}ForCausalLM"])
    if schemes:
        fields["quantization_config"] = settings(schemes, shapes)
    return _json(fields | {"torch_dtype": chosen.torch_dtype})


def _note(
    source: Source,
    shapes: Mapping[str, tuple[int, ...]],
    schemes: Mapping[str, Scheme],
    wanted: str,
) -> str:
    notes = unread(source, shapes)
    plain = [source.kept_format(name) for name in shapes if name not in schemes]
    others = Counter(format for format in plain if format is not None)
    if others:
        codes = ", ".join(f"{count} in {format}" for format, count in others.most_common())
        kept = "" if schemes else f"; the type {SCHEME} keeps integers and MXFP4"
        notes.append(f"codes that are written as {wanted} numbers: {codes}{kept}")
    if schemes and any(".experts." in name and name not in schemes for name in shapes):
        notes.append(
            "experts are numbers beside codes: transformers does not open that; the type "
            f"{DEFAULT} has no codes"
        )
    if not all(scheme.symmetric for scheme in schemes.values()):
        notes.append(
            "there are zero points: vLLM reads them, transformers does not with compressed-tensors "
            f"0.20; the type {DEFAULT} has no codes"
        )
    if "auto_map" in source.config and source.config["model_type"] == "deepseek":
        notes.append(
            "transformers needs configuration_deepseek.py and modeling_deepseek.py, which "
            "are no part of this; vLLM does not"
        )
    return "; ".join(notes)


def _json(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, indent=2, ensure_ascii=False).encode() + b"\n"
