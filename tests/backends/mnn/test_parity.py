"""MNN against every architecture: all levels, both forms of MLA, every weight format."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

pytest.importorskip("MNN")

from deepmnn.api.loading import load
from deepmnn.backends.base import F32
from deepmnn.backends.mnn.backend import MnnBackend
from deepmnn.backends.mnn.options import MnnOptions
from deepmnn.conversion.convert import convert
from deepmnn.errors import RequestError
from deepmnn.exporters.mnn.export import export
from deepmnn.exporters.mnn.folder import MnnFolder
from mnn_numbers import Given
from parity import SCHEDULES, check_parity, prompts_for, relative_error, run_schedule
from tiny_models import CONFIGS, DENSE, Config, TinyModel, checkpoint_of

EXACT = 1e-4
"""Of the largest logit, memory "normal"."""
INT8_ACTIVATIONS = (0.09, 0.12)
"""The median token's error and the worst one's, memory "low": activations of 8 bits, one scale for
a token, through two or three layers of random weights."""

MLA = [case for case in DENSE if case[0] in ("deepseek_v2", "deepseek_v3")]
WHOLE: Config = {
    "hidden_size": 192,
    "intermediate_size": 320,
    "moe_intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
"""Widths that blocks of 64 columns divide, so that matrices are stored as codes."""


@dataclass(frozen=True)
class Oracle:
    """What `check_parity` asks: the reference backend on the artifact's own numbers."""

    config: Config
    model: Any

    def logits(self, ids: Sequence[int]) -> F32:
        logits: F32 = self.model.logits(list(ids))
        return logits


def backend(path: Path, memory: str = "normal", **options: Any) -> MnnBackend:
    folder = MnnFolder.open(path)
    return MnnBackend(folder, threads=options.pop("threads", 1), options=MnnOptions(memory=memory))


def tiny(model_type: str, index: int, path: Path, **fields: Any) -> TinyModel:
    config = CONFIGS[model_type][index] | fields
    return checkpoint_of(model_type, config, path, bf16_embedding=True)


def exported(model: TinyModel, quant: str, level: int = 3, form: str = "auto") -> tuple[Path, Path]:
    """→ (artifact, MNN folder) beside the checkpoint."""
    artifact = model.path.parent / "artifact"
    convert(model.path, artifact, quant, level, overwrite=True)
    folder = model.path.parent / f"mnn-{form}"
    export(artifact, folder, mla_form=form)
    return artifact, folder


def token_errors(oracle: Any, runner: MnnBackend) -> list[float]:
    """Of each token's logits, in units of its largest one.

    A token whose experts are nearly tied may get another one for a rounding: that one's error says
    nothing.
    """
    lengths, steps = SCHEDULES["chunks"]
    prompts = prompts_for(lengths, oracle.config["vocab_size"])
    got, want = run_schedule(runner, prompts, steps)[0], oracle.logits(prompts[0])
    return [relative_error(g, w) for g, w in zip(got, want, strict=True)]


@pytest.mark.parametrize(("model_type", "index"), DENSE)
def test_every_schedule_gives_the_oracles_logits(
    tmp_path: Path, model_type: str, index: int
) -> None:
    model = tiny(model_type, index, tmp_path / "hf")
    _, folder = exported(model, "fp32")
    check_parity(model, lambda *_: backend(folder, threads=2), tolerance=EXACT)


@pytest.mark.parametrize(("model_type", "index"), MLA)
def test_expanded_latent_attention(tmp_path: Path, model_type: str, index: int) -> None:
    model = tiny(model_type, index, tmp_path / "hf")
    _, folder = exported(model, "fp32", form="expanded")
    check_parity(model, lambda *_: backend(folder), tolerance=EXACT)


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize(
    ("model_type", "index"),
    [case for case in DENSE if case[1] in (0, 2, 3)],
)
def test_lower_levels_give_the_same(
    tmp_path: Path, model_type: str, index: int, level: int
) -> None:
    model = tiny(model_type, index, tmp_path / "hf")
    _, folder = exported(model, "fp32", level)
    check_parity(model, lambda *_: backend(folder), tolerance=EXACT, schedules=("chunks",))


