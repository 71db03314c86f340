"""What a conversion says of the codes that it keeps, and of what it rounds: bytes and errors."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from typer.testing import CliRunner

from deepmnn.artifact.reader import Artifact
from deepmnn.backends.base import F32
from deepmnn.cli import app
from deepmnn.conversion.convert import plan_conversion
from deepmnn.conversion.report.recorder import HTML, JSON
from deepmnn.conversion.report.stored import as_stored
from deepmnn.formats import named
from deepmnn.graph.tensors import tensors
from deepmnn.quant.store import stored_values
from deepmnn.source.open import open_source
from gguf_files import write_floats, write_gguf
from tiny_models import CONFIGS, checkpoint_of, tiny_checkpoint

Q = GGMLQuantizationType
SIZES = {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 99, "head_dim": 32}
TYPES = {
    **{"attn_q": Q.Q2_K, "attn_k": Q.Q3_K, "attn_v": Q.IQ4_XS, "attn_output": Q.IQ3_S},
    **{"ffn_gate": Q.Q4_K, "ffn_up": Q.TQ2_0, "ffn_down": Q.Q6_K},
    **{"token_embd": Q.IQ4_NL, "output": Q.BF16},
}


def kind_of(name: str, values: F32) -> GGMLQuantizationType:
    stem = name.removesuffix(".weight").rpartition(".")[2]
    return Q.F32 if values.ndim == 1 else TYPES[stem]


def converted(path: Path, out: Path, *options: str) -> tuple[str, dict[str, Any]]:
    """What the command prints, and the report."""
    done = CliRunner().invoke(app, ["convert", str(path), str(out), *options])
    assert done.exit_code == 0, done.output
    return done.output, json.loads((out / JSON).read_text())


@pytest.mark.parametrize("quant", ["w8", "w5"])
def test_every_type_that_is_not_kept_has_its_error(tmp_path: Path, quant: str) -> None:
    """Against the package's numbers of the file, and what the converted model stands for. Matrices
    of several types are not fused at level 1; where they are, one row speaks of them all.
    """
    config = CONFIGS["llama"][0] | SIZES | {"num_attention_heads": 8, "num_key_value_heads": 2}
    tiny = checkpoint_of("llama", config | {"tie_word_embeddings": False}, tmp_path / "hf")
    decoded = write_gguf(tiny, tmp_path / "model.gguf", kind_of)
    exact = open_source(write_floats(tiny, decoded, tmp_path / "floats.gguf"))
    plan = plan_conversion(tmp_path / "model.gguf", quant, 1)
    options = ("--quant", quant, "--no-calibration", "--optimize-level", "1")
    said, facts = converted(tmp_path / "model.gguf", tmp_path / "out", *options)
    artifact = Artifact.open(tmp_path / "out")
    errors: dict[tuple[str, str], list[np.ndarray]] = defaultdict(list)
    nbytes: dict[tuple[str, str], int] = defaultdict(int)
    for weight, found in zip(plan.weights, facts["weights"], strict=True):
        (name,) = {plan.source.stored_as(tensor.name) for tensor in tensors(weight.expr)}
        assert (found["origin"], found["format"]) == (name, weight.format)
        nbytes[name, weight.format] += weight.nbytes
        want = weight.expr.read(exact)
        wrong = stored_values(weight, artifact.tensor(weight.name)) - want
        squares = [np.square(x, dtype=np.float64).sum() for x in (wrong, want)]
        errors[name, weight.format].append(np.array(squares))
    rows = {(row["origin"], row["format"]): row for row in facts["stored"]}
    kept = {"Q4_K": "q4_k"} | ({"Q6_K": "q6_k"} if quant == "w8" else {})
    assert rows.keys() == {
        *((kind.name, kept.get(kind.name, quant)) for kind in TYPES.values() if kind != Q.IQ4_NL),
        *(("F32", "vector"), ("IQ4_NL", "w8")),
    }
    page = (tmp_path / "out" / HTML).read_text()
    for key, row in rows.items():
        assert row["nbytes"] == nbytes[key]
        if key[1] == "vector":
            assert row["error"] is None
            continue
        wrong, whole = sum(errors[key])
        assert row["error"] == pytest.approx(math.sqrt(wrong / whole), rel=1e-3)
        assert (row["error"] == 0) == named(key[1]).is_kept
        shown = f"{key[1]}, kept" if row["error"] == 0 else key[1]
        assert f"<tr><td>{key[0]}</td><td>{shown}</td>" in page
        line = next(
            line
            for line in said.splitlines()
            if line.startswith(f"│ {key[1]} ") and (key[0] if row["error"] else "kept") in line
        )
        assert f"{row['error']:.2%}" in line
    formats = "w8 and kept q6_k, q4_k" if quant == "w8" else "w5 and kept q4_k"
    assert f"parameters as {formats}\n" in said
    assert f"<h1>llama as {formats}</h1>" in page
    described = CliRunner().invoke(app, ["info", str(tmp_path / "out")]).output
    assert f"converted       {formats}, optimize level 1" in described
    fused = ("--quant", quant, "--no-calibration", "--overwrite")
    _, facts = converted(tmp_path / "model.gguf", tmp_path / "out", *fused)
    (row,) = (row for row in facts["stored"] if row["origin"] == "Q2_K, Q3_K, IQ4_XS")
    three = sum(sum(errors[name, quant]) for name in ("Q2_K", "Q3_K", "IQ4_XS"))
    assert row["error"] == pytest.approx(math.sqrt(three[0] / three[1]), rel=1e-3)


def test_a_plan_says_what_is_kept(tmp_path: Path) -> None:
    config = CONFIGS["llama"][0] | SIZES | {"num_attention_heads": 8, "num_key_value_heads": 2}
    tiny = checkpoint_of("llama", config, tmp_path / "hf")
    write_gguf(
        tiny, tmp_path / "model.gguf", lambda name, values: Q.F32 if values.ndim == 1 else Q.Q8_0
    )
    said = CliRunner().invoke(app, ["info", str(tmp_path / "model.gguf")]).output
    assert "parameters as kept q8_0\n" in said
    assert "as w8" not in said
    assert "error" not in said


def test_a_plain_checkpoint_is_called_after_its_recipe(tmp_path: Path) -> None:
    tiny = tiny_checkpoint("llama", 0, tmp_path / "hf")
    said, facts = converted(tiny.path, tmp_path / "out")
    assert "parameters as w8\n" in said
    assert "kept" not in said
    assert {row["origin"] for row in facts["stored"]} == {"F32"}
    (row,) = (row for row in facts["stored"] if row["format"] == "w8")
    assert 0 < row["error"] < 0.02


def test_a_model_is_described_by_what_it_stores() -> None:
    assert as_stored("w8", {"w8": 5, "vector": 1}) == "w8"
    assert as_stored("w8", {"q4_k": 5, "q6_k": 9, "vector": 1, "f32": 2}) == "kept q6_k, q4_k"
    assert as_stored("w4", {"q4_k": 5, "w4": 9}) == "w4 and kept q4_k"
    assert as_stored("mine", {"int4_g128": 5, "bf16": 9}) == "mine and kept int4_g128"
