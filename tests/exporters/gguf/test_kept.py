"""Codes that a GGUF type holds leave as they came: to the byte, from a file and from what it was
converted to. The gguf package reads both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType

from deepmnn.conversion.convert import convert
from deepmnn.conversion.kept import original
from deepmnn.errors import CheckpointError
from deepmnn.exporters.exported import Exported
from deepmnn.exporters.gguf.blocks import blocks
from deepmnn.exporters.gguf.export import export_gguf
from deepmnn.formats import KeptCodes
from deepmnn.source.gguf.file import GgufFile
from deepmnn.source.gguf.types import TYPES
from deepmnn.source.open import open_source
from gguf_blocks import drawn
from gguf_files import KEPT, Store, mixed_types, write_gguf
from kept_source import KeptSource
from source.compressed import compress_model, config_of, scheme_of, write
from tiny_models import WHOLE_BLOCKS, checkpoint_of

Q = GGMLQuantizationType


def exported(model: Path, out: Path, **options: Any) -> Exported:
    with original(model) as source:
        return export_gguf(source, out, **options)


def tensors(path: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def same(found: Any, wanted: Any) -> bool:
    return found.tensor_type == wanted.tensor_type and np.array_equal(found.data, wanted.data)


@pytest.mark.parametrize("kind", KEPT)
def test_every_type_is_the_same_to_the_byte(kind: GGMLQuantizationType) -> None:
    """Any bytes that are finite, with either sign of every scale."""
    type = TYPES[int(kind)]
    stored = drawn((31, 3 * type.block), kind).reshape(-1, type.nbytes)
    assert type.groups is not None
    codes = type.groups(stored)
    assert np.array_equal(blocks(codes), stored)


@pytest.mark.parametrize("level", [0, 3])
@pytest.mark.parametrize("model_type", WHOLE_BLOCKS)
def test_a_file_comes_back_to_the_byte(model_type: str, level: int, tmp_path: Path) -> None:
    """But for the halves of kv_b_proj, which are no rows of codes."""
    tiny = checkpoint_of(model_type, WHOLE_BLOCKS[model_type], tmp_path / "hf")
    write_gguf(tiny, tmp_path / "model.gguf", mixed_types)
    convert(tmp_path / "model.gguf", tmp_path / "model", "w8", level, report=False)
    wanted = tensors(tmp_path / "model.gguf")
    for place in (tmp_path / "model", tmp_path / "model.gguf"):
        report = exported(place, tmp_path / "out.gguf", overwrite=True)
        found = tensors(tmp_path / "out.gguf")
        assert found.keys() == wanted.keys()
        others = {name for name in wanted if not same(found[name], wanted[name])}
        assert all(name.endswith(("attn_k_b.weight", "attn_v_b.weight")) for name in others)
        assert all(found[name].tensor_type in (Q.Q8_0, Q.F16) for name in others)
        assert "as they were" in report.contents
        assert "a second time" not in report.note


def test_a_type_that_is_asked_for(tmp_path: Path) -> None:
    tiny = checkpoint_of("llama", WHOLE_BLOCKS["llama"], tmp_path / "hf")
    write_gguf(tiny, tmp_path / "model.gguf", mixed_types)
    report = exported(tmp_path / "model.gguf", tmp_path / "out.gguf", type="Q4_0")
    wanted, found = tensors(tmp_path / "model.gguf"), tensors(tmp_path / "out.gguf")
    of_it = [name for name in wanted if wanted[name].tensor_type == Q.Q4_0]
    assert of_it
    assert all(same(found[name], wanted[name]) for name in of_it)
    assert {tensor.tensor_type for tensor in found.values()} == {Q.Q4_0, Q.Q8_0, Q.F32}
    assert f"codes of {len(of_it)} in Q4_0 as they were" in report.contents
    assert "codes that are rounded a second time, to Q4_0" in report.note
    assert "in q6_k" in report.note
    plain = exported(tmp_path / "model.gguf", tmp_path / "f32.gguf", type="F32")
    assert "a second time" not in plain.note


@pytest.mark.parametrize(("kind", "file_type"), [(Q.Q4_K, 15), (Q.Q6_K, 18), (Q.MXFP4, 38)])
def test_the_file_type_is_that_of_most_numbers(
    kind: GGMLQuantizationType, file_type: int, tmp_path: Path
) -> None:
    tiny = checkpoint_of("llama", WHOLE_BLOCKS["llama"], tmp_path / "hf")
    write_gguf(tiny, tmp_path / "model.gguf", lambda n, v: Q.F32 if v.ndim == 1 else kind)
    exported(tmp_path / "model.gguf", tmp_path / "out.gguf")
    fields = gguf.GGUFReader(tmp_path / "out.gguf").fields
    assert fields["general.file_type"].contents() == file_type


def test_damaged_scales_are_refused(tmp_path: Path) -> None:
    tiny = checkpoint_of("llama", WHOLE_BLOCKS["llama"], tmp_path / "hf")
    path = tmp_path / "model.gguf"
    store: Store = lambda n, v: Q.F32 if v.ndim == 1 else Q.Q4_K  # noqa: E731
    write_gguf(tiny, path, store)
    raw = bytearray(path.read_bytes())
    begin = GgufFile(path).tensors["blk.1.ffn_up.weight"].begin
    raw[begin : begin + 2] = b"\xff\x7f"
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        exported(path, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


# ------------------------------------------------------- integers with a scale and a zero point


@pytest.mark.parametrize("format", ["int4_g32", "int4_g64", "int4_g128", "int4"])
def test_four_bits_with_zero_points_are_q4_1(format: str, tmp_path: Path) -> None:
    """The minimum is a float16; the codes are the same."""
    tiny = checkpoint_of("llama", WHOLE_BLOCKS["llama"], tmp_path / "hf")
    source = KeptSource(open_source(tiny.path), {"*_proj.weight": format})
    report = export_gguf(source, tmp_path / "out.gguf")
    assert "codes of 14 in Q4_1 as they were" in report.contents
    again = open_source(tmp_path / "out.gguf")
    for name in (name for name in source.names() if name.endswith("_proj.weight")):
        codes, found = source.codes(name), again.codes(name)
        assert codes is not None
        assert isinstance(found, KeptCodes)
        assert np.array_equal(found.codes, codes.codes)
        step = np.repeat(codes.group_scales(), codes.codes.shape[1] // codes.scales.shape[1], 1)
        assert (np.abs(again.read(name) - source.read(name)) <= 0.01 * np.abs(step)).all()


@pytest.mark.parametrize(("bits", "type"), [(3, "Q4_0"), (4, "Q4_0"), (6, "Q8_0"), (8, "Q8_0")])
@pytest.mark.parametrize("group", [32, 128, -1])
def test_a_symmetric_scheme_keeps_its_numbers(
    bits: int, type: str, group: int, tmp_path: Path
) -> None:
    """compressed-tensors → ours → GGUF: the library's numbers, to the bit."""
    tiny = checkpoint_of("llama", WHOLE_BLOCKS["llama"], tmp_path / "hf")
    strategy: dict[str, Any] = {"strategy": "channel"}
    if group > 0:
        strategy = {"strategy": "group", "group_size": group}
    scheme = scheme_of("pack-quantized", num_bits=bits, symmetric=True, **strategy)
    state, _ = compress_model(tiny.path, lambda n: scheme if n.endswith("_proj") else None)
    for name in (name for name in state if name.endswith("weight_scale")):
        state[name] = state[name].to(torch.float16)
    write(tmp_path / "hf", state, config_of(scheme), tiny.config)
    convert(tmp_path / "hf", tmp_path / "model", "w8", report=False)
    source = open_source(tmp_path / "hf")
    for place in (tmp_path / "hf", tmp_path / "model"):
        report = exported(place, tmp_path / "out.gguf", overwrite=True)
        assert f"codes of 14 in {type} as they were" in report.contents
        again = open_source(tmp_path / "out.gguf")
        for name in (name for name in source.names() if name.endswith("_proj.weight")):
            assert again.kept_format(name) == type.lower()
            np.testing.assert_array_equal(again.read(name), source.read(name))


