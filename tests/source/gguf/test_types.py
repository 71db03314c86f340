"""Every type of the gguf package, to the bit, on random bytes; memory of a large tensor."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter

from deepmnn.errors import MissingDependencyError
from deepmnn.source.gguf.file import GgufFile
from deepmnn.source.gguf.groups import U8
from deepmnn.source.gguf.types import TYPES
from source_memory import peak_of

NO_ORACLE = {"Q8_1", "Q8_K", "Q1_0", "Q2_0"}
"""What the package does not decode: below, number by number, as ggml-quants.c does."""

PLAIN = {"F64": "<f8", "I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}

BLOCKS = 700


def random_blocks(nbytes: int) -> U8:
    return np.random.default_rng(nbytes).integers(0, 256, (BLOCKS, nbytes), dtype=np.uint8)


def assert_same_bits(got: Any, want: Any) -> None:
    """Equal, -0 and all; where one is NaN both are."""
    assert got.dtype == np.float32
    nan = np.isnan(want)
    np.testing.assert_array_equal(np.isnan(got), nan)
    np.testing.assert_array_equal(got[~nan].view(np.uint32), want[~nan].view(np.uint32))


def test_every_type_of_the_package_is_known() -> None:
    for kind, (block, nbytes) in GGML_QUANT_SIZES.items():
        ours = TYPES[int(kind)]
        assert (ours.name, ours.block) == (kind.name, block)
        assert ours.nbytes == (36 if kind.name == "Q8_1" else nbytes)  # ggml's; the package is old


@pytest.mark.parametrize("kind", [k for k in TYPES.values() if k.name not in NO_ORACLE])
def test_numbers_are_the_package_s(kind: Any) -> None:
    blocks = random_blocks(kind.nbytes)
    with np.errstate(all="ignore"):
        if kind.name in PLAIN:
            want = blocks.view(PLAIN[kind.name]).astype(np.float32)
        else:
            want = gguf.dequantize(blocks, GGMLQuantizationType(kind.number))
    got = kind.values(blocks)
    assert got.shape == (BLOCKS, kind.block)
    assert_same_bits(got, want.reshape(got.shape))


@pytest.mark.parametrize("name", sorted(NO_ORACLE))
def test_numbers_of_other_types_are_ggml_s(name: str) -> None:
    """dequantize_row_q1_0, q2_0, q8_K; q8_1 is q8_0 with a sum."""
    (kind,) = (kind for kind in TYPES.values() if kind.name == name)
    blocks = random_blocks(kind.nbytes)
    got = kind.values(blocks)
    for block, row in zip(blocks, got, strict=True):
        size = 4 if name == "Q8_K" else 2
        scale = np.float32(block[:size].view("<f4" if size == 4 else "<f2")[0])
        codes = block[4 if name == "Q8_1" else size :]
        with np.errstate(all="ignore"):
            for j, number in enumerate(row):
                if name == "Q1_0":
                    level = 1 if codes[j // 8] >> (j % 8) & 1 else -1
                elif name == "Q2_0":
                    level = int(codes[j // 4] >> (j % 4 * 2) & 3) - 1
                else:
                    level = int(codes.view(np.int8)[j])
                want = np.float32(level) * scale
                assert number == want or np.isnan([number, want]).all()


def test_types_without_the_package_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    needing = [kind for kind in TYPES.values() if kind.needs_package]
    assert {kind.name[:3] for kind in needing} == {"IQ1", "IQ2", "IQ3"}
    for kind in TYPES.values():
        if kind not in needing:
            kind.check_readable()
            continue
        with pytest.raises(MissingDependencyError, match=r'pip install "deepmnn\[gguf\]"'):
            kind.check_readable()


def test_a_tensor_takes_little_more_than_its_float32(tmp_path: Path) -> None:
    rows, columns = 2048, 4096
    data = np.random.default_rng(0).integers(0, 256, (rows, columns // 256 * 144), np.uint8)
    writer = GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_tensor("t", data, raw_dtype=GGMLQuantizationType.Q4_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensor = GgufFile(tmp_path / "a.gguf").tensors["t"]
    for order in (None, np.arange(rows)[::-1]):
        values, peak = peak_of(lambda order=order: tensor.read(order))
        assert values.shape == (rows, columns)
        assert peak < values.nbytes + (12 << 20)
    with np.errstate(all="ignore"):
        want = gguf.dequantize(data, GGMLQuantizationType.Q4_K)
    assert_same_bits(tensor.read(), want)
    assert_same_bits(values, want[::-1])
