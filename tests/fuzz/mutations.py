"""Seeded ways to damage a file."""

import copy
import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np

EXTREMES = (0, 1, 7, 255, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 62, (1 << 64) - 1)
WRONG: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    17,
    1.5,
    math.inf,
    math.nan,
    1 << 31,
    1 << 63,
    1 << 70,
    -(1 << 70),
    "",
    "x",
    "../x",
    "\0",
    "f32",
    "ü" * 300,
    [],
    [[]],
    [1, 2, 3],
    [-1, "x", None],
    {},
    {"a": {}},
)


def mutate_bytes(rng: np.random.Generator, data: bytes) -> bytes:
    """One random damage to bytes: cut, flip, overwrite, insert, delete, splice, giant lengths."""
    size = len(data)
    if not size:
        return rng.bytes(int(rng.integers(100)))
    at = int(rng.integers(size + 1))
    end = min(size, at + int(rng.integers(1, 64)))
    kind = int(rng.integers(8))
    if kind == 0:
        return data[:at]
    if kind == 1:
        flipped = bytearray(data)
        for _ in range(int(rng.integers(1, 4))):
            flipped[int(rng.integers(size))] ^= 1 << int(rng.integers(8))
        return bytes(flipped)
    if kind == 2:
        return data[:at] + rng.bytes(end - at) + data[end:]
    if kind == 3:
        return data[:at] + rng.bytes(int(rng.integers(1, 100))) + data[at:]
    if kind == 4:
        return data[:at] + data[end:]
    if kind == 5:
        other = int(rng.integers(size + 1))
        return data[:at] + data[other : other + end - at] + data[end:]
    if kind == 6:
        return data[:at] + data[at:end] * int(rng.integers(2, 5)) + data[end:]
    width, code = ((4, "<I"), (8, "<Q"))[int(rng.integers(2))]
    number = EXTREMES[int(rng.integers(len(EXTREMES)))] % (1 << 8 * width)
    at = min(at, max(0, size - width))
    return data[:at] + struct.pack(code, number) + data[at + width :]


def mutate_json(rng: np.random.Generator, value: Any) -> Any:
    """A copy of a JSON value with one place replaced, removed, renamed or exchanged."""
    root = [copy.deepcopy(value)]
    places = _places(root)
    container, key = places[int(rng.integers(len(places)))]
    kind = int(rng.integers(6))
    if kind == 0 and container is not root:
        del container[key]
    elif kind == 1 and isinstance(container, dict):
        container[f"{key}x"] = container.pop(key)
    elif kind == 2:
        other, other_key = places[int(rng.integers(len(places)))]
        container[key] = copy.deepcopy(other[other_key])
    elif kind == 3 and isinstance(container[key], int | float):
        container[key] = container[key] * 2 + int(rng.integers(-3, 4))
    else:
        container[key] = copy.deepcopy(WRONG[int(rng.integers(len(WRONG)))])
    return root[0]


def _places(container: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) inside a JSON value."""
    keys = list(container) if isinstance(container, dict) else range(len(container))
    found = [(container, key) for key in keys]
    for key in keys:
        if isinstance(container[key], dict | list):
            found += _places(container[key])
    return found


def rewrite(path: Path, data: bytes) -> None:
    """A file of that name with other bytes: a new one, since cutting one may wait for the disk."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def with_header(header: Any, data: bytes) -> bytes:
    """A safetensors file of a JSON header and data."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data
