"""A quantised checkpoint: sound files whose tensors and settings are not.

Tensors have other names, types, shapes and numbers, settings say something else, and an index names
files that are not there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deepmnn.formats import F32
from deepmnn.source.entry import BITS
from deepmnn.source.open import open_source
from deepmnn.source.source import Source
from fuzz.mutations import with_header
from fuzz.parts import PartsTarget

FIXTURES = Path(__file__).parents[2] / "source" / "fixtures"
SCHEMES = ("gptq", "awq", "bitsandbytes", "modelopt", "hqq", "compressed")
Tensor = tuple[str, list[int], bytes]
"""Type, shape and data."""


class Checkpoint(PartsTarget):
    """A directory of a checkpoint."""

    names = (
        "config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    )

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        for scheme in SCHEMES:
            for config, tensors in cases(scheme):
                text = json.dumps({"quantization_config": config}).encode()
                parts = {"config.json": text, "model.safetensors": file_of(tensors)}
                self.seeds.append(self.pack(parts))
        first = {"a.weight": ("F32", [2], bytes(8))}, {"b.weight": ("BF16", [2, 2], bytes(8))}
        shards = dict(zip(self.names[3:], map(file_of, first), strict=True))
        index = {"weight_map": {"a.weight": self.names[3], "b.weight": self.names[4]}}
        parts = {"config.json": b"{}", self.names[2]: json.dumps(index).encode()}
        self.seeds.append(self.pack(parts | shards))

    def use(self) -> None:
        source = open_source(self.model)
        for name in source.names():
            values = source.read(name)
            assert values.shape == source.shape(name)
            assert values.dtype == np.float32
            source.sample(name)
            check_kept(source, name, values)

    def mutate_part(self, rng: np.random.Generator, name: str, data: bytes) -> bytes:
        if name.endswith(".json") or rng.integers(4) == 0:
            return super().mutate_part(rng, name, data)
        try:
            return file_of(mutated(rng, tensors_of(data)))
        except (ValueError, TypeError, KeyError, AttributeError):
            return super().mutate_part(rng, name, data)


def cases(scheme: str) -> list[tuple[dict[str, Any], dict[str, Tensor]]]:
    """quantization_config and tensors of every case of a scheme."""
    data = (FIXTURES / f"{scheme}.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    configs = json.loads(header["__metadata__"]["configs"])
    found: dict[str, tuple[dict[str, Any], dict[str, Tensor]]] = {
        case: (config, {}) for case, config in configs.items()
    }
    for name, tensor in tensors_of(data).items():
        case = name.split(".")[0]
        if not name.endswith(".expected"):
            found[case][1][name.replace(case, "layer", 1)] = tensor
    return list(found.values())


def tensors_of(data: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    found = {}
    for name, item in header.items():
        begin, end = (start + offset for offset in item["data_offsets"])
        found[name] = (item["dtype"], item["shape"], data[begin:end])
    return found


def mutated(rng: np.random.Generator, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One tensor removed, renamed, copied, cut, of another type, shape or other numbers."""
    damaged = dict(tensors)
    names = list(damaged)
    name, other = (names[int(rng.integers(len(names)))] for _ in range(2))
    dtype, shape, data = damaged[name]
    kind = int(rng.integers(7))
    if kind == 0:
        del damaged[name]
    elif kind == 1:
        damaged[name + "x"] = damaged.pop(name)
    elif kind == 2:
        damaged[name] = damaged[other]
    elif kind == 3:
        same = [each for each, bits in BITS.items() if bits == BITS[dtype]]
        damaged[name] = (same[int(rng.integers(len(same)))], shape, data)
    elif kind == 4:
        shapes = [[math.prod(shape)], shape[::-1], [1, *shape], [*shape, 1]]
        damaged[name] = (dtype, shapes[int(rng.integers(4))], data)
    elif kind == 5 and shape:
        row = len(data) // max(1, shape[0])
        keep = int(rng.integers(shape[0] + 1))
        damaged[name] = (dtype, [keep, *shape[1:]], data[: keep * row])
    elif data:
        numbers = np.frombuffer(data, np.uint8).copy()
        numbers[rng.integers(len(numbers), size=3)] = rng.choice([0, 1, 127, 128, 255], 3)
        damaged[name] = (dtype, shape, numbers.tobytes())
    return damaged


def file_of(tensors: Mapping[str, Tensor]) -> bytes:
    """A sound safetensors file."""
    header, data = {}, b""
    for name, (dtype, shape, part) in tensors.items():
        offsets = [len(data), len(data) + len(part)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        data += part
    return with_header(header, data)


def check_kept(source: Source, name: str, values: F32) -> None:
    """That codes stand for the numbers, in the format that was announced."""
    codes = source.codes(name)
    assert source.kept_format(name) == (None if codes is None else codes.format)
    if codes is not None:
        numbers = codes.values()[:, : values.shape[1]]
        np.testing.assert_allclose(numbers, values, rtol=2**-11, atol=0)
