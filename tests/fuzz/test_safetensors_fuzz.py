"""Damaged safetensors files: a CheckpointError or a valid read, nothing else."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from deepmnn.errors import CheckpointError
from deepmnn.source.safetensors import read_safetensors
from fuzz.mutations import mutate_bytes, mutate_json, rewrite, with_header

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b.weight": torch.ones(4, 4, dtype=torch.bfloat16),
    "c": torch.ones(3, 3).to(torch.float8_e4m3fn),
    "empty": torch.zeros(0, 5),
    "scalar": torch.tensor(3.0),
}
FILE = save(TENSORS, {"format": "pt"})
COUNTS = pytest.mark.parametrize("count", [1000, pytest.param(3000, marks=pytest.mark.slow)])


def read_all(path: Path, data: bytes) -> bool:
    """Whether every tensor could be read."""
    rewrite(path, data)
    try:
        file = read_safetensors(path)
        for entry in file.values():
            array = entry.read()
            assert array.shape == entry.shape
            assert array.dtype == np.float32
            entry.sample()
    except CheckpointError:
        return False
    return True


@COUNTS
def test_damaged_bytes(tmp_path: Path, count: int) -> None:
    rng = np.random.default_rng(1)
    assert read_all(tmp_path / "a", FILE)
    results = [read_all(tmp_path / "a", mutate_bytes(rng, FILE)) for _ in range(count)]
    assert 0 < sum(results) < 0.5 * count  # flips inside the numbers cannot be seen


@COUNTS
def test_damaged_headers(tmp_path: Path, count: int) -> None:
    length = int.from_bytes(FILE[:8], "little")
    header, data = json.loads(FILE[8 : 8 + length]), FILE[8 + length :]
    assert read_all(tmp_path / "a", with_header(header, data))
    rng = np.random.default_rng(2)
    results = []
    for _ in range(count):
        damaged = mutate_json(rng, header)
        if rng.integers(3) == 0:
            damaged = mutate_json(rng, damaged)
        results.append(read_all(tmp_path / "a", with_header(damaged, data)))
    assert 0 < sum(results) < count / 3
