"""PyTorch files against torch itself: layouts, wrappers, and everything that must be refused."""

import argparse
import os
import subprocess
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepmnn.errors import CheckpointError
from deepmnn.source.entry import Entry
from deepmnn.source.store import Store
from deepmnn.source.torch_file import read_torch

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]
SHAPES = [(3, 5), (1,), (), (0,), (4, 0, 2), (2, 3, 4), (1, 7, 1)]


def saved(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


def assert_reads(file: dict[str, Entry], tensors: dict[str, torch.Tensor]) -> None:
    """Every tensor has the values that torch gives it."""
    assert set(file) == set(tensors)
    for name, tensor in tensors.items():
        want = tensor.detach().to(torch.float32).numpy()
        np.testing.assert_array_equal(file[name].read(), want, err_msg=name, strict=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_decodes_like_torch(tmp_path: Path, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for i, shape in enumerate(SHAPES):
        noise = torch.randn(shape, generator=generator) * 30
        tensors[f"t{i}"] = (noise > 0) if dtype == torch.bool else noise.abs().to(dtype)
    assert_reads(read_torch(saved(tmp_path / "a.pt", tensors)), tensors)


def test_views_of_one_storage(tmp_path: Path) -> None:
    base = torch.arange(60, dtype=torch.float32).reshape(5, 12)
    tensors = {
        "base": base,
        "same": base,
        "transposed": base.T,
        "rows": base[1:4],
        "column": base[:, 7],
        "strided": base[::2, 1::3],
        "permuted": base.reshape(3, 4, 5).permute(2, 0, 1),
        "repeated": base[0, 3].expand(4, 6),
        "half": base.half().T,
        "parameter": torch.nn.Parameter(base[2]),
    }
    file = read_torch(saved(tmp_path / "a.pt", tensors))
    assert_reads(file, tensors)
    assert file["transposed"].read().flags.c_contiguous
    assert len({entry.storage for entry in file.values()}) == 2


def test_sample_is_of_the_stored_bytes(tmp_path: Path) -> None:
    values = torch.arange(1000, dtype=torch.float32)
    file = read_torch(saved(tmp_path / "a.pt", {"x": values, "y": values[:3], "z": values[:0]}))
    data = values.numpy().tobytes()
    assert file["x"].sample() == data[:1024] + data[1488:2512] + data[-1024:]
    assert file["y"].sample() == data[:12] * 3
    assert file["z"].sample() == b""


STATE = {"a": torch.ones(2, 3), "b": torch.zeros(4)}


@pytest.mark.parametrize(
    "value",
    [
        STATE,
        OrderedDict(STATE),
        {"state_dict": STATE, "epoch": 3, "lr": 0.1, "loss": torch.tensor(2.5)},
        {"model": STATE, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}},
        {"model": {"state_dict": STATE}, "iteration": 7},
        {"model_state_dict": STATE, "model": "llama"},
        {"module": OrderedDict(STATE), "model": {}},
        STATE | {"version": 3, "note": "text", "list": [torch.ones(1)], 7: torch.ones(1)},
    ],
    ids=["dict", "ordered", "state_dict", "model", "nested", "text", "deepspeed", "extras"],
)
def test_wrappers(tmp_path: Path, value: Any) -> None:
    assert_reads(read_torch(saved(tmp_path / "a.pt", value)), STATE)


def test_experts_as_transformers_holds_them(tmp_path: Path) -> None:
    gate_up, down = torch.randn(3, 10, 7), torch.randn(3, 7, 5)
    shared = torch.randn(5, 7)
    state = {
        "l.experts.gate_up_proj": gate_up.transpose(1, 2).contiguous().transpose(1, 2),
        "l.experts.down_proj": down,
        "l.shared_experts.down_proj.weight": shared,
        "l.mlp.down_proj": down,
    }
    want = {"l.shared_experts.down_proj.weight": shared, "l.mlp.down_proj": down}
    for expert in range(3):
        of = f"l.experts.{expert}"
        want[f"{of}.gate_proj.weight"] = gate_up[expert, :5]
        want[f"{of}.up_proj.weight"] = gate_up[expert, 5:]
        want[f"{of}.down_proj.weight"] = down[expert]
    store = Store(saved(tmp_path / "a.pt", state))
    assert sorted(store.names()) == sorted(want)
    for name, tensor in want.items():
        np.testing.assert_array_equal(store.read(name), tensor.numpy(), strict=True)


def test_a_dtype_that_is_not_read_hurts_only_its_reader(tmp_path: Path) -> None:
    file = read_torch(saved(tmp_path / "a.pt", {"x": torch.ones(2), "c": torch.ones(2) * 1j}))
    assert file["x"].read().tolist() == [1, 1]
    with pytest.raises(CheckpointError, match="dtype C64"):
        file["c"].read()


# ------------------------------------------------------------------------------------- refused


class Hostile:
    """A pickle that runs a command when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


def test_a_hostile_pickle_never_runs(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    path = saved(tmp_path / "a.pt", STATE | {"z": Hostile(marker)})
    with pytest.raises(CheckpointError, match=r"posix\.system.*state_dict\(\)"):
        read_torch(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists(), "the file is harmless: this test shows nothing"


def script(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates TorchScript
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), path)


def rezipped(path: Path, compression: int, byteorder: bytes = b"little") -> None:
    torch.save(STATE, path)
    with zipfile.ZipFile(path) as old:
        records = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", compression) as new:
        for name, data in records.items():
            new.writestr(name, byteorder if name.endswith("byteorder") else data)


def legacy(path: Path) -> None:
    torch.save(STATE, path, _use_new_zipfile_serialization=False)


def recursive(path: Path) -> None:
    state: dict[str, Any] = {"x": 1}
    torch.save(state | {"model": state | {"model": state}}, path)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a module": (lambda p: torch.save(torch.nn.Linear(2, 3), p), r"whole model.*state_dict\(\)"),
    "arguments": (lambda p: torch.save({"args": argparse.Namespace()}, p), "argparse.Namespace"),
    "a tensor": (lambda p: torch.save(torch.ones(2), p), "holds a Tensor"),
    "a list": (lambda p: torch.save([torch.ones(2)], p), "holds a list"),
    "nothing": (lambda p: torch.save({}, p), "holds a dict"),
    "no tensors": (lambda p: torch.save({"epoch": 1}, p), "the keys 'epoch'"),
    "itself": (recursive, "the keys 'x', 'model'"),
    "sparse": (lambda p: torch.save({"a": torch.eye(3).to_sparse()}, p), "sparse_coo"),
    "meta": (lambda p: torch.save({"a": torch.ones(2, device="meta")}, p), "has no numbers"),
    "endless": (lambda p: torch.save({"a": torch.ones(1).expand(1 << 40)}, p), "repeats 1 numbers"),
    "TorchScript": (script, "TorchScript"),
    "legacy": (legacy, r"torch before 1\.6.*torch\.save\(torch\.load"),
    "compressed": (lambda p: rezipped(p, zipfile.ZIP_DEFLATED), "compressed"),
    "big-endian": (lambda p: rezipped(p, zipfile.ZIP_STORED, b"big"), "big-endian"),
    "empty": (lambda p: p.write_bytes(b""), "is empty"),
    "zeros": (lambda p: p.write_bytes(bytes(5000)), "begins with"),
    "text": (lambda p: p.write_text("<!DOCTYPE html>"), "begins with b'<!DOCTYPE"),
    "PK": (lambda p: p.write_bytes(b"PK"), "no whole zip archive"),
    "a directory": (lambda p: p.mkdir(), "is a directory"),
    "missing": (lambda p: None, "is missing"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, case: str) -> None:
    make, message = REFUSED[case]
    make(tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=message) as caught:
        read_torch(tmp_path / "a.pt")
    assert "\n" not in str(caught.value)


def test_truncated_anywhere(tmp_path: Path) -> None:
    data = saved(tmp_path / "whole.pt", STATE).read_bytes()
    for size in range(0, len(data), 37):
        (tmp_path / "a.pt").write_bytes(data[:size])
        with pytest.raises(CheckpointError):
            read_torch(tmp_path / "a.pt")


def test_file_that_shrinks_after_opening(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", STATE)
    file = read_torch(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="changed while it was read"):
        file["a"].read()
    path.unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        file["a"].read()


def test_without_torch(tmp_path: Path) -> None:
    """Nothing imports it: files are read where it is not installed."""
    code = """
import sys
from pathlib import Path
sys.modules["torch"] = None
from deepmnn.source.torch_file import read_torch
print(read_torch(Path(sys.argv[1]))["a"].read().sum())
"""
    path = saved(tmp_path / "a.pt", STATE)
    run = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert (run.stdout, run.stderr) == ("6.0\n", "")


def test_zipped_again(tmp_path: Path) -> None:
    """Records may lie anywhere: the archive's directory says where."""
    rezipped(tmp_path / "a.pt", zipfile.ZIP_STORED)
    assert_reads(read_torch(tmp_path / "a.pt"), STATE)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_protocols(tmp_path: Path, protocol: int) -> None:
    torch.save(STATE | {"epoch": (1, [2.5, {3}])}, tmp_path / "a.pt", pickle_protocol=protocol)
    assert_reads(read_torch(tmp_path / "a.pt"), STATE)


def test_memory_is_that_of_one_tensor(tmp_path: Path) -> None:
    count, rows = 24, 1 << 18
    saved(tmp_path / "a.pt", {f"t{i}": torch.ones(rows, 4) for i in range(count)})
    code = f"""
import resource, sys
from pathlib import Path
from deepmnn.source.entry import Entry
from deepmnn.source.torch_file import read_torch
file = read_torch(Path(sys.argv[1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert sum(int(file[name].read()[-1, -1]) for name in file) == {count}
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    run = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.pt"], capture_output=True, text=True, check=True
    )
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(run.stdout) * unit < 4 * rows * 16
