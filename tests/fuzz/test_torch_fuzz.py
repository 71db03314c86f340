"""Damaged PyTorch files: a CheckpointError or a valid read, nothing else."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch

from deepmnn.errors import CheckpointError
from deepmnn.source.torch_file import read_torch
from fuzz.mutations import mutate_bytes, rewrite

BASE = torch.arange(12, dtype=torch.float32).reshape(3, 4)
TENSORS = {
    "a": BASE,
    "transposed": BASE.T,
    "b.weight": torch.ones(4, 4, dtype=torch.bfloat16),
    "c": torch.ones(3, 3).to(torch.float8_e4m3fn),
    "l.experts.gate_up_proj": torch.ones(2, 4, 3),
    "empty": torch.zeros(0, 5),
    "scalar": torch.tensor(3.0),
    "parameter": torch.nn.Parameter(torch.ones(3)),
}
COUNTS = pytest.mark.parametrize("count", [500, pytest.param(2000, marks=pytest.mark.slow)])


def read_all(path: Path, data: bytes) -> bool:
    """Whether every tensor could be read."""
    rewrite(path, data)
    try:
        file = read_torch(path)
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
    buffer = io.BytesIO()
    torch.save({"state_dict": TENSORS}, buffer)
    data = buffer.getvalue()
    assert read_all(tmp_path / "a.pt", data)
    rng = np.random.default_rng(3)
    results = [read_all(tmp_path / "a.pt", mutate_bytes(rng, data)) for _ in range(count)]
    assert 0 < sum(results) < 0.4 * count  # padding and the numbers themselves may change unseen


@COUNTS
def test_damaged_pickle(tmp_path: Path, count: int) -> None:
    """Damage where it matters: the archive stays whole."""
    buffer = io.BytesIO()
    torch.save(TENSORS, buffer)
    data = buffer.getvalue()
    begin = data.index(b"\x80\x02")
    end = data.index(b".PK", begin) + 1
    rng = np.random.default_rng(4)
    results = []
    for _ in range(count):
        damaged = mutate_bytes(rng, data[begin:end])[: end - begin].ljust(end - begin, b".")
        results.append(read_all(tmp_path / "a.pt", data[:begin] + damaged + data[end:]))
    assert 0 < sum(results) < 0.75 * count
