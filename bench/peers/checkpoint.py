"""A Hugging Face checkpoint of random bf16 weights, for engines that convert one themselves."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepmnn.source.random import RandomSource

NEEDS = ""

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
"""tiny-r1's: exporters need a tokenizer, though the benchmark does not."""


def build(config: Path, out: Path, needed: Path | None, source: Path | None) -> str:
    from deepmnn import models
    from deepmnn.conversion.bundled import CHECKPOINT
    from deepmnn.graph.tensors import tensor_shapes
    from deepmnn.source.random import RandomSource
    from deepmnn.source.side_files import read_config

    shapes = tensor_shapes(models.build(read_config(config)))
    write_safetensors(out / "model.safetensors", shapes, RandomSource(shapes))
    shutil.copyfile(config, out / "config.json")
    for name in TOKENIZER:
        shutil.copyfile(CHECKPOINT / name, out / name)
    return "."


def write_safetensors(path: Path, shapes: dict[str, tuple[int, ...]], source: RandomSource) -> None:
    """Writes one file of bf16 tensors, holding one tensor in memory at a time.

    The format: https://github.com/huggingface/safetensors#format
    """
    import ml_dtypes

    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": (begin, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in shapes:
            file.write(source.read(name).astype(ml_dtypes.bfloat16).tobytes())
