"""Every way to write a scaling of positions, against transformers, beyond the original length."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deepmnn import convert, load
from deepmnn.models import read_config
from parity import lowered, prompts_for, reference, relative_error, run_schedule
from tiny_models import LLAMA, MLA, TinyModel, checkpoint_of

ORIGINAL, LONG = 24, 96
FIELDS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA | {"head_dim": 14},
    "deepseek_v2": MLA,
    "deepseek_v3": MLA | {"n_group": 1, "topk_group": 1, "num_nextn_predict_layers": 0},
}
PLAIN = {"type": "yarn", "factor": 4.0}
YARN = PLAIN | {"original_max_position_embeddings": ORIGINAL}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
FORMS: dict[str, tuple[int, int, dict[str, Any]]] = {
    # name → max_position_embeddings, the context length, other fields of config.json
    "qwen's recipe": (ORIGINAL, LONG, {"rope_scaling": YARN, "rope_theta": 5e3}),
    "deepseek's": (LONG, LONG, {"rope_scaling": YARN | {"mscale": 0.7, "mscale_all_dim": 0.7}}),
    "no original length": (ORIGINAL, LONG, {"rope_scaling": PLAIN}),
    "beside": (
        LONG,
        LONG,
        {"rope_scaling": PLAIN, "original_max_position_embeddings": ORIGINAL},
    ),
    "inside and beside": (
        LONG,
        LONG,
        {"rope_scaling": YARN, "original_max_position_embeddings": 8},
    ),
    "rope_type": (ORIGINAL, LONG, {"rope_scaling": YARN | {"rope_type": "yarn", "type": "linear"}}),
    "no factor": (LONG, LONG, {"rope_scaling": YARN | {"factor": None}}),
    "nulls": (LONG, LONG, {"rope_scaling": YARN | {"beta_fast": None, "attention_factor": None}}),
    "transformers 5": (ORIGINAL, LONG, {"rope_parameters": PLAIN | {"rope_theta": 5e3}}),
    "theta beside": (ORIGINAL, LONG, {"rope_parameters": PLAIN, "rope_theta": 5e3}),
    "both": (
        ORIGINAL,
        LONG,
        {"rope_scaling": PLAIN, "rope_parameters": {"rope_type": "default", "rope_theta": 7e3}},
    ),
    "linear": (LONG, LONG, {"rope_scaling": {"type": "linear", "factor": 4}}),
    "linear, mscale": (
        LONG,
        LONG,
        {"rope_scaling": {"type": "linear", "factor": 4, "mscale_all_dim": 0.7}},
    ),
    "llama3": (LONG, LONG, {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 24}}),
    "llama3, no original": (LONG, LONG, {"rope_scaling": LLAMA3}),
    "default": (LONG, LONG, {"rope_scaling": {"rope_type": "default", "factor": 4.0}}),
    "null": (LONG, LONG, {"rope_scaling": None, "rope_theta": 5e3}),
    "empty": (LONG, LONG, {"rope_scaling": {}, "rope_parameters": {"rope_theta": 5e3}}),
}


def written(model_type: str, form: str, path: Path) -> TinyModel:
    """A checkpoint whose config.json has exactly this form; transformers read the same fields."""
    maximum, _, rope = FORMS[form]
    fields = FIELDS[model_type] | {"max_position_embeddings": maximum} | rope
    tiny = checkpoint_of(model_type, fields, path)
    config = {"model_type": model_type, **fields}
    (path / "config.json").write_text(json.dumps(config))
    return replace(tiny, config=config)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("model_type", FIELDS)
def test_logits_are_those_of_transformers(tmp_path: Path, model_type: str, form: str) -> None:
    tiny = written(model_type, form, tmp_path)
    assert read_config(tiny.config).context_length == FORMS[form][1]
    [prompt] = prompts_for([LONG], tiny.config["vocab_size"])
    [got] = run_schedule(reference(lowered(tiny, 0), tiny), [prompt], [(LONG,)])
    assert relative_error(got, tiny.logits(prompt)) < 2e-5


@pytest.mark.parametrize("form", ["qwen's recipe", "no original length"])
@pytest.mark.parametrize("model_type", FIELDS)
def test_a_converted_model_takes_the_whole_context(
    tmp_path: Path, model_type: str, form: str
) -> None:
    tiny = written(model_type, form, tmp_path / "source")
    convert(tiny.path, tmp_path / "model", "fp32")
    model = load(tmp_path / "model", threads=1)
    assert model.context_length == LONG
    [prompt] = prompts_for([LONG], tiny.config["vocab_size"])
    assert relative_error(model.logits(prompt), tiny.logits(prompt)) < 1e-4
