"""Damaged PyTorch files: a CheckpointError or a valid read, nothing else."""

import io
from pathlib import Path

import numpy as np
import torch

from deepmnn.checkpoint.torch_file import TorchFile
from deepmnn.errors import CheckpointError
from fuzz.mutations import mutate_bytes

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


def read_all(path: Path, data: bytes) -> bool:
    """Whether every tensor could be read."""
    path.write_bytes(data)
    try:
        file = TorchFile(path)
        for name, entry in file.entries.items():
            array = file.read(name)
            assert array.shape == entry.shape
            assert array.dtype == np.float32
            file.sample(name)
    except CheckpointError:
        return False
    return True


def test_damaged_bytes(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"state_dict": TENSORS}, buffer)
    data = buffer.getvalue()
    assert read_all(tmp_path / "a.pt", data)
    rng = np.random.default_rng(3)
    results = [read_all(tmp_path / "a.pt", mutate_bytes(rng, data)) for _ in range(2000)]
    assert 0 < sum(results) < 800  # padding and the numbers themselves may change unseen


def test_damaged_pickle(tmp_path: Path) -> None:
    """Damage where it matters: the archive stays whole."""
    buffer = io.BytesIO()
    torch.save(TENSORS, buffer)
    data = buffer.getvalue()
    begin = data.index(b"\x80\x02")
    end = data.index(b".PK", begin) + 1
    rng = np.random.default_rng(4)
    results = []
    for _ in range(2000):
        damaged = mutate_bytes(rng, data[begin:end])[: end - begin].ljust(end - begin, b".")
        results.append(read_all(tmp_path / "a.pt", data[:begin] + damaged + data[end:]))
    assert 0 < sum(results) < 1500