@pytest.mark.parametrize("quant", ["bf16", "w8", "w4"])
@pytest.mark.parametrize(("model_type", "index"), DENSE)
def test_ragged_blocks_and_floats(tmp_path: Path, model_type: str, index: int, quant: str) -> None:
    """Odd widths: rows that no block of 32 columns divides arrive as the artifact has them."""
    model = tiny(model_type, index, tmp_path / "hf")
    artifact, folder = exported(model, quant)
    oracle: Any = Oracle(model.config, Given(artifact))
    tolerance = EXACT if quant != "bf16" else 5e-4  # bf16's least numbers are rounded in fp16
    check_parity(oracle, lambda *_: backend(folder), tolerance=tolerance, schedules=("chunks",))


@pytest.mark.parametrize("quant", ["w8", "w4"])
@pytest.mark.parametrize(
    ("model_type", "index"),
    [case for case in DENSE if case not in (("deepseek", 0), ("deepseek_v2", 4))],
)
def test_whole_blocks_are_codes(tmp_path: Path, model_type: str, index: int, quant: str) -> None:
    fields = dict(WHOLE)
    if "q_lora_rank" in CONFIGS[model_type][index]:
        rank = CONFIGS[model_type][index]["q_lora_rank"]
        fields |= {"kv_lora_rank": 64, "v_head_dim": 16, "q_lora_rank": rank and 64}
    else:
        fields |= {"head_dim": 16}
    model = tiny(model_type, index, tmp_path / "hf", **fields)
    artifact, folder = exported(model, quant)
    stored = sum(file.stat().st_size for file in artifact.glob("*.safetensors"))
    assert (folder / "llm.mnn.weight").stat().st_size < 1.2 * stored
    oracle: Any = Oracle(model.config, Given(artifact))
    check_parity(oracle, lambda *_: backend(folder), tolerance=EXACT)
    errors = token_errors(oracle, backend(folder, "low"))
    median, worst = INT8_ACTIVATIONS
    assert EXACT < np.median(errors) <= median  # below: nothing was computed in int8
    if not any("expert" in name for name in load(artifact).artifact.graph().weights):
        assert max(errors) <= worst


@pytest.mark.parametrize("form", ["expanded", "absorbed"])
@pytest.mark.parametrize("dims", [(1, 2, 1), (4, 34, 4), (5, 14, 40), (9, 2, 9), (15, 2, 17)])
def test_head_sizes_of_latent_attention(
    tmp_path: Path, dims: tuple[int, int, int], form: str
) -> None:
    """Any of nope, rope and v may be the largest, and none fill MNN's packs of 4 and 8."""
    fields = dict(zip(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), dims, strict=True))
    model = tiny("deepseek_v3", 1, tmp_path / "hf", num_hidden_layers=1, **fields)
    _, folder = exported(model, "fp32", form=form)
    check_parity(model, lambda *_: backend(folder), tolerance=EXACT, schedules=("chunks",))


@pytest.mark.parametrize(("experts", "top_k"), [(1, 1), (6, 1), (5, 5), (64, 6)])
@pytest.mark.parametrize("groups", [1, 2])
def test_sizes_of_routers(tmp_path: Path, experts: int, top_k: int, groups: int) -> None:
    if experts % groups or experts // groups < top_k:
        groups = experts  # one in each, all kept
    model = tiny(
        *("deepseek_v2", 2, tmp_path / "hf"),
        n_routed_experts=experts,
        num_experts_per_tok=top_k,
        n_group=groups,
        topk_group=1 if groups == 2 else groups,
    )
    _, folder = exported(model, "fp32")
    check_parity(model, lambda *_: backend(folder), tolerance=EXACT, schedules=("chunks",))


@pytest.mark.parametrize("model_type", ["deepseek_v2", "deepseek_v3"])
def test_tied_scores_go_to_the_first(tmp_path: Path, model_type: str) -> None:
    """Groups of equal strength too: no more than topk_group may stay."""
    fields = {"topk_method": "group_limited_greedy"} if model_type == "deepseek_v2" else {}
    model = tiny(model_type, 0, tmp_path / "hf", n_group=4, topk_group=2, **fields)
    file = model.path / "model.safetensors"
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if ".mlp.gate." in name:
            tensor.zero_()
        if name.endswith(".mlp.gate.weight"):
            tensor[[0, 3, 6, 7, 8], 0] = 3.0  # one element: every way of adding is exact
    save_file(tensors, file, {"format": "pt"})
    artifact, folder = exported(model, "fp32")
    oracle: Any = Oracle(model.config, load(artifact, "reference"))
    check_parity(oracle, lambda *_: backend(folder), tolerance=EXACT, schedules=("prefill",))


