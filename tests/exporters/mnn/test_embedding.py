"""What MNN looks up is what it was given: every format of a table, its own or tied."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("MNN")

import deepmnn
from deepmnn.artifact.reader import Artifact
from deepmnn.backends.base import F32
from deepmnn.backends.mnn.options import MnnOptions
from deepmnn.conversion.convert import convert
from deepmnn.exporters.mnn.export import export
from deepmnn.quant.recipe import RECIPES, Recipe, Rule
from deepmnn.quant.store import stored_values
from mnn_numbers import Given
from parity import relative_error
from tiny_models import CONFIGS, Config, checkpoint_of

EXACT = 1e-5
"""Of the largest logit: MNN adds in another order."""

TIED: Config = {"tie_word_embeddings": True}
ROUND: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "bf16": lambda t: t.bfloat16().float(),
    "fp16": lambda t: t.half().float(),
    "f32": lambda t: t,
    "large": lambda t: t * 1e5,
}


@dataclass(frozen=True)
class Case:
    """values: what the checkpoint's table holds; bits: what the file holds (0: there is none)."""

    quant: str
    fields: Config
    bits: int
    values: str = "f32"
    tolerance: float = EXACT
    table: str | None = None

    @property
    def name(self) -> str:
        tied = "-tied" if "tie_word_embeddings" in self.fields else ""
        return f"{self.table or self.quant}-{self.fields['hidden_size']}-{self.values}{tied}"


def case(
    quant: str, hidden: int, bits: int, *rest: object, table: str | None = None, tied: bool = False
) -> Case:
    fields = CONFIGS["qwen3"][0] | {"hidden_size": hidden} | (TIED if tied else {})
    return Case(quant, fields, bits, *rest, table=table)  # type: ignore[arg-type]


CASES = [
    case("bf16", 36, 16, "bf16"),
    case("fp32", 36, 16, "bf16"),
    case("fp32", 36, 16, "fp16"),
    case("fp32", 35, 16, "fp16"),
    case("fp32", 36, 16, "f32", 2e-3),
    case("fp32", 36, 16, "large", 2e-2),
    case("w8", 128, 8),
    case("w8", 36, 8),
    case("w8", 35, 8),
    case("w8", 70, 8),
    case("w4", 64, 8),
    case("w8", 128, 0, tied=True),
    case("w8", 36, 8, tied=True),
    case("fp32", 36, 16, "fp16", tied=True),
    case("bf16", 36, 16, "bf16", tied=True),
    case("w4", 128, 4, table="w4"),
    case("w4", 36, 4, table="w4"),
    case("w4", 70, 4, table="w4"),
    case("w4", 35, 8, table="w4"),
    case("w4", 128, 0, table="w4", tied=True),
]


def converted(case: Case, path: Path) -> Artifact:
    """An artifact with such a table."""
    tiny = checkpoint_of("qwen3", case.fields, path / "hf")
    tensors = load_file(tiny.path / "model.safetensors")
    name = "model.embed_tokens.weight"
    tensors[name] = ROUND[case.values](tensors[name]).contiguous()
    save_file(tensors, tiny.path / "model.safetensors", {"format": "pt"})
    recipe = RECIPES[case.quant]
    if case.table:
        recipe = Recipe("mine", (Rule("role:embedding", case.table), *recipe.rules))
    return Artifact.open(convert(tiny.path, path / "artifact", recipe).path)


def table(artifact: Artifact) -> F32:
    """Its numbers, [vocab_size, hidden_size]."""
    graph = artifact.graph()
    node = next(node for node in graph.nodes if node.op == "embedding")
    weight = graph.weights[node.weights[0]]
    return stored_values(weight, artifact.tensor(weight.name))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_mnn_looks_up_the_numbers_it_was_given(case: Case, tmp_path: Path) -> None:
    artifact = converted(case, tmp_path)
    folder = export(artifact.path, tmp_path / "folder").path
    config = json.loads((folder / "config.json").read_text())
    tied = json.loads((folder / "llm_config.json").read_text()).get("tie_embeddings", {})
    assert ("embedding_file" in config) == (case.bits > 0)
    if case.bits:
        assert tied.get("quant_bit", 16) == case.bits
        assert config["embedding_file"] == {4: "embeddings_int4.bin", 8: "embeddings_int8.bin"}.get(
            case.bits, "embeddings_bf16.bin"
        )
        codes = table(artifact).size * case.bits // 8
        assert codes <= (folder / config["embedding_file"]).stat().st_size <= 3.1 * codes
    vocab = case.fields["vocab_size"]
    ids = [0, vocab - 1, *np.random.default_rng(1).permutation(vocab).tolist()]
    options = MnnOptions(memory="normal")
    want = Given(artifact.path).logits(ids)
    got = deepmnn.load(folder, threads=1, mnn=options).logits(ids)
    assert relative_error(got, want) < case.tolerance
    if case.tolerance > EXACT:
        assert relative_error(got, want) > EXACT, "it could be exact"


def test_a_float_table_is_stored_as_near_as_16_bits_allow(tmp_path: Path) -> None:
    """Against torch's conversions, bit for bit."""
    for values, dtype in (
        ("bf16", torch.bfloat16),
        ("fp16", torch.float16),
        ("f32", torch.float16),
        ("large", torch.bfloat16),
    ):
        made = case("fp32", 36, 16, values)
        artifact = converted(made, tmp_path / values)
        folder = export(artifact.path, tmp_path / values / "folder").path
        want = torch.from_numpy(table(artifact)).to(dtype)
        stored = np.fromfile(folder / "embeddings_bf16.bin", np.int16)
        np.testing.assert_array_equal(stored, want.view(torch.int16).numpy().ravel())
