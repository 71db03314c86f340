"""Codes as compressed-tensors, against the library: it made them, and it reads what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from compressed_tensors.quantization import QuantizationConfig
from gguf import GGMLQuantizationType as Q
from safetensors.torch import load_file

from deepmnn.conversion.convert import convert
from deepmnn.conversion.kept import original
from deepmnn.errors import RequestError
from deepmnn.exporters.exported import Exported
from deepmnn.exporters.hf.export import export_hf
from deepmnn.source.open import open_source
from gguf_files import write_gguf
from parity import relative_error
from source.compressed import State, compress_model, config_of, scheme_of, write
from tiny_models import WHOLE_BLOCKS, TinyModel, checkpoint_of

IDS = [(13 * n) % 97 for n in range(23)]
FIELDS = WHOLE_BLOCKS["llama"]
MX: dict[str, Any] = {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}
MX |= {"scale_dtype": "torch.uint8"}


def exported(model: Path, out: Path, **options: Any) -> Exported:
    with original(model) as source:
        return export_hf(source, out, type="compressed-tensors", **options)


def compressed(path: Path, **wanted: Any) -> tuple[TinyModel, State]:
    """A model whose projections the library quantised, with float16 scales."""
    tiny = checkpoint_of("llama", FIELDS, path)
    form = "mxfp4-pack-quantized" if wanted.get("type") == "float" else "pack-quantized"
    scheme = scheme_of(form, **wanted)
    state, _ = compress_model(path, lambda name: scheme if name.endswith("_proj") else None)
    for name, tensor in state.items():
        if name.endswith("weight_scale") and tensor.dtype == torch.float32:
            state[name] = tensor.to(torch.float16)
    write(path, state, config_of(scheme), tiny.config)
    return tiny, state


def logits(path: Path) -> np.ndarray:
    """Of transformers, which has the library decompress the weights."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path, attn_implementation="eager", dtype=torch.float32
    )
    with torch.no_grad():
        return np.asarray(model(input_ids=torch.tensor([IDS])).logits[0].float())


CASES: dict[str, dict[str, Any]] = {
    **{
        f"int{bits}, {size or 'rows'}, {'symmetric' if symmetric else 'zero points'}": {
            "num_bits": bits,
            "symmetric": symmetric,
            **({"strategy": "group", "group_size": size} if size else {"strategy": "channel"}),
        }
        for bits in (4, 8)
        for size in (32, 128, 256, 0)
        for symmetric in (True, False)
    },
    "MXFP4": MX,
}


@pytest.mark.parametrize("case", CASES)
def test_codes_come_back_as_the_library_stored_them(case: str, tmp_path: Path) -> None:
    _, state = compressed(tmp_path / "hf", **CASES[case])
    convert(tmp_path / "hf", tmp_path / "model", "w8", report=False)
    for place in (tmp_path / "hf", tmp_path / "model"):
        report = exported(place, tmp_path / "out", overwrite=True)
        assert report.contents.endswith("bfloat16, codes of 14 as they were")
        found = load_file(tmp_path / "out" / "model.safetensors")
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        scheme = QuantizationConfig.model_validate(config["quantization_config"])
        # A row of one group is a row without groups.
        assert len(scheme.config_groups) == (2 if CASES[case].get("group_size") == 256 else 1)
        for name in found:
            if "weight_" in name:
                assert torch.equal(found[name], state[name]), name
        assert found.keys() == state.keys()
        again, source = open_source(tmp_path / "out"), open_source(tmp_path / "hf")
        for name in (name for name in source.names() if name.endswith("_proj.weight")):
            assert again.kept_format(name) == source.kept_format(name)
            np.testing.assert_array_equal(again.read(name), source.read(name))