def test_eight_bits_with_zero_points_fit_no_type(tmp_path: Path) -> None:
    tiny = checkpoint_of("llama", WHOLE_BLOCKS["llama"], tmp_path / "hf")
    source = KeptSource(open_source(tiny.path), {"*.up_proj.weight": "int8_g32"})
    report = export_gguf(source, tmp_path / "out.gguf")
    assert report.contents.endswith(" tensors, Q8_0")
    assert report.note == "there is no tokenizer: llama.cpp runs it by token ids alone; codes " \
        "that are rounded a second time, to Q8_0: 2 in int8_g32"  # fmt: skip


def test_the_transposed_half_of_kv_b_is_rounded_again(tmp_path: Path) -> None:
    tiny = checkpoint_of("deepseek_v3", WHOLE_BLOCKS["deepseek_v3"], tmp_path / "hf")
    source = KeptSource(open_source(tiny.path), {"*.kv_b_proj.weight": "q4_0"})
    report = export_gguf(source, tmp_path / "out.gguf")
    assert "codes of 2 in Q4_0 as they were" in report.contents
    assert "codes that are rounded a second time, to Q8_0: 2 in q4_0" in report.note
    found = open_source(tmp_path / "out.gguf").read("model.layers.1.self_attn.kv_b_proj.weight")
    wanted = source.read("model.layers.1.self_attn.kv_b_proj.weight")
    keys, values = (np.s_[:, :32], np.s_[:, 32:])
    found, wanted = (each.reshape(4, 96, -1) for each in (found, wanted))
    np.testing.assert_array_equal(found[values], wanted[values])
    assert np.abs(found[keys] - wanted[keys]).max() < 0.005 * np.abs(wanted).max()
