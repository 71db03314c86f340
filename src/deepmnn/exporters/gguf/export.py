"""A source → one GGUF file that llama.cpp runs."""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deepmnn.conversion.naive import naive_parts
from deepmnn.conversion.write import Progress
from deepmnn.errors import CheckpointError
from deepmnn.exporters.exported import Exported, check_type, unread
from deepmnn.exporters.gguf.file import GgufFile, GgufPlace
from deepmnn.exporters.gguf.metadata import Value, metadata
from deepmnn.exporters.gguf.tensors import GgufTensor, gguf_tensors
from deepmnn.exporters.gguf.tokenizer import Vocabulary, vocabulary
from deepmnn.exporters.gguf.types import (
    DEFAULT,
    TYPES,
    Encoder,
    encoders,
    file_type,
    library,
)
from deepmnn.models import read_config
from deepmnn.source.gguf.names import architecture
from deepmnn.source.source import Source
from deepmnn.text.generation_config import GenerationConfig
from deepmnn.text.text_files import TextFiles
from deepmnn.text.tokenizer import FILE as TOKENIZER
from deepmnn.text.tokenizer import Tokenizer

_BY_LLAMA_CPP = (
    "Other types, K-quants among them, are made by llama.cpp's llama-quantize, of a BF16 file."
)


def export_gguf(
    source: Source,
    target: str | os.PathLike[str],
    *,
    type: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Writes a model as one GGUF file.

    Needs memory for one tensor of the source. Written under another name and renamed when complete.

    Args:
        source: the model (conversion/kept.py opens one by any name).
        target: the file to create, which ends in .gguf.
        type: one of TYPES: of matrices, but for those that another one fits better (types.py).
            Codes of this type stay as they are. None: codes of every type of GGUF stay as they
            are, and other matrices get DEFAULT.
        overwrite: replaces an earlier export.
        progress: called after each tensor.

    Raises UnsupportedModelError (what llama.cpp does not compute), RequestError (the type),
    TokenizerError, MissingDependencyError (the gguf package), CheckpointError, ConfigError or
    StorageError.
    """
    began = time.monotonic()
    wanted = None if type is None else check_type(type, TYPES, _BY_LLAMA_CPP)
    gguf = library()
    name = architecture(source.config.get("model_type"))
    config = read_config(source.config)
    facts = metadata(name, config)
    naive, _ = naive_parts(source)
    text = _vocabulary(source, config.vocab_size)
    place = GgufPlace(target, overwrite, source.paths)
    shapes = naive.shapes
    tensors = gguf_tensors(name, config, shapes)
    encoder_of = encoders(tensors, wanted, source)
    kind = file_type(encoder_of, tensors, wanted or DEFAULT)
    keys = _general(place.path, kind) | {f"{name}.{key}": v for key, v in facts.fields.items()}
    keys |= {f"tokenizer.{key}": value for key, value in text.fields.items()}
    writer = gguf.GGUFWriter(None, name)
    for key, value in keys.items():
        _add(writer, key, value)
    total = _add_infos(writer, tensors, encoder_of)
    done = 0
    with GgufFile(place) as file:
        file.begin(writer, total)
        for tensor in tensors:
            nbytes = _write(file, tensor, encoder_of[tensor.name], source)
            done += nbytes
            if progress is not None:
                progress(done, total, tensor.name)
        file.finish()
    notes = [*facts.notes, *text.notes, *_rounded_again(encoder_of), *unread(source, shapes)]
    if naive.draft is not None:
        notes.append("multi-token-prediction layers are left out")
    contents = f"{len(tensors)} tensors, {_types(encoder_of, wanted or DEFAULT)}"
    return Exported(place.path, total, contents, "; ".join(notes), time.monotonic() - began)


def check_gguf(target: str | os.PathLike[str], overwrite: bool, sources: Sequence[Path]) -> None:
    """Raises what `export_gguf` raises for a target that it may not write, and for a missing
    package.
    """
    library()
    GgufPlace(target, overwrite, sources).check()


def _types(encoder_of: Mapping[str, Encoder], type: str) -> str:
    """What matrices are stored as, in a few words."""
    kept = Counter(encoder.type for encoder in encoder_of.values() if encoder.keeps)
    if not kept:
        return type
    codes = " and ".join(f"{count} in {name}" for name, count in kept.most_common())
    return f"codes of {codes} as they were"


def _rounded_again(encoder_of: Mapping[str, Encoder]) -> list[str]:
    """A note on codes that are not kept."""
    again = [encoder for encoder in encoder_of.values() if encoder.rounds_again]
    if not again:
        return []
    formats = Counter(str(encoder.format) for encoder in again).most_common()
    codes = ", ".join(f"{count} in {format}" for format, count in formats)
    types = " and ".join(sorted({encoder.type for encoder in again}))
    return [f"codes that are rounded a second time, to {types}: {codes}"]


def _general(path: Path, file_type: int) -> dict[str, Value]:
    gguf = library()
    return {
        "general.type": "model",
        "general.name": path.stem,
        "general.file_type": file_type,
        "general.quantization_version": int(gguf.GGML_QUANT_VERSION),
    }


def _vocabulary(source: Source, vocab_size: int) -> Vocabulary:
    files = source.side_files()
    with tempfile.TemporaryDirectory(prefix="deepmnn-tokenizer-") as folder:
        for name, data in files.items():
            (Path(folder) / name).write_bytes(data)
        texts = TextFiles(folder)
        tokenizer = Tokenizer(texts) if TOKENIZER in files else None
        ends = GenerationConfig.read(texts, source.config).eos_ids
        return vocabulary(tokenizer, vocab_size, source.config, ends)


def _add(writer: Any, key: str, value: Value | list[Any]) -> None:
    """A key with the type that llama.cpp expects of its values."""
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case list():
            writer.add_array(key, value)


def _add_infos(
    writer: Any, tensors: Sequence[GgufTensor], encoder_of: Mapping[str, Encoder]
) -> int:
    """Names, shapes and types of the tensors; → bytes of all."""
    gguf = library()
    total = 0
    for tensor in tensors:
        encoder = encoder_of[tensor.name]
        nbytes = encoder.nbytes(tensor.shape)
        kind = gguf.GGMLQuantizationType[encoder.type]
        writer.add_tensor_info(tensor.name, tensor.shape, None, nbytes, raw_dtype=kind)
        total += nbytes
    return total


def _write(file: GgufFile, tensor: GgufTensor, encoder: Encoder, source: Source) -> int:
    """Streams a tensor; → its bytes. Raises CheckpointError."""
    written = 0
    for data in encoder.encode(tensor, source):
        file.write(data.data)
        written += data.nbytes
    if written != encoder.nbytes(tensor.shape):
        raise CheckpointError(
            f"{tensor.name} has {written} bytes", f"{encoder.nbytes(tensor.shape)}"
        )
    file.pad(written)
    return written