@pytest.mark.parametrize(
    "case", ["int4, 128, symmetric", "int8, 32, symmetric", "int8, rows, symmetric"]
)
def test_transformers_gives_the_same_logits(case: str, tmp_path: Path) -> None:
    """Those of deepmnn's numbers; plain matrices are bf16 in both.

    With zero points transformers loads nothing of compressed-tensors 0.20.1, the library's own
    files neither: it makes room for them unpacked.
    """
    compressed(tmp_path / "hf", **CASES[case])
    convert(tmp_path / "hf", tmp_path / "model", "w8", report=False)
    exported(tmp_path / "model", tmp_path / "out")
    with original(tmp_path / "out") as source:
        export_hf(source, tmp_path / "plain", type="fp32")
    assert relative_error(logits(tmp_path / "out"), logits(tmp_path / "plain")) < 2e-3


def test_blocks_of_gguf_are_groups_of_32(tmp_path: Path) -> None:
    """Q4_0, Q8_0 and MXFP4 have a place there; other types are numbers, with a note."""
    tiny = checkpoint_of("llama", FIELDS, tmp_path / "hf")
    kinds = {"gate": Q.Q4_0, "up": Q.Q4_0, "down": Q.Q8_0, "output": Q.MXFP4, "attn_v": Q.Q5_1}

    def store(name: str, values: np.ndarray) -> Q:
        found = (kind for part, kind in kinds.items() if part in name and values.ndim == 2)
        return next(found, Q.F32 if "norm" in name else Q.Q8_0)

    write_gguf(tiny, tmp_path / "model.gguf", store)
    convert(tmp_path / "model.gguf", tmp_path / "model", "w8", report=False)
    report = exported(tmp_path / "model", tmp_path / "out")
    assert "codes of 12 as they were" in report.contents
    assert "codes that are written as bf16 numbers: 2 in q5_1" in report.note
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    groups = QuantizationConfig.model_validate(config).config_groups.values()
    targets = {(g.format, g.weights.num_bits): g.targets for g in groups if g.weights}
    assert targets[("pack-quantized", 8)] == ["Linear"]
    assert len(targets[("pack-quantized", 4)]) == 4
    assert len(targets[("mxfp4-pack-quantized", 4)]) == 2
    assert {name.rpartition(".")[2] for name in config["ignore"]} == {"lm_head", "v_proj"}
    again, source = open_source(tmp_path / "out"), open_source(tmp_path / "model.gguf")
    for part in ("gate", "down", "o", "q"):
        name = f"model.layers.1.{'mlp' if len(part) > 1 else 'self_attn'}.{part}_proj.weight"
        np.testing.assert_array_equal(again.read(name), source.read(name))


def test_a_model_without_such_codes_is_refused(tmp_path: Path) -> None:
    checkpoint_of("llama", FIELDS, tmp_path / "hf")
    with pytest.raises(RequestError, match=r"no matrix is in integers or MXFP4.*bf16, fp16, fp32"):
        exported(tmp_path / "hf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


FIXTURES = Path(__file__).parents[2] / "source" / "fixtures"


def test_experts_have_codes_all_or_none(tmp_path: Path) -> None:
    """Act-order leaves only the codes of down_proj, and programs stack the experts of a layer."""
    report = exported(FIXTURES / "gptq-deepseek_v3", tmp_path / "out")
    assert "codes that are written as bf16 numbers" in report.note
    names = load_file(tmp_path / "out" / "model.safetensors")
    assert not [name for name in names if ".experts." in name and "packed" in name]
    assert "experts are numbers beside codes: transformers does not open that" in report.note
    with original(tmp_path / "out") as again, original(FIXTURES / "gptq-deepseek_v3") as source:
        name = "model.layers.1.mlp.shared_experts.down_proj.weight"
        assert np.array_equal(again.read(name), source.read(name))


def test_what_becomes_of_codes_is_said(tmp_path: Path) -> None:
    awq = FIXTURES / "awq-qwen2"
    assert "zero points: vLLM reads them" in exported(awq, tmp_path / "codes").note
    with original(awq) as source:
        note = export_hf(source, tmp_path / "fp16", type="fp16").note
    assert "written as fp16 numbers: 7 in int4_g32; the type compressed-tensors keeps" in note
