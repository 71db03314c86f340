"""Checkpoints of other schemes through a conversion: their codes stay as they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from compressed_tensors.quantization import QuantizationScheme
from safetensors.torch import load_file, save_file

from deepmnn.artifact.reader import Artifact
from deepmnn.backends.cpu.backend import CpuBackend
from deepmnn.conversion.carry_out import choose
from deepmnn.conversion.convert import convert, plan_conversion
from deepmnn.formats import F32, named
from deepmnn.graph.tensors import tensors
from deepmnn.quant.recipe import DEFAULT
from deepmnn.quant.store import stored_values
from deepmnn.source.open import open_source
from parity import Runner, prompts_for
from source.compressed import compress_model, config_of, scheme_of, write
from tiny_models import LLAMA, MLA, checkpoint_of

FIXTURES = Path(__file__).parents[1] / "source" / "fixtures"
IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 31]
"""What the fixtures' logits are of."""

SIZES = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
DEEPSEEK = MLA | {
    "hidden_size": 128,
    "intermediate_size": 160,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 64,
    "q_lora_rank": 32,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", LLAMA | SIZES | {"intermediate_size": 384}),
    "qwen2": ("qwen2", LLAMA | SIZES | {"intermediate_size": 300}),
    "deepseek_v2": ("deepseek_v2", DEEPSEEK),
}


def grouped(bits: int, size: int, **fields: Any) -> QuantizationScheme:
    args = {"num_bits": bits, "type": "int", "strategy": "group", "group_size": size}
    return scheme_of("pack-quantized", **args | fields)


SCHEMES = {
    "W4A16, groups of 128": grouped(4, 128),
    "W4A16, groups of 32": grouped(4, 32, symmetric=False),
    "W8A8": scheme_of("int-quantized", num_bits=8, type="int", strategy="channel"),
    "MXFP4": scheme_of(
        "mxfp4-pack-quantized",
        num_bits=4,
        type="float",
        strategy="group",
        group_size=32,
        scale_dtype=torch.uint8,
    ),
}
WHOLE = [
    ("llama", "W4A16, groups of 128", {"int4_g128"}),
    ("llama", "MXFP4", {"mxfp4"}),
    ("qwen2", "W8A8", {"int8"}),
    ("deepseek_v2", "W4A16, groups of 32", {"int4_g32", "int4"}),
    ("deepseek_v2", "W8A8", {"int8"}),
]


def checkpoint(path: Path, model: str, scheme: str) -> tuple[Path, Callable[[list[int]], F32]]:
    """A checkpoint as the library writes it; and the logits of what it makes of that again."""
    model_type, fields = MODELS[model]
    tiny = checkpoint_of(model_type, fields, path / "plain")
    args = SCHEMES[scheme]
    state, plain = compress_model(tiny.path, lambda name: args if "_proj" in name else None)
    config = config_of(args, ignore=("lm_head", "re:.*mlp.gate$"))
    write(path / "hf", state, config, tiny.config)
    save_file(plain, tiny.path / "model.safetensors", {"format": "pt"})
    oracle = transformers.AutoModelForCausalLM.from_pretrained(
        tiny.path, dtype=torch.float32, attn_implementation="eager"
    ).eval()

    def logits(ids: list[int]) -> F32:
        with torch.no_grad():
            return np.asarray(oracle(input_ids=torch.tensor([ids])).logits[0], np.float32)

    return path / "hf", logits


def kept(source: Path, out: Path, exact: bool) -> dict[str, str]:
    """Converts by the default recipe. Checkpoint tensor → the kept format that it is stored in.

    exact: it has the numbers of the source; else all but for the rounding of scales.
    """
    done, plan = convert(source, out), plan_conversion(source, DEFAULT)
    assert done.unused == ()
    assert done.calibration is None
    artifact, found = Artifact.open(out), dict[str, str]()
    for weight in plan.weights:
        assert artifact.graph().weights[weight.name].format == weight.format
        if named(weight.format).is_kept:
            stored = stored_values(weight, artifact.tensor(weight.name))
            want = weight.expr.read(plan.source)
            np.testing.assert_allclose(stored, want, rtol=0 if exact else 2**-11, atol=0)
            found |= {tensor.name: weight.format for tensor in tensors(weight.expr)}
    return found


def check_logits(path: Path, ids: list[int], want: F32) -> None:
    """What is left: activations of 8 bits, and w8 for what is stored plainly."""
    got = Runner(CpuBackend(path, threads=1)).step({0: ids})[0]
    errors = np.linalg.norm(got - want, axis=1) / np.linalg.norm(want, axis=1)
    assert np.median(errors) < 0.05  # a token that is near a border goes to other experts


@pytest.mark.parametrize(("model", "scheme", "formats"), WHOLE)
def test_a_library_s_checkpoint(tmp_path: Path, model: str, scheme: str, formats: set[str]) -> None:
    path, logits = checkpoint(tmp_path, model, scheme)
    found = kept(path, tmp_path / "out", exact=False)
    names = (n for n in open_source(path).names() if "_proj" in n and n.endswith(".weight"))
    assert set(found) == {name for name in names if "kv_b_proj" not in name}
    assert set(found.values()) == formats
    ids = prompts_for([23], LLAMA["vocab_size"])[0]
    check_logits(tmp_path / "out", ids, logits(ids))


@pytest.mark.parametrize(
    ("model", "format", "count"), [("awq-qwen2", "int4_g32", 7), ("gptq-deepseek_v3", "int4", 7)]
)
def test_what_autoawq_and_gptqmodel_wrote(
    tmp_path: Path, model: str, format: str, count: int
) -> None:
    found = kept(FIXTURES / model, tmp_path / "out", exact=True)
    assert set(found.values()) == {format}
    assert len(found) == count
    check_logits(tmp_path / "out", IDS, np.load(FIXTURES / model / "logits.npy"))


@pytest.mark.parametrize(
    ("scheme", "quant", "formats"),
    [
        ("W8A8", "w8", {"int8", "w8"}),
        ("W8A8", "w6", {"w6", "w8"}),
        ("W8A8", "w4", {"w4", "w8"}),
        ("W8A8", "bf16", {"bf16"}),
        ("W4A16, groups of 128", "w8", {"int4_g128", "w8"}),
        ("W4A16, groups of 128", "w4", {"int4_g128", "w4", "w8"}),  # w4: the head
        ("W4A16, groups of 128", "w3", {"w3", "w8"}),
        ("W4A16, groups of 128", "fp32", {"f32"}),
    ],
)
def test_bits_decide(tmp_path: Path, scheme: str, quant: str, formats: set[str]) -> None:
    path, _ = checkpoint(tmp_path, "llama", scheme)
    plan = plan_conversion(path, quant)
    assert {weight.format for weight in plan.weights} - {"vector"} == formats


def test_nothing_is_calibrated_where_all_is_kept(tmp_path: Path) -> None:
    """A calibration is for codes that are rounded to few bits; a tied head has 8."""
    path, _ = checkpoint(tmp_path, "llama", "W4A16, groups of 128")
    fields = json.loads((path / "config.json").read_text()) | {"tie_word_embeddings": True}
    (path / "tokenizer.json").write_text("{}")

    def calibrates(quant: str) -> bool:
        return choose(plan_conversion(path, quant), None, 8) is not None

    assert calibrates("w4")  # the head
    assert not calibrates("w8")
    state = load_file(path / "model.safetensors")
    del state["lm_head.weight"]
    save_file(state, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(fields))
    assert not calibrates("w4")
    assert calibrates("w3")