@pytest.mark.parametrize("quant", ["bf16", "w8", "w4"])
@pytest.mark.parametrize("tied", [False, True])
def test_more_than_65535_rows(tmp_path: Path, quant: str, tied: bool) -> None:
    """Their count takes 32 bits."""
    model = tiny(
        *("qwen2", 0, tmp_path / "hf"),
        vocab_size=65539,
        **{"hidden_size": 64, "intermediate_size": 96},
        num_attention_heads=2,
        num_key_value_heads=2,
        num_hidden_layers=1,
        tie_word_embeddings=tied,
    )
    artifact, folder = exported(model, quant)
    oracle: Any = Oracle(model.config, Given(artifact))
    check_parity(oracle, lambda *_: backend(folder), tolerance=EXACT, schedules=("prefill",))


@pytest.mark.parametrize("quant", ["w8", "w5", "w4", "w3"])
@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_block_sizes(tmp_path: Path, quant: str, size: int) -> None:
    fields = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
    model = tiny(
        "qwen2", 0, tmp_path / "hf", **fields, num_attention_heads=4, num_key_value_heads=2
    )
    convert(model.path, tmp_path / "artifact", quant)
    export(tmp_path / "artifact", tmp_path / "mnn", block_size=size)
    oracle: Any = Oracle(model.config, Given(tmp_path / "artifact", size))
    check_parity(
        oracle, lambda *_: backend(tmp_path / "mnn"), tolerance=EXACT, schedules=("chunks",)
    )


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("model_type", ["qwen2", "deepseek_v3"])
def test_floats_are_rounded_once(tmp_path: Path, model_type: str, bits: int) -> None:
    """By the export alone, but for routers, from the numbers of the checkpoint."""
    fields = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4}
    model = tiny(model_type, 0, tmp_path / "hf", **fields, num_key_value_heads=4)
    convert(model.path, tmp_path / "artifact", "fp32")
    export(tmp_path / "artifact", tmp_path / "mnn", bits=bits)
    oracle: Any = Oracle(model.config, Given(tmp_path / "artifact", bits=bits))
    check_parity(
        oracle, lambda *_: backend(tmp_path / "mnn"), tolerance=EXACT, schedules=("chunks",)
    )
    errors = token_errors(model, backend(tmp_path / "mnn"))
    assert 1e-3 < np.median(errors) < (0.05 if bits == 8 else 0.8)
    with pytest.raises(RequestError, match="bits is 5; expected 4 or 8"):
        export(tmp_path / "artifact", tmp_path / "other", bits=5)


@pytest.mark.parametrize("width", [256, 320, 512, 608])
def test_the_widest_block_that_divides_a_row(tmp_path: Path, width: int) -> None:
    """128 columns, or fewer."""
    fields = {"hidden_size": width, "intermediate_size": width + 256, "head_dim": 32}
    model = tiny(
        "qwen2", 0, tmp_path / "hf", **fields, num_attention_heads=4, num_key_value_heads=2
    )
    artifact, folder = exported(model, "w8")
    stored = sum(file.stat().st_size for file in artifact.glob("*.safetensors"))
    assert (folder / "llm.mnn.weight").stat().st_size < 1.2 * stored
    oracle: Any = Oracle(model.config, Given(artifact))
    check_parity(oracle, lambda *_: backend(folder), tolerance=EXACT)
    assert np.median(token_errors(oracle, backend(folder, "low"))) <= INT8_ACTIVATIONS[0]


@pytest.mark.parametrize(("quant", "least", "most"), [("w8", 5e-3, 5e-2), ("w4", 0.1, 0.6)])
def test_rounding_anew_costs_what_rounding_costs(
    tmp_path: Path, quant: str, least: float, most: float
) -> None:
    """Beside the artifact's own numbers, of a dense model of random weights: 0.02 and 0.3 were
    measured.
    """
    model = tiny("llama", 0, tmp_path / "hf", **WHOLE, head_dim=16)
    artifact, folder = exported(model, quant)
    oracle: Any = Oracle(model.config, load(artifact, "reference"))
    errors = token_errors(oracle, backend(folder))
    assert least < np.median(errors) < most
