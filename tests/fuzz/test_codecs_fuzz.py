"""Damaged quantised checkpoints: a typed error or a valid read, nothing else.

The files are sound, what they hold is not: tensors of other names, types, shapes and numbers, and
settings that say something else.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepmnn.errors import DeepmnnError
from deepmnn.formats import F32
from deepmnn.source.entry import BITS
from deepmnn.source.open import open_source
from deepmnn.source.source import Source
from fuzz.mutations import mutate_json, rewrite, with_header

FIXTURES = Path(__file__).parents[1] / "source" / "fixtures"
Tensor = tuple[str, list[int], bytes]
"""Type, shape and data."""


def cases(scheme: str) -> dict[str, tuple[dict[str, Any], dict[str, Tensor]]]:
    """quantization_config and tensors of every case of a scheme."""
    data = (FIXTURES / f"{scheme}.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    configs = json.loads(header.pop("__metadata__")["configs"])
    found: dict[str, tuple[dict[str, Any], dict[str, Tensor]]] = {
        case: (config, {}) for case, config in configs.items()
    }
    for name, item in header.items():
        begin, end = (start + offset for offset in item["data_offsets"])
        case = name.split(".")[0]
        layer = name.replace(case, "layer", 1)
        if not name.endswith(".expected"):
            found[case][1][layer] = (item["dtype"], item["shape"], data[begin:end])
    return found


def mutate(rng: np.random.Generator, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
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
    header, data = {}, b""
    for name, (dtype, shape, part) in tensors.items():
        offsets = [len(data), len(data) + len(part)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        data += part
    return with_header(header, data)


def read_all(path: Path, config: Any, tensors: Mapping[str, Tensor]) -> bool:
    """Whether every weight could be read."""
    rewrite(path / "model.safetensors", file_of(tensors))
    try:
        text = json.dumps({"quantization_config": config}, allow_nan=True)
        rewrite(path / "config.json", text.encode())
        source = open_source(path)
        for name in source.names():
            shape = source.shape(name)
            values = source.read(name)
            assert values.shape == shape
            assert values.dtype == np.float32
            source.sample(name)
            check_kept(source, name, values)
    except DeepmnnError:
        return False
    return True


def check_kept(source: Source, name: str, values: F32) -> None:
    """That codes stand for the numbers, in the format that was announced."""
    codes = source.codes(name)
    assert source.kept_format(name) == (None if codes is None else codes.format)
    if codes is not None:
        numbers = codes.values()[:, : values.shape[1]]
        np.testing.assert_allclose(numbers, values, rtol=2**-11, atol=0)


@pytest.mark.parametrize("count", [300, pytest.param(5000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("scheme", ["gptq", "awq", "bitsandbytes", "modelopt", "hqq", "compressed"])
def test_damaged_checkpoints(tmp_path: Path, scheme: str, count: int) -> None:
    rng = np.random.default_rng(zlib.crc32(scheme.encode()))
    sound = list(cases(scheme).values())
    assert all(read_all(tmp_path, *case) for case in sound)
    results = []
    for _ in range(count):
        config, tensors = sound[int(rng.integers(len(sound)))]
        if rng.integers(3) == 0:
            config = mutate_json(rng, config)
        else:
            tensors = mutate(rng, tensors)
        results.append(read_all(tmp_path, config, tensors))
    assert 0 < sum(results) < 0.8 * count
