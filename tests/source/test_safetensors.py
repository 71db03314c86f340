"""The safetensors reader against torch and the library, and every way to be malformed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from deepmnn.errors import ArtifactError, CheckpointError
from deepmnn.source.entry import DTYPES
from deepmnn.source.safetensors import read_safetensors
from source_memory import peak_of

TORCH = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
SHAPES = [(3, 5), (1,), (), (0,), (4, 0, 2), (2, 3, 4)]


def header_bytes(header: Any) -> bytes:
    return header if isinstance(header, bytes) else json.dumps(header).encode()


def write(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header_bytes(header)
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize("dtype", TORCH)
def test_decodes_like_torch(tmp_path: Path, dtype: str) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for i, shape in enumerate(SHAPES):
        noise = torch.randn(shape, generator=generator) * 30
        tensors[f"t{i}"] = (noise > 0) if dtype == "BOOL" else noise.abs().to(TORCH[dtype])
    save_file(tensors, tmp_path / "a.safetensors", {"format": "pt"})
    file = read_safetensors(tmp_path / "a.safetensors")
    assert set(file) == set(tensors)
    for name, tensor in tensors.items():
        read = file[name].read()
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, tensor.to(torch.float32).numpy(), strict=True)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_every_fp8_code(tmp_path: Path, dtype: str) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(TORCH[dtype])
    save_file({"x": codes}, tmp_path / "a.safetensors")
    read = read_safetensors(tmp_path / "a.safetensors")["x"].read()
    np.testing.assert_array_equal(read, codes.to(torch.float32).numpy())


def test_sizes_of_all_dtypes(tmp_path: Path) -> None:
    """Dtypes that torch lacks: read as what their bits mean."""
    for dtype, numpy_dtype in DTYPES.items():
        data = np.ones(3).astype(numpy_dtype).tobytes()
        file = write(tmp_path / "a", {"x": entry(dtype, [3], [0, len(data)])}, data)
        np.testing.assert_array_equal(read_safetensors(file)["x"].read(), np.ones(3, np.float32))


def test_unaligned_data_and_sample(tmp_path: Path) -> None:
    values = np.arange(1000, dtype="<f4")
    header = header_bytes({"x": entry(shape=[1000], offsets=[0, 4000])})
    header += b" " * (-(len(header) + 8) % 4 + 1)
    file = read_safetensors(write(tmp_path / "a", header, values.tobytes()))
    np.testing.assert_array_equal(file["x"].read(), values)
    data = values.tobytes()
    assert file["x"].sample() == data[:1024] + data[1488:2512] + data[-1024:]


def test_file_that_shrinks_after_opening(tmp_path: Path) -> None:
    path = write(tmp_path / "a", {"x": entry()}, b"12345678")
    file = read_safetensors(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="changed while it was read"):
        file["x"].read()
    path.unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        file["x"].read()


HUGE = 1 << 62
MALFORMED: dict[str, tuple[Any, bytes, str]] = {
    "not JSON": (b"{", b"", "not valid JSON"),
    "not UTF-8": (b'{"\xff": 1}', b"", "not valid JSON"),
    "a list": ([], b"", "JSON list"),
    "deep": (b"[" * 100_000, b"", "not valid JSON"),
    "duplicate": (b'{"x": 1, "x": 1}', b"", "'x' appears twice"),
    "giant number": (b'{"x": ' + b"9" * 5000 + b"}", b"", "not valid JSON"),
    "entry is a number": ({"x": 3}, b"", "described by 3"),
    "missing field": ({"x": {"dtype": "F32", "shape": [2]}}, b"12345678", "described by"),
    "extra field": ({"x": entry() | {"y": 1}}, b"12345678", "described by"),
    "unknown dtype": ({"x": entry("F5")}, b"12345678", "dtype 'F5'"),
    "dtype is a list": ({"x": entry(["F32"])}, b"12345678", "has dtype"),
    "shape is text": ({"x": entry(shape="2")}, b"12345678", "has shape"),
    "negative size": ({"x": entry(shape=[-2, -1])}, b"12345678", "has shape"),
    "fraction": ({"x": entry(shape=[2.0])}, b"12345678", "has shape"),
    "boolean": ({"x": entry(shape=[True, 2])}, b"12345678", "has shape"),
    "overflowing shape": ({"x": entry(shape=[HUGE, HUGE, 4])}, b"12345678", "has shape"),
    "huge empty shape": ({"x": entry(shape=[0, 1 << 40, 1 << 40], offsets=[0, 0])}, b"", "shape"),
    "many dimensions": ({"x": entry(shape=[1] * 65, offsets=[0, 4])}, b"1234", "has shape"),
    "three offsets": ({"x": entry(offsets=[0, 8, 8])}, b"12345678", "has data_offsets"),
    "negative offset": ({"x": entry(offsets=[-8, 0])}, b"12345678", "has data_offsets"),
    "null offset": ({"x": entry(offsets=[None, 8])}, b"12345678", "has data_offsets"),
    "backwards": ({"x": entry(offsets=[8, 0])}, b"12345678", "has -8 bytes"),
    "wrong size": ({"x": entry(offsets=[0, 4])}, b"1234", "has 4 bytes"),
    "past the end": ({"x": entry(offsets=[0, 8])}, b"1234", "has 4 bytes of data"),
    "far away": ({"x": entry(offsets=[1 << 47, (1 << 47) + 8])}, b"12345678", "begins at byte"),
    "data left over": ({"x": entry()}, b"123456789", "has 9 bytes of data"),
    "data of nobody": ({}, b"1", "has 1 bytes of data"),
    "hole at the start": ({"x": entry(offsets=[4, 12])}, b"123456781234", "begins at byte 4"),
    "hole between": (
        {"x": entry(), "y": entry(offsets=[12, 20])},
        b"1" * 20,
        "'y' begins at byte 12",
    ),
    "overlap": ({"x": entry(), "y": entry(offsets=[4, 12])}, b"1" * 12, "'y' begins at byte 4"),
    "same bytes": ({"x": entry(), "y": entry()}, b"12345678", "begins at byte 0"),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, b"", "__metadata__"),
    "metadata is text": ({"__metadata__": "a"}, b"", "__metadata__"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_headers(tmp_path: Path, case: str) -> None:
    header, data, message = MALFORMED[case]
    path = write(tmp_path / "bad.safetensors", header, data)
    with pytest.raises(CheckpointError, match=message):
        read_safetensors(path)
    with pytest.raises(ArtifactError):
        read_safetensors(path, ArtifactError)


@pytest.mark.parametrize("length", [2, 100, 100_000_001, (1 << 63) + 1, (1 << 64) - 1])
def test_header_length_past_the_end(tmp_path: Path, length: int) -> None:
    with pytest.raises(CheckpointError, match="header"):
        read_safetensors(write(tmp_path / "a", b"{", length=length))


def test_header_of_more_than_100_mb(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with path.open("wb") as file:
        file.write((100_000_001).to_bytes(8, "little"))
        file.truncate(200_000_000)  # sparse
    with pytest.raises(CheckpointError, match="at most 100000000"):
        read_safetensors(path)


@pytest.mark.parametrize("size", range(8))
def test_shorter_than_the_length_field(tmp_path: Path, size: int) -> None:
    (tmp_path / "a").write_bytes(bytes(size))
    with pytest.raises(CheckpointError, match=f"{size} bytes"):
        read_safetensors(tmp_path / "a")


def test_unreadable_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(CheckpointError, match=r"is a directory|is missing"):
            read_safetensors(path)


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":[' + b"{}," * 1_900_000 + b"{}]}",
        b'{"__metadata__":{' + b",".join(b'"%x":"%x"' % (i, i) for i in range(400_000)) + b"}}",
        b"{"
        + b",".join(
            b'"%x":%b' % (i, json.dumps(entry("U8", [0], [0, 0])).encode()) for i in range(200_000)
        )
        + b"}",
        b'{"a":"' + "\U0001f40b".encode() + b"a" * 40_000_000 + b'"}',
    ],
    ids=["objects", "texts", "tensors", "letters"],
)
def test_a_header_that_would_fill_the_memory(tmp_path: Path, header: bytes) -> None:
    """Values take more memory than they are written with; numbers of tensors would pay for them."""
    path = write(tmp_path / "a.safetensors", header)

    def read() -> None:
        with pytest.raises(CheckpointError, match="bytes of memory; expected at most"):
            read_safetensors(path)

    _, peak = peak_of(read)
    assert peak < (64 << 20) + 4 * len(header)
